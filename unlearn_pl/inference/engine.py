"""Rows of token ids through a language model: many at once where that is exact, else each as the model itself does."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from unlearn_pl.inference.batch_size import (
    CPU_MEMORY,
    BatchSize,
    device_memory,
    keeps_a_cache,
    row_bytes,
    rows_that_fit,
    weight_bytes,
)
from unlearn_pl.inference.batches import Work
from unlearn_pl.inference.forward import ROUND_MANY, Forward
from unlearn_pl.inference.padding import right_padded
from unlearn_pl.inference.token_scores import TIE, TokenScores, token_scores, token_scores_of_logits
from unlearn_pl.inference.trial import tried
from unlearn_pl.models.rope import switch_length

# A trial sees a few short rows; longer ones are this much noisier at most.
MORE_NOISE = 8


class Engine(Forward):
    """A causal language model and what a trial (see ``tried``) found it to be exact in: what requests run on.

    Raises InputError if it cannot generate at all.
    """

    def __init__(self, model: nn.Module, work: Work | None = None):
        """``work`` is told how far a request is, and keeps its finished batches."""
        super().__init__(model)
        self.work = replace(work or Work(), model=model)
        self.trial = tried(model)
        # Longer rows change the angles of all positions, which then depend on the company
        self.switch = switch_length(model)

    @property
    def tie_units(self) -> float:
        """Units of rounding within which two tokens might swap (see ``is_tie``)."""
        return max(TIE, MORE_NOISE * self.trial.noise)

    @property
    def tokens_per_forward(self) -> int:
        """Tokens that are best read in one forward. On a CPU more of them are no faster by the token: their tensors no
        longer come from memory that is at hand, and every page of new memory is a fault."""
        return 512 if self.device.type == "cpu" else 16384

    def rows_together(self, asked: BatchSize, on_cpu: int, reach: int | None = None) -> int:
        """Rows of a batch, where so many were ``asked`` for: ``auto`` is on a GPU what its memory holds of rows that
        are continued and ``reach`` so many tokens, and on a CPU as many as ``CPU_MEMORY`` holds of them, if these are
        more than ``on_cpu``; as many as ``tokens_per_forward`` takes, on a CPU ``on_cpu``, of rows that are only read.
        Processes that share the rows must have the same batches, so the smallest GPU counts.
        """
        if asked != "auto":
            return asked
        memory = device_memory(self.device)
        if not (self.trial.continues and keeps_a_cache(self)):
            return on_cpu
        if reach is None:
            return on_cpu if memory is None else self.tokens_per_forward
        if memory is None:
            return max(on_cpu, rows_that_fit(CPU_MEMORY, 0, row_bytes(self, reach)))
        return self.work.least(rows_that_fit(memory, weight_bytes(self.model), row_bytes(self, reach)))

    def is_steady(self, length: int) -> bool:
        """Whether a row of so many tokens is read the same as a whole and token by token."""
        return self.switch is None or length <= self.switch

    def generates_fast(self, length: int) -> bool:
        """Whether greedy text of rows that reach ``length`` tokens may come from our own cache."""
        return self.trial.continues and self.is_steady(length)

    def rows_states(self, rows: Sequence[Sequence[int]], start: int = 0, cache: Any = None) -> Tensor:
        """``Forward.rows_states``, each row by itself where the trial failed or a row is too long to share angles."""
        room = 0 if self.switch is None else ROUND_MANY
        if cache is None and not (self.trial.reads and self.is_steady(max(map(len, rows)) + room)):
            return pad_sequence([self.states(right_padded([row], self.device))[0] for row in rows], batch_first=True)
        return super().rows_states(rows, start, cache)

    def token_scores(self, states: Tensor, targets: Tensor, moments: bool = False, margin: bool = False) -> TokenScores:
        """What the model says of the tokens ``targets`` [N] after ``states`` [N, ...]; see ``token_scores``."""
        if self.head is None:
            return token_scores_of_logits(states, targets, moments, margin)
        return token_scores(states, self.head, targets, moments=moments, margin=margin)

    @property
    def scores_together(self) -> bool:
        """Whether rows are scored all at once, so that a GPU is waited for once. On a CPU that is no faster, and each
        row's numbers are its own to the last bit; states that are logits would all be copied."""
        return self.device.type != "cpu" and self.head is not None

    def scores_of_rows(
        self, states: Sequence[Tensor], targets: Sequence[Sequence[int]], moments: bool = False, margin: bool = False
    ) -> list[TokenScores]:
        """``token_scores`` of each row: its states [T, ...] and its T targets."""
        if not self.scores_together:
            wanted = [torch.tensor(list(row), device=self.device) for row in targets]
            return [self.token_scores(own, row, moments, margin) for own, row in zip(states, wanted, strict=True)]
        whole = torch.tensor([token for row in targets for token in row], device=self.device)
        return self.token_scores(torch.cat(list(states)), whole, moments, margin).split([len(row) for row in targets])
