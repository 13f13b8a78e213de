"""What only a GPU has: attention of all packed rows in one call, and a step that the program does not wait for."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from transformers import LlamaForCausalLM

from benchmarks.gpu.shapes import SMALL, random_model
from benchmarks.gpu.work import random_pairs
from benchmarks.variants import Ours, Settings
from unlearn_pl.data.batch import collate_pairs
from unlearn_pl.models.body import causal_model
from unlearn_pl.models.fast.attention import PACKED, VARLEN, has_varlen, packed_attention, varlen_attention

pytestmark = pytest.mark.gpu

LENGTHS = [5, 1, 40, 18]


@pytest.fixture
def card(device: torch.device) -> torch.device:
    """The device, if it is a GPU."""
    if device.type != "cuda":
        pytest.skip("of a GPU alone")
    return device


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("groups", [1, 4])
def test_one_call_for_all_rows(groups: int, dtype: torch.dtype, card: torch.device) -> None:
    """Outputs and gradients, against float32 row by row."""
    if not has_varlen(card):
        pytest.skip("this torch has no such kernel")
    generator, total = torch.Generator().manual_seed(0), sum(LENGTHS)
    shapes = [(1, heads, total, 32) for heads in (8, 8 // groups, 8 // groups)]
    states = [torch.randn(shape, generator=generator).to(card, dtype) for shape in shapes]
    upstream = torch.randn(1, total, 8, 32, generator=generator).to(card)
    bounds = torch.tensor([0, *LENGTHS], device=card).cumsum(0).to(torch.int32)
    layer = torch.nn.Module()
    layer.num_key_value_groups = groups  # type: ignore[assignment]
    layer.is_causal = True  # type: ignore[assignment]
    found = []
    for function, kind in ((packed_attention, torch.float32), (varlen_attention, dtype)):
        own = [state.to(kind).detach().requires_grad_() for state in states]
        output = function(layer, *own, None, row_lengths=LENGTHS, row_bounds=bounds, scaling=32**-0.5)[0]
        gradients = torch.autograd.grad(output, own, upstream.to(kind))
        found.append([value.float() for value in (output, *gradients)])
    for plain, together in zip(*found, strict=True):
        assert (together - plain).norm() < 0.02 * plain.norm()


def settings_on(card: torch.device, dropout: float) -> Settings:
    settings = Settings(random_pairs(4, 60, 300, seed=3), 4, max_length=60, pad_token_id=0, device=str(card))
    return replace(settings, lora=replace(settings.lora, dropout=dropout), positions="padded")


def test_a_base_of_bfloat16_has_it_and_one_of_float32_not(
    tiny_model: Callable[[], LlamaForCausalLM], card: torch.device
) -> None:
    if not has_varlen(card):
        pytest.skip("this torch has no such kernel")
    for dtype, name in ((torch.bfloat16, VARLEN), (torch.float32, PACKED)):
        ours = Ours(tiny_model().to(dtype), settings_on(card, 0))
        assert causal_model(ours.policy).config._attn_implementation == name


@pytest.mark.parametrize("shape", SMALL)
def test_nothing_of_a_step_waits_for_the_device(shape: str, card: torch.device) -> None:
    """Of a warm one whose rows are there: torch raises where the host would wait."""
    settings = settings_on(card, 0.05)
    ours = Ours(random_model(SMALL[shape], card, torch.bfloat16), settings)
    ours.window(0)
    rows = [{"forget": forget, "retain": retain} for forget, retain in settings.pairs]
    batch = collate_pairs(rows, 0, 1).to(card)
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss, _ = ours.loss(ours.policy, batch, ours.reference)
        loss.backward()
        ours.optimizer.step()
        ours.optimizer.zero_grad()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(loss)
