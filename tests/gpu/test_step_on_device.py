"""The training step: loss and gradient on the device against the released formulas in float64 on the CPU."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from benchmarks.gpu.work import random_pairs
from benchmarks.variants import Competent, Ours, Plain64, Released, Settings, Variant
from unlearn_pl.models.lora import Lora

pytestmark = pytest.mark.gpu

Tiny = Callable[[], LlamaForCausalLM]
Result = tuple[float, dict[str, torch.Tensor]]


@pytest.fixture(scope="session")
def settings() -> Settings:
    """An optimizer step of four pairs, of rows of 24 to 80 tokens, in several packs."""
    pairs = random_pairs(8, 80, 380, seed=3)
    return Settings(pairs, 4, max_length=80, pad_token_id=0, lora=Lora(rank=8, dropout=0.1), tokens_per_forward=150)


@pytest.fixture(scope="session")
def truth(tiny_model: Tiny, settings: Settings) -> Result:
    """In float64 on the CPU."""
    return Plain64(tiny_model(), settings).check(0)


def differences(found: Result, truth: Result) -> tuple[float, float]:
    """Relative, of the loss and of the gradient as a whole."""
    assert found[1].keys() == truth[1].keys()
    both = [(found[1][name].double(), truth[1][name].double()) for name in truth[1]]
    missed, whole = torch.cat([(a - b).flatten() for a, b in both]), torch.cat([b.flatten() for _, b in both])
    return abs(found[0] - truth[0]) / abs(truth[0]), float(missed.norm() / whole.norm())


@pytest.mark.parametrize("kind", [Released, Ours])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_float32(
    kind: type[Variant], checkpointing: bool, tiny_model: Tiny, settings: Settings, truth: Result, device: torch.device
) -> None:
    variant = kind(tiny_model(), replace(settings, device=str(device), checkpointing=checkpointing))
    loss, gradient = differences(variant.check(0), truth)
    assert loss < 1e-5
    assert gradient < 1e-4


def test_packed_is_what_it_is_in_one_pack_and_padded(
    tiny_model: Tiny, settings: Settings, truth: Result, device: torch.device
) -> None:
    for limit, attention in ((None, "sdpa"), (40, "sdpa"), (150, "eager")):
        base = tiny_model()
        base.set_attn_implementation(attention)
        ours = Ours(base, replace(settings, device=str(device), tokens_per_forward=limit))
        assert ours.packed == (attention == "sdpa")
        assert max(differences(ours.check(0), truth)) < 1e-4


def test_bfloat16(tiny_model: Tiny, settings: Settings, device: torch.device) -> None:
    """A base of bfloat16 against the same numbers in float64; products of bfloat16 keep 8 bits."""
    rounded = tiny_model().bfloat16()
    truth = Plain64(tiny_model().bfloat16().float(), settings).check(0)
    loss, gradient = differences(Ours(rounded, replace(settings, device=str(device))).check(0), truth)
    assert loss < 0.01
    assert gradient < 0.05


def test_micro_batches_of_two_pairs_are_the_competent_ones(
    tiny_model: Tiny, settings: Settings, device: torch.device
) -> None:
    settings = replace(settings, positions="padded", micro_batch=2, device=str(device))
    competent, ours = (kind(tiny_model(), settings).check(0) for kind in (Competent, Ours))
    assert max(differences(ours, competent)) < 1e-4


def test_the_cache_says_what_the_base_says(
    tiny_model: Tiny, settings: Settings, truth: Result, device: torch.device, tmp_path: Path
) -> None:
    ours = Ours(tiny_model(), replace(settings, device=str(device)))
    live = ours.check(0)
    ours.build(tmp_path, settings.pairs)
    assert differences(ours.check(0), live)[0] < 1e-5
    assert max(differences(ours.check(0), truth)) < 1e-4


def test_steps_with_dropout_are_a_function_of_the_seed(
    tiny_model: Tiny, settings: Settings, device: torch.device
) -> None:
    def trained(seed: int) -> tuple[list[float], torch.Tensor]:
        torch.manual_seed(seed)
        ours = Ours(tiny_model(), replace(settings, device=str(device)))
        losses = [ours.window(number).loss for number in (0, 1)]
        return losses, torch.cat([p.detach().flatten() for p in ours.policy.parameters() if p.requires_grad]).cpu()

    (losses, first), (again, second), (_, other) = trained(1), trained(1), trained(2)
    assert losses == pytest.approx(again, rel=1e-6)  # the order of sums on a GPU may differ
    assert torch.allclose(first, second, atol=1e-5)
    assert not torch.allclose(first, other, atol=1e-5)
