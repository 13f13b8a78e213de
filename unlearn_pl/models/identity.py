"""Which model is this? Hashes that are equal only for models that compute the same.

Weights alone do not say what a model computes: the scaling of an adapter, rotary angles and the epsilon of a norm stand
in configurations, and what a text becomes stands in the tokenizer.
"""

import hashlib
import json
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from unlearn_pl.models.body import causal_model
from unlearn_pl.models.codes import scales
from unlearn_pl.models.sharding import whole

# Where a model lies and which version wrote it changes nothing that it computes.
PLACES = ("transformers_version", "base_model_name_or_path", "inference_mode", "peft_version")


def model_hash(model: nn.Module) -> str:
    """SHA-256 of all weights, the adapters' included, and of all settings: the model's configuration, how it generates,
    and the configuration of each active adapter."""
    digest = hashlib.sha256(json.dumps(settings_of(model), sort_keys=True, default=settled).encode())
    for name, weight in sorted(model.state_dict().items()):
        if not isinstance(weight, torch.Tensor):  # what a quantiser keeps beside its weights
            digest.update(f"{name} {weight!r}\n".encode())
            continue
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
        digest.update(bytes_of(weight))
    return digest.hexdigest()


def base_weights_hash(model: nn.Module) -> str:
    """SHA-256 of the base model's weights. What is trained is not of it: an adapter may hold embeddings and whole
    modules too."""
    digest = hashlib.sha256()
    for name, weight in causal_model(model).named_parameters():
        if "lora_" not in name and not weight.requires_grad:
            for part, value in {"": weight, **scales(weight)}.items():
                digest.update(f"{name.replace('.base_layer', '')}{part} {value.dtype} {tuple(value.shape)}".encode())
                digest.update(bytes_of(value))
    return digest.hexdigest()


def bytes_of(weight: Tensor) -> memoryview:
    """The values of a tensor of any type, as they lie in memory, where possible without a copy. One in shards is
    gathered, by all processes."""
    return whole(weight.detach()).cpu().contiguous().flatten().view(torch.uint8).numpy().data


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of what decides which ids a text becomes, and which text ids become."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = sorted(tokenizer.get_vocab().items()) if backend is None else backend.to_str()
    facts = [type(tokenizer).__name__ if backend is None else "", rules, tokenizer.special_tokens_map]
    facts += [tokenizer.clean_up_tokenization_spaces]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=settled).encode()).hexdigest()


def settings_of(model: nn.Module) -> dict[str, Any]:
    """Every setting that can change what a model computes, by where it stands."""
    causal = causal_model(model)
    generation = getattr(causal, "generation_config", None)
    found = {"config": causal.config.to_dict(), "generation": {} if generation is None else generation.to_dict()}
    adapters = getattr(model, "peft_config", {})
    active = getattr(model, "active_adapters", [])
    found["adapters"] = {name: adapters[name].to_dict() for name in adapters if name in active}
    return without_places(found)


def without_places(value: Any) -> Any:
    """A tree of settings without ``PLACES`` and without private names, which say where a model came from."""
    if isinstance(value, dict):
        kept = {str(key): entry for key, entry in value.items() if not str(key).startswith("_") and key not in PLACES}
        return {key: without_places(entry) for key, entry in kept.items()}
    return [without_places(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def settled(value: Any) -> Any:
    """What JSON has no form for: sets in order, anything else by name."""
    return sorted(map(str, value)) if isinstance(value, (set, frozenset)) else str(value)
