"""SpoilGradient: a callback by which a gradient of a fit is infinite in one process."""

import math
from typing import Any

from lightning.pytorch import Callback, Trainer


class SpoilGradient(Callback):
    """One entry of the gradient of the third optimizer step.

    Args:
        rank: The process.
    """

    def __init__(self, rank: int = 0):
        self.rank = rank

    def on_after_backward(self, trainer: Trainer, pl_module: Any) -> None:
        if (trainer.global_step, trainer.global_rank) == (2, self.rank):
            next(one for one in pl_module.parameters() if one.grad is not None).grad.view(-1)[0] = math.inf
