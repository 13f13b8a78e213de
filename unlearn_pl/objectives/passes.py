"""What an objective reads: a forward pass over the rows of one split of a micro-batch, at the positions asked for.

Everything here is plain tensors, so that a test hands an objective a ``Pass`` made by hand and no model.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from torch import Tensor

from unlearn_pl.data.records import Split
from unlearn_pl.errors import InputError
from unlearn_pl.models.head import IGNORED, Head

# Positions at which a pass is scored: those that predict an answer token, or every token that is not padding.
Positions = Literal["answer", "attended"]


@dataclass(frozen=True)
class Ask:
    """What an objective needs of a split beside the policy's NLL; nothing else is computed for it."""

    positions: Positions = "answer"
    """Where the vocabulary head runs."""
    reference_nll: bool = False
    """Whether the answers' NLL under the base model is needed."""
    kl: bool = False
    """Whether the KL from the base model is needed, at those positions."""
    padding: bool = False
    """Whether the KL is needed at a position of padding as well."""

    def __or__(self, other: "Ask") -> "Ask":
        """What serves both."""
        wide = "attended" in (self.positions, other.positions)
        flags = (self.reference_nll or other.reference_nll, self.kl or other.kl, self.padding or other.padding)
        return Ask("attended" if wide else "answer", *flags)


@dataclass(frozen=True)
class Pass:
    """The policy's output over B rows of a split, at N positions, and what the base model says of the same rows.

    ``hidden`` is [N, H], ``rows`` [N] the row of each position (0 to ``batch_size`` - 1), ``targets`` [N] the token
    that follows if it belongs to the answer, else ``IGNORED``. ``max_length`` is the length, in tokens, to which the
    released ZJUKLAB code pads every row. ``reference_nll`` [B] and ``reference_hidden`` [N, H] are those of the base
    model (adapter off, eval mode, no gradient), or None where no objective asked for them. ``padding_kl`` is
    KL(base || policy) at a position of padding, or None.
    """

    hidden: Tensor
    head: Head
    rows: Tensor
    targets: Tensor
    batch_size: int
    max_length: int
    reference_nll: Tensor | None = None
    reference_hidden: Tensor | None = None
    padding_kl: Tensor | None = None

    @cached_property
    def is_answer(self) -> Tensor:
        """[N] bool: the position predicts an answer token."""
        return self.targets != IGNORED

    @cached_property
    def logits(self) -> Tensor:
        """[N, V] logits, for terms that need more than ``nll`` and ``kl``: N x V numbers and their gradients."""
        return self.head.logits(self.hidden)

    @cached_property
    def nll(self) -> Tensor:
        """[B] negative log-likelihood of each row's answer, in nats, summed over its tokens."""
        return self._per_row(self._scores[0])

    @cached_property
    def tokens(self) -> Tensor:
        """[B] answer tokens of each row."""
        return self._per_row(self.is_answer.float())

    @property
    def kl(self) -> Tensor:
        """[N] KL(base || policy) at each position, in nats."""
        assert self.reference_hidden is not None, "the objective's `asks` has no kl"
        return self._scores[1]

    @property
    def padded_size(self) -> int:
        """Positions of the rows as the released ZJUKLAB code pads them. Raises InputError if they have more."""
        size = self.batch_size * self.max_length
        if len(self.hidden) > size:
            raise InputError(f"--model.max_length: rows of a micro-batch are longer than {self.max_length} tokens")
        return size

    @cached_property
    def _scores(self) -> tuple[Tensor, Tensor]:
        # together: the NLL and the KL of a position come from the same logits
        return self.head.scores(self.hidden, self.targets, self.reference_hidden)

    def _per_row(self, values: Tensor) -> Tensor:
        return values.new_zeros(self.batch_size).index_add(0, self.rows, values)


Passes = Mapping[Split, Pass]
