"""A function of the logits, in chunks, with those of the base model: UNDIAL (arXiv 2402.10052)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from unlearn_pl.objectives.base import Objective
from unlearn_pl.objectives.passes import Needs, Passes


@dataclass(frozen=True)
class Undial(Objective):
    """Cross entropy against the base model's distribution with ``strength`` taken from the answer token's logit."""

    weight: float = 1.0
    """Factor of this term in the loss."""
    strength: float = 10.0
    """By how much the answer token's logit is lowered."""

    @property
    def needs(self) -> Mapping[str, Needs]:
        return {"forget": Needs(reference_logits=True)}

    def __call__(self, passes: Passes) -> Tensor:
        return passes["forget"].each(self._cross_entropy).mean()

    def _cross_entropy(self, logits: Tensor, targets: Tensor, reference_logits: Tensor) -> Tensor:
        """[n] of n positions, from logits [n, V]."""
        lowered = reference_logits.clone()
        lowered[torch.arange(len(targets)), targets] -= self.strength
        return -(lowered.softmax(-1) * logits.log_softmax(-1)).sum(-1)
