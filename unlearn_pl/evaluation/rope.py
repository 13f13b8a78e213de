"""Rotary angles that are scaled for long texts: how far a model reaches, and where its angles begin to change."""

from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from unlearn_pl.models.forward import text_config

# Kinds of scaling whose angles depend on how long the text is.
CHANGING = ("dynamic", "longrope")
# Kinds that reach so many times further than the length they name.
STRETCHED = ("linear", "dynamic", "yarn")


def rope_kinds(config: PreTrainedConfig) -> list[dict[str, Any]]:
    """The scaling of the rotary angles, one for each type of layer that has its own."""
    rope = getattr(config, "rope_parameters", None) or {}
    if "rope_type" in rope:
        return [rope]
    return [one for one in rope.values() if isinstance(one, dict)]


def switch_length(model: nn.Module) -> int | None:
    """The longest text whose angles are those of any shorter one; None if they never depend on the length."""
    config = text_config(model)
    found = [_original(config, one) for one in rope_kinds(config) if one.get("rope_type") in CHANGING]
    return min(found, default=None)


def scaled_limit(config: PreTrainedConfig) -> int | None:
    """The longest text that a configuration is made for, its scaling included; None if it names none."""
    limit: int | None = getattr(config, "max_position_embeddings", None)
    if limit is None:
        return None
    reached = [_reach(config, one, limit) for one in rope_kinds(config)]
    return max(limit, min(reached, default=limit))


def _reach(config: PreTrainedConfig, rope: dict[str, Any], limit: int) -> int:
    if rope.get("rope_type") not in STRETCHED:
        return limit
    return int((rope.get("factor") or 1) * _original(config, rope))


def _original(config: PreTrainedConfig, rope: dict[str, Any]) -> int:
    named = rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
    return int(named or config.max_position_embeddings)
