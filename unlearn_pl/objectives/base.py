"""Objective: one term of the training loss, and the reductions its terms share.

A new loss is one frozen dataclass below ``Objective``, in a file of this folder or of one's own: the command line finds
it by its name here, and by its import path elsewhere.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from numbers import Real
from typing import ClassVar, Literal

from torch import Tensor

from unlearn_pl.data.records import Split
from unlearn_pl.errors import InputError, check_choices
from unlearn_pl.objectives.passes import Needs, Pass, Passes

Reduction = Literal["sequence_sum", "sequence_mean", "batch_mean"]
# A mean over tokens is a sum of shares, so it can be taken over rows that are never in one place.
MeanReduction = Literal["sequence_sum", "sequence_mean", "batch_mean", "step_mean"]


class Objective(ABC):
    """One term of the loss: ``weight * term(passes)``, added up over the slots.

    Abstract and not a dataclass: jsonargparse then takes subclasses by name and refuses a misspelt slot.
    """

    weight: float
    alike: ClassVar[str] = "sequence_mean"
    """The reduction nearest to `batch_mean` that does not depend on which rows share a micro-batch."""

    def __post_init__(self) -> None:
        """Dataclasses call it. One that has its own calls this one too."""
        check_choices(self)

    @property
    @abstractmethod
    def needs(self) -> Mapping[Split, Needs]:
        """The splits this term reads, and what it needs of each; nothing else is computed for it."""

    @abstractmethod
    def __call__(self, passes: Passes) -> Tensor:
        """The unweighted term of a micro-batch: a scalar in nats."""

    @property
    def over_step(self) -> bool:
        """Whether the term is a mean over the whole optimizer step, so that ``Pass.step`` is needed."""
        return getattr(self, "reduction", None) == "step_mean"

    @property
    def layout_free(self) -> str:
        """What to set, such as `reduction=step_mean`, so that the term does not depend on which rows share a
        micro-batch, hence not on processes and accumulation; empty if it does not."""
        return f"reduction={self.alike}" if getattr(self, "reduction", None) == "batch_mean" else ""


def check_terms(objectives: Mapping[str, Objective]) -> None:
    """Raise InputError unless every slot holds a term with a weight that reads some split, and no two things would be
    logged under one name."""
    if not isinstance(objectives, Mapping):
        raise InputError(f"must be terms by slot, {{'ga': NPO()}}, got {type(objectives).__name__}", "objectives")
    if not objectives:
        raise InputError("must name at least one term, got none", "objectives")
    logged = ["loss"]
    for slot, term in objectives.items():
        if not isinstance(term, Objective):
            got = f"the class {term.__name__}" if isinstance(term, type) else type(term).__name__
            raise InputError(f"must be an Objective such as NPO(weight=1.0), got {got}", f"objectives.{slot}")
        if not isinstance(getattr(term, "weight", None), Real):
            raise InputError(f"{type(term).__name__} needs a number as weight", f"objectives.{slot}")
        if not isinstance(term.needs, Mapping) or not term.needs:
            raise InputError(
                f"the needs of {type(term).__name__} must be a mapping with a split, such as {{'forget': Needs()}}, "
                f"got {term.needs!r:.60}",
                f"objectives.{slot}",
            )
        for name in (slot, f"{slot}_weighted"):
            if name in logged:
                raise InputError(
                    f"{name} is logged by another term or as the sum; name the slot otherwise", "objectives"
                )
            logged.append(name)


def reduce_nll(nll: Tensor, tokens: Tensor, reduction: Reduction) -> Tensor:
    """Answer NLL of a micro-batch of B rows, in nats, from each row's sum [B] and number of tokens [B].

    ``sequence_sum`` gives [B], summed over a row's tokens; ``sequence_mean`` [B], the mean over a row's tokens;
    ``batch_mean`` [1], the mean over all answer tokens of the micro-batch. The last depends on which rows share a
    micro-batch, so batch 2 is not the mean of two batches of 1; it is what Hugging Face models return as their loss.
    """
    if reduction == "sequence_sum":
        return nll
    if reduction == "sequence_mean":
        return nll / tokens
    return nll.sum()[None] / tokens.sum()


def mean_nll(answers: Pass, reduction: MeanReduction) -> Tensor:
    """Answer NLL of a micro-batch, a scalar in nats: the mean of ``reduce_nll``; or, for ``step_mean``, the
    micro-batch's share in the mean over all answer tokens of the optimizer step, on all processes."""
    if reduction == "step_mean":
        return answers.nll.sum() / answers.answer_divisor
    return reduce_nll(answers.nll, answers.tokens, reduction).mean()
