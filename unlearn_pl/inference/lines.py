"""Rows that are continued together, token by token, in one key-value cache."""

from collections.abc import Sequence

import torch
from torch import Tensor

from unlearn_pl.inference.forward import Forward
from unlearn_pl.inference.kv_cache import growing_cache
from unlearn_pl.inference.padding import left_padded

# Rows that have ended are taken out of the cache, which is then copied, once they are this share of it.
ENDED_SHARE = 1 / 8


class Lines:
    """The lines of a key-value cache: one for each row that still runs, and for a while those of rows that ended."""

    def __init__(self, forward: Forward, rows: Sequence[Sequence[int]], cached: bool = True):
        """Without ``cached``, each token reads its whole row again; only for rows of one length."""
        self.forward = forward
        self.cache = growing_cache(forward.model) if cached else None
        self.ids, self.mask, self.positions = left_padded(rows, forward.device)
        if self.cache is not None and self.positions is None:
            # Left to themselves, some models count the positions anew in each forward
            self.positions = torch.arange(self.ids.shape[1], device=forward.device).expand(len(rows), -1)
        self.rows = list(range(len(rows)))
        self.ended: set[int] = set()

    def logits(self) -> Tensor:
        """[B, V] after the last token of each line."""
        return self.forward.logits(self.forward.states(self.ids, self.mask, self.positions, self.cache)[:, -1])

    def feed(self, tokens: Tensor) -> bool:
        """Append a token [B] to each line; False if no row runs any more."""
        running = [line for line, row in enumerate(self.rows) if row not in self.ended]
        if not running:
            return False
        self.ids = tokens[:, None] if self.cache is not None else torch.cat([self.ids, tokens[:, None]], dim=1)
        if self.mask is not None:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        if self.positions is not None:
            self.positions = self.positions[:, -1:] + 1
        if len(running) <= (1 - ENDED_SHARE) * len(self.rows):
            self._keep(running)
        return True

    def _keep(self, lines: list[int]) -> None:
        index = torch.tensor(lines, device=self.ids.device)
        if self.cache is not None:
            self.cache.batch_select_indices(index)
        self.rows = [self.rows[line] for line in lines]
        self.ids = self.ids[index]
        if self.mask is not None:
            self.mask = self.mask[index]
        if self.positions is not None:
            self.positions = self.positions[index]
