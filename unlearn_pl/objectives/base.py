"""Objective: one term of the training loss, and the reductions its terms share.

A new loss is one frozen dataclass below ``Objective`` in ``forget.py`` or ``retain.py`` (or in your own package): the
command line finds it by its name, or by its import path if it lives elsewhere.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from unlearn_pl.objectives.passes import Pass, Passes, PassName, Positions

Reduction = Literal["sequence_sum", "sequence_mean", "batch_mean"]


class Objective(ABC):
    """One term of the loss: ``weight * term(passes)``, added up over the slots.

    Abstract and not a dataclass: jsonargparse then takes subclasses by name and refuses a misspelt slot.
    """

    weight: float

    @property
    @abstractmethod
    def asks(self) -> Mapping[PassName, Positions]:
        """The passes this term reads, and at which positions; nothing else is computed for it."""

    @abstractmethod
    def __call__(self, passes: Passes) -> Tensor:
        """The unweighted term: a scalar in nats."""


def reduce_nll(answers: Pass, reduction: Reduction) -> Tensor:
    """Answer NLL of a micro-batch of B rows, in nats.

    ``sequence_sum`` gives [B], summed over a row's tokens; ``sequence_mean`` [B], the mean over a row's tokens;
    ``batch_mean`` [1], the mean over all answer tokens of the micro-batch. The last depends on which rows share a
    micro-batch, so batch 2 is not the mean of two batches of 1; it is what Hugging Face models return as their loss.
    """
    if reduction == "sequence_sum":
        return answers.nll
    if reduction == "sequence_mean":
        return answers.nll / answers.tokens
    return answers.nll.sum()[None] / answers.tokens.sum()
