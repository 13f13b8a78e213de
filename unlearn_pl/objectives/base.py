"""Objective: one term of the training loss, and the reductions its terms share.

A new loss is one frozen dataclass below ``Objective``, in a file of this folder or of one's own: the command line finds
it by its name here, and by its import path elsewhere.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from unlearn_pl.data.records import Split
from unlearn_pl.objectives.passes import Needs, Passes

Reduction = Literal["sequence_sum", "sequence_mean", "batch_mean"]


class Objective(ABC):
    """One term of the loss: ``weight * term(passes)``, added up over the slots.

    Abstract and not a dataclass: jsonargparse then takes subclasses by name and refuses a misspelt slot.
    """

    weight: float

    @property
    @abstractmethod
    def needs(self) -> Mapping[Split, Needs]:
        """The splits this term reads, and what it needs of each; nothing else is computed for it."""

    @abstractmethod
    def __call__(self, passes: Passes) -> Tensor:
        """The unweighted term of a micro-batch: a scalar in nats."""


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
