"""The learning-rate schedule: linear warm-up, then linear decay to zero."""

import math
from typing import Any, Literal

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch.optim.lr_scheduler import LambdaLR

from unlearn_pl.errors import InputError

Warmup = int | float | Literal["epoch"]


def accumulation_scheduler(trainer: Trainer) -> GradientAccumulationScheduler | None:
    """Lightning's callback that changes the accumulation from epoch to epoch, if there is one."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next((one for one in callbacks if isinstance(one, GradientAccumulationScheduler)), None)


def accumulation_of(trainer: Trainer, epoch: int) -> int:
    """Batches of an optimizer step in an epoch."""
    scheduler = accumulation_scheduler(trainer)
    return trainer.accumulate_grad_batches if scheduler is None else scheduler.get_accumulate_grad_batches(epoch)


def planned_steps(trainer: Trainer) -> tuple[int, int]:
    """Optimizer steps of the first epoch, and of the whole training.

    Raises InputError if training has no end.
    """
    if trainer.train_dataloader is None:
        trainer.fit_loop.setup_data()  # as Lightning does where it estimates the steps
    batches = trainer.num_training_batches
    if math.isinf(batches):  # Lightning has not looked at the data
        limit = trainer.limit_train_batches
        raise InputError(f"must leave a batch to train on, got {limit}", "limit_train_batches")
    first = math.ceil(batches / accumulation_of(trainer, 0))
    epochs, most = trainer.max_epochs, trainer.max_steps
    if epochs is None or epochs == -1:
        if most == -1:
            raise InputError(
                "must be given, or max_steps: without an end there is no step at which the learning rate is down to 0, "
                f"got max_epochs {epochs} and max_steps {most}",
                "max_epochs",
            )
        return first, most
    total = sum(math.ceil(batches / accumulation_of(trainer, epoch)) for epoch in range(max(epochs, 1)))
    return first, total if most == -1 else min(total, most)


def warmup_steps(warmup: Warmup, total_steps: int, epoch_steps: int) -> int:
    """Optimizer steps of warm-up: given in steps (int), as a share of training (float in [0, 1)), or one epoch.

    Raises InputError if the warm-up is negative, or a share that leaves no step to decay.
    """
    if warmup == "epoch":
        steps = epoch_steps
    elif isinstance(warmup, float):
        steps = round(warmup * total_steps) if 0 <= warmup < 1 else -1
    else:
        assert isinstance(warmup, int)
        steps = warmup
    if steps < 0:
        raise InputError(f"must be steps (0, 1, ...), a share in [0, 1), or epoch, got {warmup}", "warmup")
    return steps


def linear_schedule(step: int, warmup: int, total_steps: int) -> float:
    """Factor on the peak learning rate at optimizer step ``step`` (from 0): up to 1 over ``warmup`` steps, then down
    to 0 at ``total_steps``."""
    if step < warmup:
        return step / warmup
    return max(0.0, (total_steps - step) / max(1, total_steps - warmup))


def set_first_rate(trainer: Trainer, schedule: LambdaLR) -> None:
    """Put the rate of step 0 into the optimizer, where LearningRateFinder leaves the peak that it has found."""
    if schedule in [config.scheduler for config in trainer.lr_scheduler_configs]:
        for group, base, factor in zip(
            schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True
        ):
            group["lr"] = base * factor(0)


def set_rate_and_decay(schedule: LambdaLR, rate: float, decay: float) -> None:
    """Put a rate (what the schedule's factors are of) and a weight decay into its optimizer, in place of those that a
    checkpoint brought with it; the place in the schedule stays."""
    groups: list[dict[str, Any]] = schedule.optimizer.param_groups
    schedule.base_lrs = [rate for _ in groups]
    for group, factor in zip(groups, schedule.lr_lambdas, strict=True):
        group["initial_lr"], group["weight_decay"] = rate, decay
        group["lr"] = rate * factor(schedule.last_epoch)
    schedule._last_lr = [group["lr"] for group in groups]
