"""The NLL of single tokens under the base model: token-wise NPO (arXiv 2502.19301)."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from unlearn_pl.objectives.base import Objective
from unlearn_pl.objectives.passes import Needs, Passes


@dataclass(frozen=True)
class TokenNPO(Objective):
    """``-mean(w * NLL)``, ``w = 2 p^beta / (p^beta + p_ref^beta)`` without gradient."""

    weight: float = 1.0
    """Factor of this term in the loss."""
    beta: float = 4.0
    """How fast a token's weight falls as it becomes less likely than under the base model."""

    @property
    def needs(self) -> Mapping[str, Needs]:
        return {"forget": Needs(reference_nll=True)}

    def __call__(self, passes: Passes) -> Tensor:
        answers = passes["forget"]
        own, base = ((-self.beta * nll).exp() for nll in (answers.token_nll, answers.reference_token_nll))
        return -((2 * own / (own + base)).detach() * answers.token_nll).mean()
