"""The output of a decoder layer: representation misdirection (arXiv 2403.03218), its two terms."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from unlearn_pl.objectives.base import Objective
from unlearn_pl.objectives.passes import Needs, Passes


@dataclass(frozen=True)
class Steering(Objective):
    """Squared distance of a layer's output at every token of the forget rows to one random direction."""

    weight: float = 1.0
    """Factor of this term in the loss."""
    layer: int = 7
    """Which decoder layer, counted from 0."""
    length: float = 6.5
    """Of the direction."""

    @property
    def needs(self) -> Mapping[str, Needs]:
        return {"forget": Needs(None, layers=(self.layer,))}

    def __call__(self, passes: Passes) -> Tensor:
        states = passes["forget"].layers[self.layer]
        direction = torch.rand(states.shape[1], generator=torch.Generator().manual_seed(self.layer)).to(states)
        return (states - self.length * direction / direction.norm()).square().mean()


@dataclass(frozen=True)
class KeepStates(Objective):
    """Squared distance of a layer's output at the retain rows' answers to that of the base model."""

    weight: float = 1.0
    """Factor of this term in the loss."""
    layer: int = 7
    """Which decoder layer, counted from 0."""

    @property
    def needs(self) -> Mapping[str, Needs]:
        return {"retain": Needs(None, layers=(self.layer,), reference_layers=(self.layer,))}

    def __call__(self, passes: Passes) -> Tensor:
        rows = passes["retain"]
        apart = rows.layers[self.layer] - rows.reference.layers[self.layer]
        return apart[rows.layer_targets != -100].square().mean()
