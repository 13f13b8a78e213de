"""A training step of many architectures against the plain formulation: the whole model with PEFT's own layers, one row
at a time, losses by autograd over all logits, NPO + NLL + KL in float64; by packs, in one forward, live and cached."""

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from tiny_adapters import batch_of, gradients, plain_kl, plain_nll, rows_of, shake
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from benchmarks.variants import KeepFloat64
from unlearn_pl.errors import InputError
from unlearn_pl.models.body import body_of, parts_beside_text, vocabulary_head
from unlearn_pl.models.fast.packing import packed_limit
from unlearn_pl.models.lora import Lora, attach_lora
from unlearn_pl.objectives.forget import NPO
from unlearn_pl.objectives.retain import RetainKL, RetainNLL
from unlearn_pl.training.cache import ReferenceCache, open_or_build
from unlearn_pl.training.loss import PackedLoss
from unlearn_pl.training.packs import refuse_long_rows
from unlearn_pl.training.prepare import prepare_policy
from unlearn_pl.training.reference import live_reference

SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 300}
GROUPED = {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 64}
GEMMA = {**GROUPED, "head_dim": 8, "sliding_window": 8}
MIXED = {"layer_types": ["sliding_attention", "full_attention"]}
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
EXPERTS = {"num_experts_per_tok": 2, "num_experts": 4, "moe_intermediate_size": 16}
MAMBA = {"mamba_d_state": 4, "mamba_dt_rank": 4, "num_experts": 2}
LAYOUT = {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1}
# Rows are up to 15 tokens, so beyond each window of 8.
FAMILIES: dict[str, tuple[str, dict[str, Any], str | list[str], float]] = {
    "llama": ("Llama", GROUPED, "all-linear", 1e-9),
    "mistral, window": ("Mistral", {**GROUPED, "sliding_window": 8}, "all-linear", 1e-9),
    "gemma2, capped": ("Gemma2", {**GEMMA, "final_logit_softcapping": 0.7}, "all-linear", 1e-9),
    "gemma3, window": ("Gemma3", {**GEMMA, **MIXED}, "all-linear", 1e-9),
    "cohere, scaled": ("Cohere", {**GROUPED, "logit_scale": 4.0}, "all-linear", 1e-9),
    "granite, divided": ("Granite", {**GROUPED, "logits_scaling": 0.25}, "all-linear", 1e-9),
    "nanochat, capped": ("NanoChat", {**GROUPED, "final_logit_softcapping": 0.7}, "all-linear", 1e-9),
    "gpt2": (
        "GPT2",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 300},
        "all-linear",
        1e-9,
    ),
    "opt, narrow head": (
        "OPT",
        {**SMALL, "ffn_dim": 48, "word_embed_proj_dim": 16, "max_position_embeddings": 64},
        "all-linear",
        1e-9,
    ),
    "llama 4, chunked": (
        "Llama4",
        {**GROUPED, "head_dim": 8, "intermediate_size_mlp": 48, "num_local_experts": 2, "attention_chunk_size": 8},
        ATTENTION,
        1e-9,
    ),
    "qwen3 moe": ("Qwen3Moe", {**GROUPED, **EXPERTS, "head_dim": 8}, ATTENTION, 1e-5),
    "qwen3 moe, experts": ("Qwen3Moe", {**GROUPED, **EXPERTS, "head_dim": 8}, "all-linear", 1e-5),
    "jamba, hybrid": ("Jamba", {**GROUPED, **MAMBA, **LAYOUT}, ATTENTION, 1e-5),
    "recurrent gemma": (
        "RecurrentGemma",
        {**GROUPED, "num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 8, "logits_soft_cap": 0.7},
        ATTENTION,
        1e-3,
    ),
}
FORGET = rows_of((3, 4), (7, 8), (2, 3), seed=1, name="f")
RETAIN = rows_of((5, 5), (12, 3), (2, 6), seed=2, name="r")
OBJECTIVES = {
    "ga": NPO(0.5, 0.3, "sequence_sum"),
    "gd": RetainNLL(0.3, "sequence_mean"),
    "gk": RetainKL(0.2, "attended"),
}


def build(name: str, options: Mapping[str, Any]) -> PreTrainedModel:
    classes = {"Gemma3": "Gemma3TextConfig", "Llama4": "Llama4TextConfig"}
    config = getattr(transformers, classes.get(name, f"{name}Config"))(**{**options, "pad_token_id": None})
    cls = getattr(transformers, f"{name}ForCausalLM", None) or getattr(transformers, f"{name}LMHeadModel")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return cls(config).eval()


def wrapped_gemma3() -> PreTrainedModel:
    """As published from 4B on: the text model inside of one that sees."""
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**GEMMA, **MIXED, "pad_token_id": None}
    config = transformers.Gemma3Config(text_config=text, vision_config={**vision, "image_size": 16, "patch_size": 8})
    whole = transformers.Gemma3ForConditionalGeneration(config).eval()
    whole.model.language_model.load_state_dict(build("Gemma3", {**GEMMA, **MIXED}).model.state_dict())
    whole.tie_weights()
    return whole


