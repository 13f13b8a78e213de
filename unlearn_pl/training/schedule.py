"""The learning-rate schedule: linear warm-up, then linear decay to zero."""

from typing import Literal

from unlearn_pl.errors import InputError

Warmup = int | float | Literal["epoch"]


def warmup_steps(warmup: Warmup, total_steps: int, epochs: int) -> int:
    """Optimizer steps of warm-up: given in steps (int), as a share of training (float in [0, 1)), or one epoch.

    Raises InputError if the warm-up is negative or leaves no step to decay.
    """
    if warmup == "epoch":
        steps = total_steps // max(epochs, 1)
    elif isinstance(warmup, float):
        steps = round(warmup * total_steps) if 0 <= warmup < 1 else -1
    else:
        assert isinstance(warmup, int)
        steps = warmup
    if steps < 0:
        raise InputError(f"--model.warmup: must be steps (0, 1, ...), a share in [0, 1), or epoch, got {warmup}")
    return steps


def linear_schedule(step: int, warmup: int, total_steps: int) -> float:
    """Factor on the peak learning rate at optimizer step ``step`` (from 0): up to 1 over ``warmup`` steps, then down
    to 0 at ``total_steps``."""
    if step < warmup:
        return step / warmup
    return max(0.0, (total_steps - step) / max(1, total_steps - warmup))
