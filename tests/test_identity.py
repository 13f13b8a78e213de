"""Hashes of models: equal only for models that compute the same."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast

from unlearn_pl.models.identity import model_hash, tokenizer_hash
from unlearn_pl.models.lora import Lora, attach_lora

Build = Callable[[], LlamaForCausalLM]


def test_every_weight_counts(tiny_model: Build) -> None:
    first, second = tiny_model(), tiny_model()
    assert model_hash(first) == model_hash(second)
    with torch.no_grad():
        second.lm_head.weight[3, 5] += 1e-3
    assert model_hash(first) != model_hash(second)
    assert model_hash(first.bfloat16()) != model_hash(tiny_model())


@pytest.mark.parametrize(
    ("name", "value"),
    [("rms_norm_eps", 0.5), ("rope_parameters", {"rope_type": "default", "rope_theta": 500.0}), ("hidden_act", "gelu")],
)
def test_every_setting_counts(tiny_model: Build, name: str, value: object) -> None:
    other = tiny_model()
    setattr(other.config, name, value)
    assert model_hash(other) != model_hash(tiny_model())


def test_how_a_model_generates_counts(tiny_model: Build) -> None:
    other = tiny_model()
    other.generation_config.repetition_penalty = 1.1
    assert model_hash(other) != model_hash(tiny_model())


@pytest.mark.parametrize(
    ("name", "value"), [("lora_alpha", 64), ("use_rslora", True), ("alpha_pattern", {"q_proj": 3})]
)
def test_the_settings_of_an_adapter_count(tiny_model: Build, name: str, value: object) -> None:
    first, second = (attach_lora(tiny_model(), Lora(rank=2), 0) for _ in range(2))
    assert model_hash(first) == model_hash(second)
    setattr(second.peft_config["default"], name, value)
    assert model_hash(first) != model_hash(second)


def test_the_place_of_a_model_does_not_count(tiny_model: Build, tmp_path: Path) -> None:
    for name in ("one", "two"):
        tiny_model().save_pretrained(tmp_path / name)
    one, two = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("one", "two"))
    assert model_hash(one) == model_hash(two)


def test_every_rule_of_a_tokenizer_counts(tokenizer: PreTrainedTokenizerFast) -> None:
    first = copy.deepcopy(tokenizer)
    assert tokenizer_hash(first) == tokenizer_hash(tokenizer)
    first.add_tokens(["<|q|>"])
    assert tokenizer_hash(first) != tokenizer_hash(tokenizer)
