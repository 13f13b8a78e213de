"""The measurements of a device, behind one object that a process of its own holds."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks.gpu.answers import AnswerLoad, attack_figures, generation_figures
from benchmarks.gpu.card import card_figures
from benchmarks.gpu.memorising import MemoriseLoad, memorise_figures
from benchmarks.gpu.shapes import SHAPES, SMALL, Shape
from benchmarks.gpu.steps import StepLoad, step_figures
from benchmarks.measure import settle
from benchmarks.worker import Kind

DTYPE = torch.bfloat16


@dataclass(frozen=True)
class Scale:
    """How large everything is."""

    shapes: dict[str, Shape]
    steps: StepLoad
    answers: AnswerLoad
    memorising: MemoriseLoad


FULL = Scale(SHAPES, StepLoad(), AnswerLoad(), MemoriseLoad())
TRIAL = Scale(
    SMALL,
    StepLoad(pairs=4, micro_batch=2, steps=1, longest=64, tokens_per_forward=256, rank=4),
    AnswerLoad(
        rows=6, prompt=(5, 20), new_tokens=16, batches=(2, 6), alone=2, documents=4, document=(20, 40), rounds=1
    ),
    MemoriseLoad(rows=8, batch=4, longest=40, rounds=1),
)
"""For a CPU, in seconds."""


class Bench:
    """What can be measured on ``device``, by the names of the methods; on a CPU at the scale of a trial."""

    def __init__(self, device: str):
        self.device = torch.device(device)
        self.scale = FULL if self.device.type == "cuda" else TRIAL
        # an H100 would plan cuDNN's attention for each new shape, some 30 ms each, and that would be measured
        torch.backends.cuda.enable_cudnn_sdp(False)

    def card(self) -> dict[str, Any]:
        """See ``card_figures``."""
        self._clear()
        return card_figures(self.device, DTYPE)

    def step(self, shape: str, way: Kind, checkpointing: bool, alone: bool = False) -> dict[str, Any]:
        """See ``step_figures``; ``alone``: every pair is a micro-batch of its own."""
        self._clear()
        load = replace(self.scale.steps, micro_batch=1) if alone else self.scale.steps
        return step_figures(self.scale.shapes[shape], way, checkpointing, load, self.device, DTYPE)

    def generation(self, shape: str, ending: bool) -> dict[str, Any]:
        """See ``generation_figures``."""
        self._clear()
        return generation_figures(self.scale.shapes[shape], self.scale.answers, self.device, DTYPE, ending)

    def attacks(self, shape: str) -> dict[str, Any]:
        """See ``attack_figures``."""
        self._clear()
        return attack_figures(self.scale.shapes[shape], self.scale.answers, self.device, DTYPE)

    def memorising(self, shape: str) -> dict[str, Any]:
        """See ``memorise_figures``."""
        self._clear()
        return memorise_figures(self.scale.shapes[shape], self.scale.memorising, self.device)

    def _clear(self) -> None:
        """Nothing of the part before is left."""
        settle()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
