"""What an objective reads: a forward pass over the rows of one split of a micro-batch.

Everything here is plain tensors, so that a test hands an objective a ``Pass`` made by hand and no model (see
``unlearn_pl.testing``).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from unlearn_pl.data.records import Split
from unlearn_pl.data.step import StepTokens
from unlearn_pl.errors import InputError, check_choices
from unlearn_pl.models.device import sent
from unlearn_pl.models.head import IGNORED, Head, PositionFunction

# Positions at which a pass is scored: those that predict an answer token, or every token that is not padding.
Positions = Literal["answer", "attended"]


@dataclass(frozen=True)
class Needs:
    """What an objective needs of a split; nothing else is computed for it."""

    positions: Positions | None = "answer"
    """Where the logits are read (``nll``, ``kl``, ``logits``, ``each``); None where only ``layers`` are: the
    vocabulary head then does not run, nor does any layer above the last that is needed."""
    reference_nll: bool = False
    """Whether the answers' NLL under the base model is needed, of rows or of tokens."""
    reference_logits: bool = False
    """Whether the base model's logits are needed at those positions: for ``kl``, and for ``each``."""
    layers: tuple[int, ...] = ()
    """Decoder layers, counted from 0, whose outputs are needed at every attended token."""
    reference_layers: tuple[int, ...] = ()
    """The same under the base model."""
    token_weights: bool = False
    """Whether the term makes sense only where the data give weights to tokens."""
    padding: bool = False
    """Whether the KL is needed at a position of padding as well."""

    def __post_init__(self) -> None:
        check_choices(self)

    def __or__(self, other: "Needs") -> "Needs":
        """What serves both."""
        both = (self.positions, other.positions)
        return Needs(
            positions="attended" if "attended" in both else self.positions or other.positions,
            reference_nll=self.reference_nll or other.reference_nll,
            reference_logits=self.reference_logits or other.reference_logits,
            layers=tuple(sorted({*self.layers, *other.layers})),
            reference_layers=tuple(sorted({*self.reference_layers, *other.reference_layers})),
            token_weights=self.token_weights or other.token_weights,
            padding=self.padding or other.padding,
        )

    @property
    def reference_output(self) -> bool:
        """Whether anything of the base model is needed at these rows."""
        return self.reference_nll or self.reference_logits or bool(self.reference_layers)


@dataclass(frozen=True)
class ReferenceOutput:
    """The base model (adapter off, eval mode, no gradient) on the rows of a pass; None or empty what nobody needs."""

    token_nll: Tensor | None = None
    """[N] NLL of the target of each position, in nats; 0 where it is ``IGNORED``."""
    hidden: Tensor | None = None
    """[N, H] final hidden states."""
    layers: Mapping[int, Tensor] = field(default_factory=dict)
    """Output [M, H] of each decoder layer that is needed, at the attended tokens."""


