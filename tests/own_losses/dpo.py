"""Another answer to a forget row's input: direct preference optimisation (arXiv 2305.18290) as TOFU has it."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from unlearn_pl.objectives.base import Objective
from unlearn_pl.objectives.passes import Needs, Passes


@dataclass(frozen=True)
class DPO(Objective):
    """The alternate answer preferred to the answer that is to be forgotten, each against the base model."""

    weight: float = 1.0
    """Factor of this term in the loss."""
    beta: float = 0.1
    """How fast the term saturates, per nat."""

    @property
    def needs(self) -> Mapping[str, Needs]:
        return dict.fromkeys(("forget", "alternate"), Needs(reference_nll=True))

    def __call__(self, passes: Passes) -> Tensor:
        forget, alternate = (passes[split].nll - passes[split].reference_nll for split in ("forget", "alternate"))
        return -(2 / self.beta) * F.logsigmoid(self.beta * (forget - alternate)).mean()
