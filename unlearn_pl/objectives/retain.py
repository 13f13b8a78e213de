"""Terms that keep the rest: they read the retain rows of a micro-batch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from unlearn_pl.objectives.base import Objective, Reduction, reduce_nll
from unlearn_pl.objectives.passes import Ask, Passes, Split


@dataclass(frozen=True)
class RetainNLL(Objective):
    """Cross entropy on the retain answers: gradient descent on the retain set (GDR in the ZJUKLAB paper)."""

    weight: float = 1.0
    """Factor of this term in the loss."""
    reduction: Reduction = "batch_mean"
    """What NLL means: `sequence_sum`, `sequence_mean`, or `batch_mean`, the token mean over the micro-batch, which
    is what Hugging Face models return as their loss."""

    @property
    def asks(self) -> Mapping[Split, Ask]:
        return {"retain": Ask()}

    def __call__(self, passes: Passes) -> Tensor:
        answers = passes["retain"]
        return reduce_nll(answers.nll, answers.tokens, self.reduction).mean()


@dataclass(frozen=True)
class RetainKL(Objective):
    """Forward KL from the base model on the retain rows, KL(ref || policy) (KLR in ZJUKLAB's paper); 0 at the base."""

    weight: float = 1.0
    """Factor of this term in the loss."""
    positions: Literal["answer", "attended", "padded"] = "answer"
    """Where it is taken: `answer`, the mean over the positions that predict answer tokens; `attended`, the mean over
    all tokens of the rows; `padded`, the sum over all tokens divided by rows x max_length, the divisor of the
    released ZJUKLAB code, which averages over its padding (padding itself is never computed here)."""

    @property
    def asks(self) -> Mapping[Split, Ask]:
        return {"retain": Ask("answer" if self.positions == "answer" else "attended", kl=True)}

    def __call__(self, passes: Passes) -> Tensor:
        rows = passes["retain"]
        if self.positions == "answer":
            return rows.kl[rows.is_answer].mean()
        if self.positions == "attended":
            return rows.kl.mean()
        return rows.kl.sum() / (rows.batch_size * rows.max_length)
