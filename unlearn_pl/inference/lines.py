"""Rows that are continued together, token by token, in one key-value cache."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from unlearn_pl.inference.forward import Forward
from unlearn_pl.inference.kv_cache import GrowingLayer, growing_cache
from unlearn_pl.inference.padding import left_padded

# Rows that have ended are taken out of the cache, which is then copied, once they are this share of it.
ENDED_SHARE = 1 / 8

States = list[tuple[Tensor, Tensor]]
"""Keys and values [heads, t, width] of one row in each layer."""


@dataclass(frozen=True)
class ReadRow:
    """A row of which all tokens but the last are in a cache."""

    row: int
    last: int
    """Its last token."""
    states: States
    """Of all tokens before it."""


class Lines:
    """The lines of a key-value cache: one for each row that still runs, and for a while those of rows that ended."""

    def __init__(self, forward: Forward, rows: Sequence[Sequence[int]] = (), cached: bool = True):
        """Without ``cached``, each token reads its whole row again; only for rows of one length."""
        self.forward = forward
        self.cache = growing_cache(forward.model) if cached else None
        self.mask: Tensor | None = None
        self.positions: Tensor | None = None
        self.ids = torch.empty(0, 1, dtype=torch.long, device=forward.device)
        if rows:
            self.ids, self.mask, self.positions = left_padded(rows, forward.device)
        if self.cache is not None and self.positions is None:
            # Left to themselves, some models count the positions anew in each forward
            self.positions = torch.arange(self.ids.shape[1], device=forward.device).expand(len(rows), -1)
        self.rows = list(range(len(rows)))
        self.ended: set[int] = set()

    @property
    def running(self) -> list[int]:
        """The lines whose rows have not ended."""
        return [line for line, row in enumerate(self.rows) if row not in self.ended]

    def logits(self) -> Tensor:
        """[B, V] after the last token of each line."""
        return self.forward.logits(self.forward.states(self.ids, self.mask, self.positions, self.cache)[:, -1])

    def feed(self, tokens: Tensor) -> None:
        """Append a token [B] to each line."""
        self.ids = tokens[:, None] if self.cache is not None else torch.cat([self.ids, tokens[:, None]], dim=1)
        if self.mask is not None:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        if self.positions is not None:
            self.positions = self.positions[:, -1:] + 1

    def drop_ended(self) -> None:
        """Take out the rows that ended, once they are many."""
        running = self.running
        if 0 < len(running) <= (1 - ENDED_SHARE) * len(self.rows):
            self._keep(running)

    def join(self, new: Sequence[ReadRow]) -> None:
        """Take up rows that were read; those that ended leave. Only between ``feed`` and ``logits``, in a cache of
        ``GrowingLayer``."""
        assert self.cache is not None
        assert self.positions is not None
        running = self.running
        counts, tokens = self.positions[:, -1].tolist(), self.ids[:, -1].tolist()
        lengths = [counts[line] for line in running]  # of what is in the cache
        index = torch.tensor(running, dtype=torch.long, device=self.ids.device)
        for number, layer in enumerate(self.cache.layers):
            assert isinstance(layer, GrowingLayer)
            layer.hold(index, max(lengths, default=0), [row.states[number] for row in new])
        last = [tokens[line] for line in running] + [row.last for row in new]
        lengths += [row.states[0][0].shape[1] for row in new]
        self.rows = [self.rows[line] for line in running] + [row.row for row in new]
        self.ids = torch.tensor(last, device=self.ids.device)[:, None]
        self.positions = torch.tensor(lengths, device=self.ids.device)[:, None]
        self.mask = None
        if min(lengths) < (end := max(lengths)):
            places = torch.arange(end + 1, device=self.ids.device)
            self.mask = (places >= end - self.positions).long()

    def _keep(self, lines: Sequence[int]) -> None:
        index = torch.tensor(lines, device=self.ids.device)
        if self.cache is not None:
            self.cache.batch_select_indices(index)
        self.rows = [self.rows[line] for line in lines]
        self.ids = self.ids[index]
        if self.mask is not None:
            self.mask = self.mask[index]
        if self.positions is not None:
            self.positions = self.positions[index]


def row_states(cache: Cache, line: int, tokens: slice) -> States:
    """Keys and values of some tokens of one row in a cache; views."""
    return [(layer.keys[line][:, tokens], layer.values[line][:, tokens]) for layer in cache.layers]
