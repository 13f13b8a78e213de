"""Whether the loss depends on how the rows of an optimizer step are laid out: over processes, accumulated batches and
micro-batches."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn

from unlearn_pl.data.datamodule import ForgetRetainData
from unlearn_pl.errors import InputError
from unlearn_pl.objectives.base import Objective


def check_layout_of_loss(objectives: Mapping[str, Objective], trainer: Trainer) -> None:
    """One warning for all terms that would be others if the same rows were laid out otherwise, where they are in more
    than one micro-batch. Raises InputError if a term is to be taken over a step whose rows are not known ahead."""
    data: Any = getattr(trainer, "datamodule", None)
    over_step = [slot for slot, objective in objectives.items() if objective.over_step]
    if over_step and not isinstance(data, ForgetRetainData):
        raise InputError("step_mean needs the rows of ForgetRetainData", f"objectives.{over_step[0]}.reduction")
    if over_step and trainer.overfit_batches:  # type: ignore[attr-defined]
        raise InputError(
            "step_mean is of the order of the data, which overfit_batches changes; leave one of them out",
            f"objectives.{over_step[0]}.reduction",
        )
    parts = {
        "processes": trainer.world_size,
        "accumulated batches": trainer.accumulate_grad_batches,
        "micro-batches": getattr(data, "micro_batches", 1),
    }
    free = {slot: objective.layout_free for slot, objective in objectives.items() if objective.layout_free}
    if free and max(parts.values()) > 1:
        shown = " x ".join(f"{count} {name}" for name, count in parts.items() if count > 1)
        exact = ", ".join(f"objectives.{slot}.{setting}" for slot, setting in free.items())
        rank_zero_warn(
            f"an optimizer step is the mean of {shown}, and {' and '.join(free)} depend on which rows share one; the "
            f"same in every layout: {exact}"
        )
