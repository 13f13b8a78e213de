"""Terms that keep the rest: they read the retain rows of a micro-batch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from unlearn_pl.data.records import Split
from unlearn_pl.objectives.base import Objective, Reduction, reduce_nll
from unlearn_pl.objectives.passes import Needs, Passes, Positions


@dataclass(frozen=True)
class RetainNLL(Objective):
    """Cross entropy on the retain answers: gradient descent on the retain set (GDR in the ZJUKLAB paper)."""

    weight: float = 1.0
    """Factor of this term in the loss."""
    reduction: Reduction = "batch_mean"
    """What NLL means: `sequence_sum`, `sequence_mean`, or `batch_mean`, the token mean over the micro-batch, which
    is what Hugging Face models return as their loss."""

    @property
    def needs(self) -> Mapping[Split, Needs]:
        return {"retain": Needs()}

    def __call__(self, passes: Passes) -> Tensor:
        answers = passes["retain"]
        return reduce_nll(answers.nll, answers.tokens, self.reduction).mean()


@dataclass(frozen=True)
class RetainKL(Objective):
    """Forward KL from the base model on the retain rows, KL(ref || policy) (KLR in ZJUKLAB's paper); 0 at the base."""

    weight: float = 1.0
    """Factor of this term in the loss."""
    positions: Literal["answer", "attended", "padded", "released"] = "answer"
    """Where it is taken: `answer`, the mean over the positions that predict answer tokens; `attended`, the mean over
    all tokens of the rows; `padded`, the sum over all tokens divided by rows x max_length; `released`, the same with
    the KL at the padding that fills every row up to max_length, as the released ZJUKLAB code has it (under
    transformers 5, where padding attends to nothing)."""

    @property
    def needs(self) -> Mapping[Split, Needs]:
        positions: Positions = "answer" if self.positions == "answer" else "attended"
        return {"retain": Needs(positions, reference_logits=True, padding=self.positions == "released")}

    def __call__(self, passes: Passes) -> Tensor:
        rows = passes["retain"]
        if self.positions == "answer":
            return rows.kl[rows.is_answer].mean()
        if self.positions == "attended":
            return rows.kl.mean()
        total = rows.kl.sum()
        if self.positions == "released":
            assert rows.padding_kl is not None
            total = total + (rows.padded_size - len(rows.kl)) * rows.padding_kl
        return total / rows.padded_size
