"""A function of the logits at all tokens of a row: maximised entropy (arXiv 2410.08109)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from unlearn_pl.objectives.base import Objective
from unlearn_pl.objectives.passes import Needs, Passes


@dataclass(frozen=True)
class MaxEntropy(Objective):
    """KL(uniform || policy), the mean over all tokens of the forget rows."""

    weight: float = 1.0
    """Factor of this term in the loss."""

    @property
    def needs(self) -> Mapping[str, Needs]:
        return {"forget": Needs("attended")}

    def __call__(self, passes: Passes) -> Tensor:
        return (
            passes["forget"]
            .each(lambda logits, *_: -math.log(logits.shape[1]) - logits.log_softmax(-1).mean(-1))
            .mean()
        )