def plain_loss(model: PeftModel) -> Tensor:
    """Every sum written out; the whole model runs on each row alone."""
    policy = [plain_nll(model, row) for row in FORGET]
    with torch.no_grad(), model.disable_adapter():
        base = [plain_nll(model, row) for row in FORGET]
    npo = [2 / 0.3 * F.softplus(-0.3 * (p - b)) for p, b in zip(policy, base, strict=True)]
    nll = [plain_nll(model, row) / (len(row.input_ids) - row.answer_start) for row in RETAIN]
    kl = torch.cat([plain_kl(model, row) for row in RETAIN])
    return 0.5 * sum(npo) / 3 + 0.3 * sum(nll) / 3 + 0.2 * kl.mean()


def adapted(base: PreTrainedModel, targets: str | list[str], own_layers: bool, dtype: torch.dtype) -> PeftModel:
    """With an adapter that does something; by PEFT's own layers or by ours."""
    model = attach_lora(base, Lora(4, 8, 0.0, targets), 1, fast=own_layers).to(dtype)
    shake(model)
    return model


def gap(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Relative, over all trained parameters that have a gradient on either side."""
    names = sorted(one.keys() | other.keys())
    none = {name: torch.zeros_like(one.get(name, other.get(name))) for name in names}
    filled = [[side.get(name, none[name]) for name in names] for side in (one, other)]
    a, b = (torch.cat([values.flatten() for values in side]) for side in filled)
    return float((a - b).norm() / b.norm())


def assert_step_is_plain(base: Any, targets: str | list[str], tolerance: float, folder: Path) -> PeftModel:
    """Value and gradient in one forward, in small packs, and with the cache, which is float32; gives the model."""
    dtype = torch.float64 if tolerance < 1e-6 else torch.float32  # products of experts know no float64
    plain, model = (adapted(base(), targets, own_layers, dtype).eval() for own_layers in (False, True))
    prepare_policy(model)
    model.eval()  # some families drop out by default
    batch, rows = batch_of(FORGET, RETAIN), {"forget": FORGET, "retain": RETAIN}
    with KeepFloat64() if dtype == torch.float64 else nullcontext():
        value, gradient = gradients(plain, lambda: plain_loss(plain))
        needs = PackedLoss(OBJECTIVES, 64, None).needs
        cached = open_or_build(model, rows, needs, ReferenceCache(str(folder)), "64-true", lambda _: None)
        for tokens, reference, rounding in ((None, live_reference, 0), (20, live_reference, 0), (20, cached, 1e-5)):
            loss = PackedLoss(OBJECTIVES, 64, tokens)
            own, own_gradient = gradients(model, lambda one=loss, said=reference: one(model, batch, said)[0])
            assert own == pytest.approx(value, rel=tolerance + rounding)
            assert gap(own_gradient, gradient) < tolerance + rounding
    return model


@pytest.mark.filterwarnings("ignore:lora.target_modules all-linear. adapts experts", "ignore:fan_in_fan_out")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_is_the_plain_formulation(family: str, tmp_path: Path) -> None:
    name, options, targets, tolerance = FAMILIES[family]
    assert_step_is_plain(lambda: build(name, options), targets, tolerance, tmp_path)


def test_a_model_inside_of_one_that_sees(tmp_path: Path) -> None:
    """The window of its text model is known, and what text does not go through has no adapter."""
    assert parts_beside_text(wrapped_gemma3()) == ["model.vision_tower", "model.multi_modal_projector"]
    model = assert_step_is_plain(wrapped_gemma3, "all-linear", 1e-9, tmp_path)
    assert packed_limit(model) == 8
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * 2 * 7  # A and B of seven layers in each of two blocks
    assert not any("vision" in name or "projector" in name for name in trained)
    bare, whole = build("Gemma3", {**GEMMA, **MIXED}), wrapped_gemma3()
    assert plain_nll(whole, RETAIN[1]).item() == pytest.approx(plain_nll(bare, RETAIN[1]).item(), rel=1e-6)
    long = rows_of((50, 15), name="long")
    for one in (bare, whole):
        with pytest.raises(InputError, match=r"row 'long0' of forget has 65 tokens, the model has 64 positions"):
            refuse_long_rows(one, "forget", long)


def test_caps_and_scales_are_within_reach_of_these_logits() -> None:
    """Else the tests above would not see them."""
    for family in ("gemma2, capped", "nanochat, capped", "recurrent gemma"):
        name, options, *_ = FAMILIES[family]
        model = build(name, options)
        hidden = body_of(model)(input_ids=torch.arange(1, 9)[None]).last_hidden_state
        head = vocabulary_head(model)
        assert (head.logits(hidden) - hidden @ head.weight.T).abs().max() > 0.01
