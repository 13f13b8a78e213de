"""EvaluateDuringFit: the SemEval scores of the model while it trains."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from unlearn_pl.callbacks.adapter import is_dry
from unlearn_pl.callbacks.monitor import PREFIX, check_moments, check_names, hide_scores, show_scores
from unlearn_pl.errors import InputError
from unlearn_pl.evaluation.choice import Choice
from unlearn_pl.evaluation.inputs import EvaluationData, read_inputs
from unlearn_pl.evaluation.membership import Membership
from unlearn_pl.evaluation.options import EvaluationOptions
from unlearn_pl.evaluation.run import evaluate
from unlearn_pl.files import write_json
from unlearn_pl.inference.generation import Generation
from unlearn_pl.metrics.headline import HEADLINE
from unlearn_pl.report.draw import draw
from unlearn_pl.report.figures.terms import terms
from unlearn_pl.training.metrics_file import MetricsFile


class EvaluateDuringFit(Callback):
    """Scores the model on the rows it is trained on, every so many epochs or optimizer steps and when training ends.

    Logs `evaluation/<score>` and the twelve `evaluation/<split>/<task>/<kind>`, writes `evaluations.json` (one entry
    a time, text stays out of it) and `evaluations.png` (Figure 2 of the ZJUKLAB paper) into the run folder. Under
    several processes each does a part of the work. None of the scores depends on the weights of the objectives, so
    `evaluation/aggregate` can steer a sweep over them.

    ModelCheckpoint, EarlyStopping and schedulers can monitor them (`monitor: evaluation/aggregate`, `mode: max`): they
    are in the trainer's `callback_metrics` from an evaluation until the next epoch begins, before any of these looks,
    the last epoch end included. A ModelCheckpoint must look where something is measured.

    Args:
        every_n_epochs: Evaluate after every so many epochs; null for not by epochs.
        every_n_steps: Evaluate after every so many optimizer steps; null for not by steps.
        membership: Documents of the membership attack.
        choice: Multiple-choice questions.
        generation: How answers are generated.
        documents_per_task: Use only the first so many documents of each task; null for those of the training data.
    """

    def __init__(
        self,
        every_n_epochs: int | None = 1,
        every_n_steps: int | None = None,
        membership: Membership | None = None,
        choice: Choice | None = None,
        generation: Generation | None = None,
        documents_per_task: int | None = None,
    ):
        for name, value in (("every_n_epochs", every_n_epochs), ("every_n_steps", every_n_steps)):
            if value is not None and value < 1:
                raise InputError(f"must be at least 1, got {value}", f"EvaluateDuringFit.{name}")
        self.every_n_epochs, self.every_n_steps = every_n_epochs, every_n_steps
        self.options = EvaluationOptions(
            membership=membership or Membership(), choice=choice or Choice(), generation=generation or Generation()
        )
        self.documents_per_task = documents_per_task
        self.history: list[dict[str, Any]] = []
        self.shown = False  # whether the last scores are those of this epoch

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history, "shown": self.shown}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history, self.shown = state_dict["history"], state_dict.get("shown", False)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        source = EvaluationData(data.forget, data.retain, data.documents_per_task, data.columns)
        if self.documents_per_task is not None:
            source = replace(source, documents_per_task=self.documents_per_task)
        check_moments(trainer, self.every_n_epochs, self.every_n_steps)
        self.inputs = read_inputs(source, self.options)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = trainer.global_step
        if step == 0:
            self.history = []
            self._evaluate(trainer, pl_module)
        else:
            self._go_on(trainer, step)
        if self.history:
            check_names(trainer, scores_of(self.history[0]))

    def _go_on(self, trainer: Trainer, step: int) -> None:
        # what was measured after the checkpoint was taken is in the file alone
        path = Path(trainer.default_root_dir) / "evaluations.json"
        kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
        logged = [entry["step"] for entry in self.history]
        merged = {entry["step"]: entry for entry in (*kept, *self.history) if entry["step"] <= step}
        self.history = [merged[at] for at in sorted(merged)]
        if self.history and self.history[-1]["step"] == step:
            # the metrics file keeps the rows that are older than the checkpoint, other loggers begin anew
            self._log(trainer, self.history[-1], anew=step not in logged)
            self.shown = True
        if self.history and self.shown:
            show_scores(trainer, scores_of(self.history[-1]))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        hide_scores(trainer)
        self.shown = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        by_steps = self.every_n_steps and trainer.global_step % self.every_n_steps == 0
        # the end of an epoch is here already: the validation comes before `on_train_epoch_end`, and looks for scores
        if by_steps or (trainer.is_last_batch and self._ends_with_scores(trainer)):
            self._evaluate(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._ends_with_scores(trainer):  # an epoch that was cut short
            self._evaluate(trainer, pl_module)

    def _ends_with_scores(self, trainer: Trainer) -> bool:
        """Whether the current epoch ends with an evaluation."""
        epochs = trainer.current_epoch + 1
        return epochs == trainer.max_epochs or bool(self.every_n_epochs and epochs % self.every_n_epochs == 0)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._evaluate(trainer, pl_module)

    def _evaluate(self, trainer: Trainer, pl_module: Any) -> None:
        step = trainer.global_step
        if is_dry(trainer) or (self.history and self.history[-1]["step"] == step):
            return
        results = evaluate(pl_module.model, pl_module.tokenizer, self.inputs, self.options)
        self.history.append({"step": step, **results.headline, "terms": dict(results.terms)})
        self._log(trainer, self.history[-1])
        show_scores(trainer, scores_of(self.history[-1]))
        self.shown = True
        if trainer.is_global_zero:
            target = Path(trainer.default_root_dir) / "evaluations.json"
            write_json(target, self.history)
            run = target.parent.name
            draw(terms(self.history, identity={"run": run}), target.with_suffix(".png"))
            shown = ", ".join(f"{key} {value:.3f}" for key, value in results.headline.items() if value is not None)
            rank_zero_info(f"evaluation at step {step}: {shown}")

    def _log(self, trainer: Trainer, entry: dict[str, Any], anew: bool = True) -> None:
        numbers = {PREFIX + name: value for name, value in scores_of(entry).items() if value is not None}
        for logger in trainer.loggers:
            if anew or not isinstance(logger, MetricsFile):
                logger.log_metrics(numbers, entry["step"])


def scores_of(entry: Mapping[str, Any]) -> dict[str, float | None]:
    """The scores of an entry of the history by the name that they are logged and monitored by."""
    return {key: entry[key] for key in HEADLINE} | entry["terms"]
