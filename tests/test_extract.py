"""Extraction of an adapter from two checkpoints: exact where the difference has that rank, measured where not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from unlearn_pl.checkpoints.extract import extract_adapter, norm_of
from unlearn_pl.commands.extract import extract
from unlearn_pl.errors import InputError

IDS = torch.arange(24)[None]


def gpt2() -> GPT2LMHeadModel:
    """Conv1D layers, which store the transposed weight, and a tied head."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return GPT2LMHeadModel(
            GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=0)
        ).eval()


def layers(model: nn.Module) -> dict[str, nn.Module]:
    found = {name: layer for name, layer in model.named_modules() if isinstance(layer, (nn.Linear, Conv1D))}
    return {name: layer for name, layer in found.items() if name != "lm_head"}


def change(model: nn.Module, rank: int) -> nn.Module:
    """Add to every linear layer a product of random factors of that rank."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in layers(model).values():
            out, into = layer.weight.shape
            left, right = torch.randn(out, rank, generator=generator), torch.randn(rank, into, generator=generator)
            layer.weight.add_(left @ right, alpha=0.02)
    return model


@pytest.fixture
def pair(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """A function that saves a model, changes it, and saves it again."""

    def save(build: Callable[[], Any], alter: Callable[[Any], Any]) -> tuple[Path, Path]:
        folders = tmp_path / "base", tmp_path / "tuned"
        build().save_pretrained(folders[0])
        alter(build()).save_pretrained(folders[1])
        return folders

    return save


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_an_exact_low_rank_difference_comes_back(kind: str, pair: Any, tiny_model: Any, tmp_path: Path) -> None:
    base, tuned = pair(tiny_model if kind == "llama" else gpt2, lambda model: change(model, 3))
    found = extract_adapter(base, tuned, 3, tmp_path / "adapter")
    assert found.relative_error < 1e-5
    assert found.others == {}
    target = AutoModelForCausalLM.from_pretrained(tuned)
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter").eval()
    assert adapted.peft_config["default"].lora_alpha == adapted.peft_config["default"].r == 3
    torch.testing.assert_close(adapted(IDS).logits, target(IDS).logits, atol=1e-4, rtol=1e-4)
    whole = adapted.merge_and_unload()
    for name, layer in layers(target).items():
        torch.testing.assert_close(whole.get_submodule(name).weight, layer.weight, atol=1e-5, rtol=1e-5)
    assert found.factors.keys() == layers(target).keys()


def test_the_error_is_what_the_singular_values_say(pair: Any, tiny_model: Any, tmp_path: Path) -> None:
    """Rank 2 of a difference of rank 5 cuts off the last three singular values (Eckart and Young)."""
    base, tuned = pair(tiny_model, lambda model: change(model, 5))
    found = extract_adapter(base, tuned, 2, tmp_path / "adapter")
    before, after = load_file(base / "model.safetensors"), load_file(tuned / "model.safetensors")
    cut = whole = 0.0
    for module, error in found.errors.items():
        values = torch.linalg.svdvals((after[f"{module}.weight"] - before[f"{module}.weight"]).double())
        assert error == pytest.approx((values[2:].norm() / values.norm()).item(), rel=1e-4)
        assert found.norms[module] == pytest.approx(values.norm().item(), rel=1e-6)
        cut, whole = cut + values[2:].square().sum().item(), whole + values.square().sum().item()
    assert found.relative_error == pytest.approx((cut / whole) ** 0.5, rel=1e-4)
    facts = json.loads((tmp_path / "adapter" / "unlearn_pl.json").read_text())
    assert facts["relative_error"] == found.relative_error
    assert facts["relative_error_by_module"] == found.errors
    assert facts["not_held"] == {"tensors": 0, "share_of_norm": 0}
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted({name.split(".")[-1] for name in found.factors})
    assert config["base_model_name_or_path"] == str(base)
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "unlearn_pl.json",
    }  # fmt: skip


def test_equal_models_give_zero_factors(pair: Any, tiny_model: Any, tmp_path: Path) -> None:
    base, tuned = pair(tiny_model, lambda model: model)
    found = extract_adapter(base, tuned, 2, tmp_path / "adapter")
    assert (found.relative_error, found.share_of_others) == (0, 0)
    assert all(not value.any() for value in load_file(tmp_path / "adapter" / "adapter_model.safetensors").values())
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter")
    assert torch.equal(adapted(IDS).logits, adapted.get_base_model()(IDS).logits)


def test_what_no_adapter_holds_is_told(pair: Any, tiny_model: Any, tmp_path: Path) -> None:
    """One linear layer differs by 3 in one entry, one norm by 4: 4 of sqrt(9 + 16) = 5."""

    def alter(model: LlamaForCausalLM) -> LlamaForCausalLM:
        with torch.no_grad():
            model.model.layers[0].self_attn.q_proj.weight.zero_()[0, 0] = 3
            model.model.norm.weight[0] += 4
        return model

    def zeroed() -> LlamaForCausalLM:
        model = tiny_model()
        with torch.no_grad():
            model.model.layers[0].self_attn.q_proj.weight.zero_()
        return model

    base, tuned = pair(zeroed, alter)
    with pytest.warns(UserWarning, match=r"1 tensors differ .* such as model\.norm\.weight: 80\.00% of the norm"):
        found = extract_adapter(base, tuned, 1, tmp_path / "adapter")
    assert found.others == {"model.norm.weight": pytest.approx(4)}
    assert found.share_of_others == pytest.approx(0.8)
    facts = json.loads((tmp_path / "adapter" / "unlearn_pl.json").read_text())
    assert facts["not_held"] == {"tensors": 1, "share_of_norm": found.share_of_others}


def test_a_changed_head_is_not_held(pair: Any, tiny_model: Any, tmp_path: Path) -> None:
    def alter(model: LlamaForCausalLM) -> LlamaForCausalLM:
        with torch.no_grad():
            model.lm_head.weight.add_(1)
        return model

    base, tuned = pair(tiny_model, alter)
    with pytest.warns(UserWarning, match=r"lm_head\.weight: 100\.00%"):
        found = extract_adapter(base, tuned, 1, tmp_path / "adapter")
    assert "lm_head" not in found.factors


@pytest.mark.parametrize("rank", [0, 17])
def test_ranks_that_no_layer_has_are_refused(pair: Any, tiny_model: Any, tmp_path: Path, rank: int) -> None:
    """The smallest side is that of the two key heads of 8 numbers."""
    base, tuned = pair(tiny_model, lambda model: change(model, 1))
    with pytest.raises(InputError, match=f"rank: must be from 1 to 16, .* got {rank}"):
        extract_adapter(base, tuned, rank, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_the_full_rank_is_exact(pair: Any, tiny_model: Any, tmp_path: Path) -> None:
    base, tuned = pair(tiny_model, lambda model: change(model, 16))
    assert extract_adapter(base, tuned, 16, tmp_path / "adapter").relative_error < 1e-5


def test_models_of_other_shapes_are_refused(pair: Any, tiny_model: Any, tmp_path: Path) -> None:
    base, tuned = pair(tiny_model, lambda model: gpt2())
    with pytest.raises(InputError, match="tuned: must have the tensors of the base"):
        extract_adapter(base, tuned, 1, tmp_path / "adapter")


def test_broken_numbers_are_refused(pair: Any, tiny_model: Any, tmp_path: Path) -> None:
    def alter(model: LlamaForCausalLM) -> LlamaForCausalLM:
        with torch.no_grad():
            model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
        return model

    base, tuned = pair(tiny_model, alter)
    with pytest.raises(InputError, match=r"tuned: model\.layers\.1\.mlp\.up_proj\.weight in .* holds NaN"):
        extract_adapter(base, tuned, 1, tmp_path / "adapter")
    assert sorted(tmp_path.iterdir()) == [base, tuned]


def test_the_command_says_what_it_did(
    pair: Any, tiny_model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, tuned = pair(tiny_model, lambda model: change(model, 1))
    output = str(tmp_path / "adapter")
    extract(str(base), str(tuned), output, rank=2)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("extracted rank 2 from 14 of 14 linear layers that differ: relative error ")
    assert lines[1:] == [f"wrote the adapter {output}"]
    with pytest.raises(InputError, match="exists already"):
        extract(str(base), str(tuned), output, rank=2)
    with pytest.raises(InputError, match="would replace"):
        extract(str(base), str(tuned), str(tuned), rank=2, overwrite=True)
    extract(str(base), str(tuned), output, rank=1, overwrite=True)
    assert {
        value.shape[0] for name, value in load_file(Path(output) / "adapter_model.safetensors").items() if "_A" in name
    } == {1}


def test_norms_of_parts() -> None:
    """3 and 4 make 5; nothing makes 0."""
    assert norm_of([3.0, 4.0]) == 5
    assert norm_of([]) == 0
