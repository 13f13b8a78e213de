"""Weights of tokens from the data: ascent on what the rows mark."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from unlearn_pl.objectives.base import Objective
from unlearn_pl.objectives.passes import Needs, Passes


@dataclass(frozen=True)
class WeightedTokens(Objective):
    """Minus the NLL of the forget answers' tokens, each times its weight, over the sum of weights."""

    weight: float = 1.0
    """Factor of this term in the loss."""

    @property
    def needs(self) -> Mapping[str, Needs]:
        return {"forget": Needs(token_weights=True)}

    def __call__(self, passes: Passes) -> Tensor:
        answers = passes["forget"]
        assert answers.token_weights is not None
        return -(answers.token_weights * answers.token_nll).sum() / answers.token_weights.sum()
