"""Two random adapters as training leaves them, for benchmarks of merging: in memory, and on a model by PEFT."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import OlmoConfig, OlmoForCausalLM, PreTrainedModel

from unlearn_pl.merging.adapters import Adapter
from unlearn_pl.merging.factors import Factors
from unlearn_pl.models.adapter_folder import PREFIX

NAMES = ("first", "second")
# A learned delta's singular values fall: the columns of B get shorter by this from one to the next
DECAY = 0.9


def one_layer(hidden: int, intermediate: int) -> PreTrainedModel:
    """One transformer layer of OLMo with random weights: q, k, v, o, gate, up and down, without biases."""
    # It never runs: neither words nor heads change the shape of what is merged
    config = OlmoConfig(
        vocab_size=8, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=1, num_attention_heads=1,
        pad_token_id=0, eos_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        return OlmoForCausalLM(config).eval()


def random_parents(model: PreTrainedModel, rank: int, seed: int) -> list[Adapter]:
    """Two adapters of every linear layer but the head, in the model's order, as training leaves them; alpha = rank.

    Both have one initial A (normal, / sqrt(in)) with a tenth of drift each, and a B of their own with falling columns.
    """
    generator = torch.Generator().manual_seed(seed)
    fall = 0.02 * DECAY ** torch.arange(rank)
    factors: list[dict[str, Factors]] = [{} for _ in NAMES]
    for name, layer in model.named_modules():
        if not isinstance(layer, nn.Linear) or layer is model.get_output_embeddings():
            continue
        start = torch.randn(rank, layer.in_features, generator=generator)
        for own in factors:
            a = start + 0.1 * torch.randn(start.shape, generator=generator)
            b = torch.randn(layer.out_features, rank, generator=generator) * fall
            own[PREFIX + name] = Factors(a / math.sqrt(layer.in_features), b)
    config = {"r": rank, "lora_alpha": rank}
    return [Adapter(Path(name), config, own, {}) for name, own in zip(NAMES, factors, strict=True)]


def with_peft(model: PreTrainedModel, parents: Sequence[Adapter]) -> PeftModel:
    """``model`` with the parents as adapters ``NAMES``, which share their numbers."""
    targets = [name.removeprefix(PREFIX) for name in parents[0].factors]
    configs = [
        LoraConfig(r=parent.rank, lora_alpha=parent.config["lora_alpha"], target_modules=targets, task_type="CAUSAL_LM")
        for parent in parents
    ]
    adapted = get_peft_model(model, configs[0], adapter_name=NAMES[0])
    assert isinstance(adapted, PeftModel)
    for name, config in zip(NAMES[1:], configs[1:], strict=True):
        adapted.add_adapter(name, config)
    for name, parent in zip(NAMES, parents, strict=True):
        for module, pair in parent.factors.items():
            layer: Any = adapted.get_submodule(module)
            layer.lora_A[name].weight.data, layer.lora_B[name].weight.data = pair.a, pair.b
    return adapted
