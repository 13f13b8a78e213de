"""Key-value caches for evaluation: one that grows without copying itself at each token, one shared by many rows."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from unlearn_pl.models.body import causal_model
from unlearn_pl.models.rope import switch_length

# Tokens that a growing layer makes room for at once.
ROOM = 64


class GrowingLayer(DynamicLayer):
    """Keys and values [B, heads, T, width] in buffers with room for more tokens.

    The layer of transformers copies everything at each token, which soon takes as long as the model itself.
    """

    keys: Tensor
    values: Tensor
    buffers: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append [B, heads, t, width]; gives all keys and values so far, views of the buffers."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if self.buffers is None or end > self.buffers[0].shape[-2]:
            self.buffers = (self._enlarged(key_states, self.keys, end), self._enlarged(value_states, self.values, end))
        keys, values = self.buffers
        keys[:, :, start:end], values[:, :, start:end] = key_states, value_states
        self.keys, self.values = keys[:, :, :end], values[:, :, :end]
        return self.keys, self.values

    @staticmethod
    def _enlarged(new: Tensor, old: Tensor, end: int) -> Tensor:
        buffer = new.new_empty(*new.shape[:2], end + ROOM, new.shape[-1])
        if old.numel():
            buffer[:, :, : old.shape[-2]] = old
        return buffer

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only these rows."""
        super().batch_select_indices(indices)
        self.buffers = None  # what is left lies in a tensor of its own, without room

    def hold(self, lines: Tensor, kept: int, rows: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Hold the last ``kept`` columns of ``lines`` [L], and below them these rows, keys and values [heads, t, width]
        of each: all end in the same column, and finite numbers stand before the shorter ones."""
        end = max(kept, *(keys.shape[1] for keys, _ in rows))
        old = (self.keys, self.values) if kept else (None, None)
        keys, values = (
            self._ending_at(end, before, lines, kept, states)
            for before, states in zip(old, zip(*rows, strict=True), strict=True)
        )
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        self.buffers = (keys, values)
        self.keys, self.values = keys[:, :, :end], values[:, :, :end]

    @staticmethod
    def _ending_at(end: int, old: Tensor | None, lines: Tensor, kept: int, rows: Sequence[Tensor]) -> Tensor:
        heads, _, width = rows[0].shape
        # what is masked must still not be NaN
        buffer = rows[0].new_zeros(len(lines) + len(rows), heads, end + ROOM, width)
        if old is not None:
            buffer[: len(lines), :, end - kept : end] = old[:, :, old.shape[2] - kept :][lines]
        for line, states in enumerate(rows, start=len(lines)):
            buffer[line, :, end - states.shape[1] : end] = states
        return buffer


class PrefixLayer(DynamicLayer):
    """Keys and values of a prefix, [1, heads, P, width], before those of any number of rows that begin with it.

    It keeps nothing of the rows: each forward continues the prefix anew.
    """

    def __init__(self, keys: Tensor, values: Tensor):
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """[B, heads, P + t, width] for the states [B, heads, t, width] of B rows."""
        rows = len(key_states)
        keys, values = (states.expand(rows, -1, -1, -1) for states in (self.keys, self.values))
        return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)


def attends_fully(model: nn.Module) -> bool:
    """Whether every layer of ``model`` keeps all keys and values, so that a cache may be grown or shared row by row.

    Not so with sliding windows, recurrent layers, or angles that depend on how long the text is.
    """
    return attends_only(model, DynamicLayer) and switch_length(model) is None


def attends_only(model: nn.Module, *layers: type[DynamicLayer]) -> bool:
    """Whether a cache of keys and values, in ``layers`` of just these classes, is all that ``model`` keeps of a text.

    A recurrent state takes up the padding too, and no row can be taken out of it.
    """
    causal = causal_model(model)
    kinds = {type(layer) for layer in DynamicCache(config=causal.config).layers}
    return takes(causal, "past_key_values") and bool(kinds) and kinds <= set(layers)


def takes(causal: nn.Module, option: str) -> bool:
    """Whether the model's forward has this option."""
    return option in inspect.signature(causal.forward).parameters


def generates_together(model: nn.Module) -> bool:
    """Whether rows of different lengths can be continued in one batch, each as if it were alone."""
    return attends_only(model, DynamicLayer, DynamicSlidingWindowLayer)


def growing_cache(model: nn.Module) -> Cache | None:
    """An empty cache for token-by-token generation; None for a model that takes none by the usual name."""
    config = causal_model(model).config
    if not takes(causal_model(model), "past_key_values"):
        return None
    if not attends_fully(model):
        return DynamicCache(config=config)
    return Cache(layers=[GrowingLayer() for _ in DynamicCache(config=config).layers])


def prefix_cache(filled: Cache) -> Cache:
    """A cache that holds the one row of ``filled`` as the prefix of any rows."""
    return Cache(layers=[PrefixLayer(layer.keys, layer.values) for layer in filled.layers])
