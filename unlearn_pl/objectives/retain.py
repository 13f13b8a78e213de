"""Terms that keep the rest: they read the retain rows of a micro-batch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from unlearn_pl.data.records import Split
from unlearn_pl.errors import InputError
from unlearn_pl.objectives.base import MeanReduction, Objective, mean_nll
from unlearn_pl.objectives.passes import Needs, Pass, Passes, Positions


@dataclass(frozen=True)
class RetainNLL(Objective):
    """Cross entropy on the retain answers: gradient descent on the retain set (GDR in the ZJUKLAB paper)."""

    weight: float = 1.0
    """Factor of this term in the loss."""
    reduction: MeanReduction = "batch_mean"
    """What NLL means: `sequence_sum`, `sequence_mean`, `batch_mean`, the token mean over the micro-batch, which is what
    Hugging Face models return as their loss, or `step_mean`, that over the optimizer step, on all processes."""
    alike: ClassVar[str] = "step_mean"

    @property
    def needs(self) -> Mapping[Split, Needs]:
        return {"retain": Needs()}

    def __call__(self, passes: Passes) -> Tensor:
        return mean_nll(passes["retain"], self.reduction)


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
    reduction: Literal["sequence_mean", "batch_mean", "step_mean"] = "batch_mean"
    """What a mean over `answer` or `attended` is over: `sequence_mean`, a row's tokens and then the rows; `batch_mean`,
    the tokens of the micro-batch; `step_mean`, those of the optimizer step, on all processes."""
    alike: ClassVar[str] = "step_mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.positions in ("padded", "released") and self.reduction != "batch_mean":
            raise InputError(
                f"not with positions {self.positions}, which divides by rows x max_length, got {self.reduction}",
                "reduction",
            )

    @property
    def layout_free(self) -> str:
        return super().layout_free if self.positions in ("answer", "attended") else ""

    @property
    def needs(self) -> Mapping[Split, Needs]:
        positions: Positions = "answer" if self.positions == "answer" else "attended"
        return {"retain": Needs(positions, reference_logits=True, padding=self.positions == "released")}

    def __call__(self, passes: Passes) -> Tensor:
        rows = passes["retain"]
        if self.positions in ("answer", "attended"):
            return self._mean(rows)
        total = rows.kl.sum()
        if self.positions == "released":
            assert rows.padding_kl is not None
            total = total + (rows.padded_size - len(rows.kl)) * rows.padding_kl
        return total / rows.padded_size

    def _mean(self, rows: Pass) -> Tensor:
        if self.positions == "answer":
            rows = rows.answers
        if self.reduction == "batch_mean":
            return rows.kl.mean()
        if self.reduction == "step_mean":
            divisor = rows.answer_divisor if self.positions == "answer" else rows.attended_divisor
            return rows.kl.sum() / divisor
        return (rows.per_row(rows.kl) / rows.per_row(torch.ones_like(rows.kl))).mean()
