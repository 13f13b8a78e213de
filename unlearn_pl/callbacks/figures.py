"""LogFigures: the figures of a fit where W&B or TensorBoard show its curves."""

import io
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from unlearn_pl.callbacks.adapter import is_dry
from unlearn_pl.callbacks.angles import AngleAnalysis
from unlearn_pl.callbacks.evaluate import EvaluateDuringFit
from unlearn_pl.callbacks.merge import MergeAfterFit
from unlearn_pl.report.draw import image
from unlearn_pl.report.figures.gallery import figures_of
from unlearn_pl.report.reading import read_run
from unlearn_pl.report.run import Fit, Run
from unlearn_pl.training.metrics_file import MetricsFile

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
"""[height, width, 3]"""


def to_wandb(logger: WandbLogger, key: str, pixels: Pixels, step: int) -> None:
    logger.log_image(key, [pixels], step=step)


def to_tensorboard(logger: TensorBoardLogger, key: str, pixels: Pixels, step: int) -> None:
    logger.experiment.add_image(key, pixels, step, dataformats="HWC")


LOGGERS: dict[type[Logger], Callable[[Any, str, Pixels, int], None]] = {
    WandbLogger: to_wandb,
    TensorBoardLogger: to_tensorboard,
}


class LogFigures(Callback):
    """When the fit ends, sends to W&B and TensorBoard the figures that its report would have, as `figures/<name>`, and
    the numbers of its adapter (`adapter/norm`, `adapter/stable_rank`), its angles and its balanced merge. Texts of rows
    stay out of them. The command line always adds it, after all other callbacks."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        senders = [(logger, send) for logger in trainer.loggers for kind, send in LOGGERS.items()
                   if isinstance(logger, kind)]  # fmt: skip
        if not senders or not trainer.is_global_zero or is_dry(trainer):
            return
        run, step = of_this_fit(read_run(trainer.default_root_dir), trainer), trainer.global_step
        numbers = numbers_of(run)
        pictures = {f"figures/{key_of(figure.key, run.name)}": pixels_of(image(figure)) for figure in figures_of([run])}
        for logger, send in senders:
            logger.log_metrics(numbers, step)
            for key, pixels in pictures.items():
                send(logger, key, pixels, step)


def key_of(key: str, name: str) -> str:
    """The key of a figure without the run's name at its end: the same in every run, so that runs can be compared."""
    return key.removesuffix("_" + re.sub(r"[^A-Za-z0-9_.-]+", "_", name).strip("._"))


def of_this_fit(run: Run, trainer: Trainer) -> Run:
    """The run without what an earlier one may have left in the folder."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]

    def has(kind: type[Callback]) -> bool:
        return any(isinstance(callback, kind) for callback in callbacks)

    def own(fit: Fit) -> Fit:
        return replace(
            fit,
            losses=fit.losses if any(isinstance(logger, MetricsFile) for logger in trainer.loggers) else {},
            evaluations=fit.evaluations if has(EvaluateDuringFit) else (),
            angles=fit.angles if has(AngleAnalysis) else (),
        )

    merged = has(MergeAfterFit)
    return Run(
        name=run.name,
        folder=run.folder,
        fits={name: own(fit) for name, fit in run.fits.items()},
        merges=run.merges if merged else {},
        searches=run.searches if merged else {},
    )


def numbers_of(run: Run) -> dict[str, float]:
    """What the files of a fit say of its end in single numbers; none of what says nothing."""
    found: dict[str, Any] = {}
    for fit in run.fits.values():
        if fit.spectrum is not None:
            found |= {f"adapter/{name}": value for name, value in fit.spectrum["overall"].items()}
        for report in fit.angles:
            pivot, angles = report["steps"][1], report["delta"]["overall"]["angles"]
            found |= {f"angles/{pivot}/{name}": value for name, value in angles.items()}
    for search in run.searches.values():
        found |= balance_numbers(search.found)
    return {name: value for name, value in found.items() if value is not None and math.isfinite(value)}


def balance_numbers(found: Mapping[str, Any]) -> dict[str, Any]:
    """The chosen point of a search, and what it scores."""
    names = ("mix", "scale", "task_aggregate", "mmlu", "calibration_auc", "holdout_auc", "aggregate_holdout")
    return {f"balance/{name}": found["chosen"].get(name) for name in names}


def pixels_of(content: bytes) -> Pixels:
    """A PNG picture on white."""
    from PIL import Image

    picture = Image.open(io.BytesIO(content)).convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB"))
