"""Adapters of more than plain layers of one rank: the vocabulary head, the embeddings, ranks by pattern."""

from pathlib import Path

import pytest
import torch
from adapter_folders import edit_tensors, tensors
from merge_choice import merge_settings
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from unlearn_pl.errors import InputError
from unlearn_pl.merging.adapters import read_adapters
from unlearn_pl.merging.folding import FoldedWeights
from unlearn_pl.merging.merge import MergedAdapter

KINDS = {
    "lm_head": {"target_modules": ["q_proj", "lm_head"]},
    "embed_tokens": {"target_modules": ["q_proj", "embed_tokens"]},
    "rank_pattern": {"target_modules": "all-linear", "rank_pattern": {"q_proj": 2, r"layers\.1\..*down_proj": 3}},
    "alpha_and_rank": {"target_modules": ["v_proj", "up_proj"], "rank_pattern": {"v_proj": 2}, "use_rslora": True},
}
IDS = torch.arange(3, 40)[None]


def adapter(folder: Path, base: nn.Module, seed: int, **options) -> str:
    """As PEFT saves it, with factors none of which is zero; A, or B of an embedding, nearly the same for all seeds."""
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **options))
    start, drift = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in sorted(model.named_parameters()):
            if "lora_A" in name or "embedding_B" in name:
                value.copy_(torch.randn(value.shape, generator=start) * 0.3)
                value.add_(torch.randn(value.shape, generator=drift) * 0.02)
            elif "lora_" in name:
                value.copy_(torch.randn(value.shape, generator=drift) * 0.1)
    model.save_pretrained(str(folder), save_embedding_layers="lm_head" in str(options))
    return str(folder)


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def own_deltas(base: nn.Module, folder: str) -> dict[str, torch.Tensor]:
    """What PEFT itself adds to each weight."""
    model = PeftModel.from_pretrained(base, folder)
    layers = {name: layer for name, layer in model.named_modules() if hasattr(layer, "get_delta_weight")}
    return {name: layer.get_delta_weight("default").detach() for name, layer in layers.items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["average", "ties", "ties_svd"])
def test_an_adapter_with_itself_is_that_adapter(kind, method, tiny_model, tmp_path):
    """The mean of two equal ones: as an adapter opened again by PEFT, and in the weights. (At density 1 the TIES kinds
    are means too.)"""
    one = adapter(tmp_path / "one", tiny_model(), 1, **KINDS[kind])
    assert any(name.endswith(".base_layer.weight") for name in tensors(one)) == (kind == "lm_head")
    wanted = logits(PeftModel.from_pretrained(tiny_model(), one))
    settings = merge_settings(2, method, density=None if method == "average" else 1.0)
    merged = MergedAdapter.of(tiny_model(), read_adapters([one, one], settings), settings)
    torch.testing.assert_close(logits(merged.open(tiny_model())), wanted, rtol=1e-4, atol=1e-5)
    merged.save(tmp_path / "merged")
    again = PeftModel.from_pretrained(tiny_model(), str(tmp_path / "merged"))
    torch.testing.assert_close(logits(again), wanted, rtol=1e-4, atol=1e-5)
    assert (wanted - logits(tiny_model())).abs().max() > 0.01
    folded = tiny_model()
    FoldedWeights(folded, merged.deltas).fold(merged.deltas)
    torch.testing.assert_close(logits(folded), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_sum_of_two_is_the_sum_of_what_peft_adds(kind, tiny_model, tmp_path):
    pair = [adapter(tmp_path / str(seed), tiny_model(), seed, **KINDS[kind]) for seed in (1, 2)]
    settings = merge_settings(2, "cat", [0.25, -2.0])
    merged = MergedAdapter.of(tiny_model(), read_adapters(pair, settings), settings)
    merged.save(tmp_path / "merged")
    one, other = (own_deltas(tiny_model(), folder) for folder in pair)
    got = own_deltas(tiny_model(), str(tmp_path / "merged"))
    assert got.keys() == one.keys() == other.keys()
    for name, delta in got.items():
        torch.testing.assert_close(delta, 0.25 * one[name] - 2.0 * other[name], rtol=1e-4, atol=1e-6)


def test_a_factor_merge_needs_equal_ranks_module_by_module(tiny_model, tmp_path):
    """The largest ranks are equal here, those of q_proj are not."""
    plain = adapter(tmp_path / "plain", tiny_model(), 1, target_modules="all-linear")
    other = adapter(tmp_path / "other", tiny_model(), 2, **KINDS["rank_pattern"])
    with pytest.raises(InputError, match=r"ties needs equal ranks, got \[4, 2\] of .*q_proj"):
        read_adapters([plain, other], merge_settings(2, "ties"))
    settings = merge_settings(2, "cat")
    merged = MergedAdapter.of(tiny_model(), read_adapters([plain, other], settings), settings)
    assert merged.config.rank_pattern == {
        name.removeprefix("base_model.model."): pair.a.shape[0]
        for name, pair in merged.deltas.items()
        if "q_proj" in name or "layers.1.mlp.down_proj" in name
    }


def test_adapters_trained_over_other_heads_do_not_belong_together(tiny_model, tmp_path):
    pair = [adapter(tmp_path / str(seed), tiny_model(), seed, **KINDS["lm_head"]) for seed in (1, 2)]
    read_adapters(pair, merge_settings(2, "cat"))
    edit_tensors(pair[1], lambda state: state["base_model.model.lm_head.base_layer.weight"].add_(0.1))
    with pytest.raises(InputError, match=r"adapters: must fit the same base; .*lm_head.base_layer.weight, which is"):
        read_adapters(pair, merge_settings(2, "cat"))


def test_an_embedding_is_no_linear_layer(tiny_model, tmp_path):
    """A square one would fit by its shape."""
    one = adapter(tmp_path / "one", tiny_model(), 1, **KINDS["embed_tokens"])
    settings = merge_settings(2, "cat")
    base = tiny_model()
    base.model.embed_tokens = nn.Linear(384, 32, bias=False)
    with pytest.raises(InputError, match=r"base: does not fit the adapters: it has no embedding model.embed_tokens"):
        MergedAdapter.of(base, read_adapters([one, one], settings), settings)
