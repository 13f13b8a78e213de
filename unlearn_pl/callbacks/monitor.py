"""Scores that are measured while a model trains, where Lightning's own callbacks look for what they monitor."""

import math
from collections.abc import Iterator, Mapping

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from unlearn_pl.errors import InputError

PREFIX = "evaluation/"


def monitors(trainer: Trainer) -> Iterator[tuple[Callback, str]]:
    """The callbacks that monitor a score of an evaluation, with its name, without the prefix."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        monitor = getattr(callback, "monitor", None)
        if isinstance(monitor, str) and monitor.startswith(PREFIX):
            yield callback, monitor.removeprefix(PREFIX)


def show_scores(trainer: Trainer, scores: Mapping[str, float | None]) -> None:
    """Put scores where callbacks and schedulers find them. One that says nothing (a broken model) is NaN there: worse
    than every other for ModelCheckpoint, an end for EarlyStopping."""
    shown = {name: math.nan if value is None else value for name, value in scores.items()}
    trainer.callback_metrics.update(
        {PREFIX + name: torch.tensor(value, dtype=torch.float64) for name, value in shown.items()}
    )


def hide_scores(trainer: Trainer) -> None:
    """Take them away, so that nobody takes those of one epoch for those of the next."""
    for name in [name for name in trainer.callback_metrics if name.startswith(PREFIX)]:
        del trainer.callback_metrics[name]


def check_moments(trainer: Trainer, every_n_epochs: int | None, every_n_steps: int | None) -> None:
    """Raise InputError if a ModelCheckpoint would look for a score where none is measured: what it keeps would not be
    what was scored. EarlyStopping counts the epochs in which there was an evaluation."""
    for callback, name in monitors(trainer):
        if isinstance(callback, EarlyStopping):
            callback.strict = False  # an epoch without an evaluation is no error
        elif isinstance(callback, ModelCheckpoint):
            steps, epochs = callback._every_n_train_steps, callback._every_n_epochs
            for what, own, other in (("steps", steps, every_n_steps), ("epochs", epochs, every_n_epochs)):
                if own and (other is None or own % other):
                    raise InputError(
                        f"it monitors {PREFIX}{name} after every {own} {what}, EvaluateDuringFit measures "
                        f"{_moments(every_n_epochs, every_n_steps)}; let it look where something is measured",
                        f"ModelCheckpoint.every_n_{'train_steps' if what == 'steps' else 'epochs'}",
                    )
            if callback._train_time_interval is not None:
                raise InputError(
                    f"not with a monitor of {PREFIX}{name}, which is measured by steps or epochs",
                    "ModelCheckpoint.train_time_interval",
                )


def _moments(every_n_epochs: int | None, every_n_steps: int | None) -> str:
    moments = [
        f"every {n} {what}" for n, what in ((every_n_epochs, "epochs"), (every_n_steps, "steps")) if n is not None
    ]
    return " and ".join(moments) or "only at the end"


def check_names(trainer: Trainer, scores: Mapping[str, float | None]) -> None:
    """Raise InputError if something monitors a score that is none, or that was not measured."""
    for callback, name in monitors(trainer):
        place = f"{type(callback).__name__}.monitor"
        if name not in scores:
            known = ", ".join(PREFIX + one for one in scores)
            raise InputError(f"must be one of {known}, got {PREFIX}{name}", place)
        if scores[name] is None:
            raise InputError(
                f"{PREFIX}{name} is not measured: EvaluateDuringFit has not the data for it, or the model is broken",
                place,
            )
