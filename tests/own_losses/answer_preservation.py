"""Another answer to a retain row's input: answer preservation (arXiv 2410.08109)."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from unlearn_pl.objectives.base import Objective
from unlearn_pl.objectives.passes import Needs, Passes


@dataclass(frozen=True)
class AnswerPreservation(Objective):
    """The answer preferred to the alternate one (a refusal) on the retain rows."""

    weight: float = 1.0
    """Factor of this term in the loss."""
    beta: float = 0.1
    """How fast the term saturates, per nat."""

    @property
    def needs(self) -> Mapping[str, Needs]:
        return {"retain": Needs(), "retain_alternate": Needs()}

    def __call__(self, passes: Passes) -> Tensor:
        apart = passes["retain_alternate"].nll - passes["retain"].nll
        return -F.logsigmoid(self.beta * apart).mean() / self.beta