@dataclass(frozen=True)
class Pass:
    """The policy's output over B rows of a split: at N positions that are scored, and at all M attended tokens."""

    hidden: Tensor
    """[N, H] final hidden states."""
    head: Head
    rows: Tensor
    """[N] the row of each position, 0 to ``batch_size`` - 1."""
    targets: Tensor
    """[N] the token that follows each position if it belongs to the answer, else ``IGNORED``."""
    batch_size: int
    max_length: int
    """Tokens to which the released ZJUKLAB code pads every row."""
    reference: ReferenceOutput = ReferenceOutput()
    token_weights: Tensor | None = None
    """[N] the weight that the data give to each target; 1 where they say nothing. None if no objective needs it."""
    layers: Mapping[int, Tensor] = field(default_factory=dict)
    """Output [M, H] of each decoder layer that an objective needs, at every attended token."""
    layer_rows: Tensor | None = None
    """[M] the row of each attended token."""
    layer_targets: Tensor | None = None
    """[M] the token that follows each if it belongs to the answer, else ``IGNORED``."""
    predicts_answer: Tensor | None = None
    """[N] bool: ``is_answer`` on the CPU, where it is known beforehand; otherwise it is read off the targets."""
    padding_kl: Tensor | None = None
    """KL(base || policy) at a position of padding: a scalar, or None."""
    step: StepTokens | None = None
    """Tokens of a micro-batch on average over the optimizer step; None outside of training."""
    wider: "Pass | None" = None
    """The pass of which this one is the answer's positions."""

    @cached_property
    def is_answer(self) -> Tensor:
        """[N] bool: the position predicts an answer token."""
        return self.targets != IGNORED

    @cached_property
    def logits(self) -> Tensor:
        """[N, V] logits of all positions at once: N x V numbers and their gradients. ``each`` takes less."""
        return self.head.logits(self.hidden)

    @cached_property
    def nll(self) -> Tensor:
        """[B] negative log-likelihood of each row's answer, in nats, summed over its tokens."""
        return self.per_row(self.token_nll)

    @cached_property
    def tokens(self) -> Tensor:
        """[B] answer tokens of each row."""
        return self.per_row(self.is_answer.float())

    @property
    def answer_divisor(self) -> Tensor | float:
        """What makes a sum over answer tokens its share in their mean over the whole optimizer step, on all processes;
        outside of training the number of the micro-batch's own tokens."""
        # a plain number, as a float64 tensor would make the loss float64 and its gradient another one by rounding
        return self.is_answer.sum() if self.step is None else self.step.answer

    @property
    def attended_divisor(self) -> float:
        """The same for a sum over all attended tokens."""
        return len(self.targets) if self.step is None else self.step.attended

    @property
    def token_nll(self) -> Tensor:
        """[N] negative log-likelihood of the target of each position, in nats; 0 where it is ``IGNORED``."""
        return self._scores[0]

    @property
    def kl(self) -> Tensor:
        """[N] KL(base || policy) at each position, in nats."""
        assert self.reference.hidden is not None, "the objective's `needs` has no reference_logits"
        return self._scores[1]

    @cached_property
    def reference_nll(self) -> Tensor:
        """[B] the base model's negative log-likelihood of each row's answer, in nats."""
        return self.per_row(self.reference_token_nll)

    @property
    def reference_token_nll(self) -> Tensor:
        """[N] the same of each position's target."""
        assert self.reference.token_nll is not None, "the objective's `needs` has no reference_nll"
        return self.reference.token_nll

    def each(self, function: PositionFunction, *beside: Tensor) -> Tensor:
        """[N] any function of each position's logits, in chunks: without the logits of all positions in memory.

        ``function(logits [n, V], targets [n], reference_logits, *beside) -> [n]``; ``reference_logits`` is [n, V], or
        None without ``Needs.reference_logits``; of each of ``beside`` [N, ...] it gets the same n places. The i-th
        number may depend on the i-th position alone.
        """
        return self.head.each(function, self.hidden, self.targets, self.reference.hidden, *beside)

    def per_row(self, values: Tensor) -> Tensor:
        """[B] sums of ``values`` [N] over the positions of each row."""
        return values.new_zeros(self.batch_size).index_add(0, self.rows, values)

    @property
    def padded_size(self) -> int:
        """Positions of the rows as the released ZJUKLAB code pads them. Raises InputError if they have more."""
        size = self.batch_size * self.max_length
        if len(self.hidden) > size:
            raise InputError(f"rows of a micro-batch are longer than {self.max_length} tokens", "max_length")
        return size

    @cached_property
    def answers(self) -> "Pass":
        """The same at the positions that predict answer tokens alone; what both score is computed once."""
        at, reference = self._answer_places, self.reference
        token_nll = None if reference.token_nll is None else reference.token_nll[at]
        hidden = None if reference.hidden is None else reference.hidden[at]
        return replace(
            self,
            hidden=self.hidden[at],
            rows=self.rows[at],
            targets=self.targets[at],
            reference=replace(reference, token_nll=token_nll, hidden=hidden),
            token_weights=None if self.token_weights is None else self.token_weights[at],
            predicts_answer=torch.ones(len(at), dtype=torch.bool),
            wider=self,
        )

    @cached_property
    def _answer_places(self) -> Tensor:
        """[A] of the N positions those that predict an answer token. Not a mask: a GPU that is to index by one has to
        say first how many places it has."""
        mask = self.is_answer if self.predicts_answer is None else self.predicts_answer
        return sent(mask.nonzero()[:, 0], self.targets.device)

    @cached_property
    def _scores(self) -> tuple[Tensor, Tensor]:
        # together: the NLL and the KL of a position come from the same logits
        if self.wider is not None:
            nll, kl = self.wider._scores
            return nll[self.wider._answer_places], kl[self.wider._answer_places]
        return self.head.scores(self.hidden, self.targets, self.reference.hidden, self.predicts_answer)


Passes = Mapping[Split, Pass]
