"""Rotary angles that are scaled for long texts: how far a model reaches, and where its angles begin to change."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from unlearn_pl.models.body import body_of, text_config

# Kinds of scaling whose angles depend on how long the text is.
CHANGING = ("dynamic", "longrope")
# Kinds that reach so many times further than the length they name.
STRETCHED = ("linear", "dynamic", "yarn")


def scalings(model: nn.Module) -> list[dict[str, Any]]:
    """The scaling of the rotary angles, one for each type of layer that has its own."""
    parameters = getattr(text_config(model), "rope_parameters", None) or {}
    settings = [parameters, *(value for value in parameters.values() if isinstance(value, dict))]
    return [one for one in settings if one.get("rope_type")]


def switch_length(model: nn.Module) -> int | None:
    """The longest text whose angles are those of any shorter one; None if they never depend on the length."""
    config = text_config(model)
    return min((_original(config, one) for one in scalings(model) if one["rope_type"] in CHANGING), default=None)


def remembers_length(model: nn.Module) -> bool:
    """Whether the model keeps the angles of the longest text so far, until a short one comes."""
    return any(one["rope_type"] == "dynamic" for one in scalings(model))


def forget_length(causal: PreTrainedModel) -> None:
    """Let a model that ``remembers_length`` begin anew, so that its answer does not depend on what it was asked before:
    transformers puts its angles back when a short text comes."""
    body_of(causal)(input_ids=torch.zeros(1, 1, dtype=torch.long, device=causal.device), use_cache=False)


def position_limit(model: nn.Module) -> int | None:
    """The longest text that the model was made for, its scaling included; None if its configuration names none."""
    config = text_config(model)
    limit: int | None = getattr(config, "max_position_embeddings", None)
    if limit is None:
        return None
    return max(limit, min((_reach(config, one, limit) for one in scalings(model)), default=limit))


def _reach(config: PreTrainedConfig, rope: dict[str, Any], limit: int) -> int:
    if rope["rope_type"] not in STRETCHED:
        return limit
    return int((rope.get("factor") or 1) * _original(config, rope))


def _original(config: PreTrainedConfig, rope: dict[str, Any]) -> int:
    named = rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
    return int(named or config.max_position_embeddings)
