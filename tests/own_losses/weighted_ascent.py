"""The NLL of single tokens: weighted gradient ascent (arXiv 2502.19301)."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from unlearn_pl.objectives.base import Objective
from unlearn_pl.objectives.passes import Needs, Passes


@dataclass(frozen=True)
class WeightedAscent(Objective):
    """``-mean(p^beta * NLL)`` over the answer tokens, p the token's probability, without gradient."""

    weight: float = 1.0
    """Factor of this term in the loss."""
    beta: float = 1.0
    """How fast a token's weight falls as it is forgotten."""

    @property
    def needs(self) -> Mapping[str, Needs]:
        return {"forget": Needs()}

    def __call__(self, passes: Passes) -> Tensor:
        nll = passes["forget"].token_nll
        return -((-self.beta * nll).exp().detach() * nll).mean()
