"""SaveRunConfig: the configuration of a run, beside what it made."""

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerFn

from unlearn_pl.callbacks.adapter import is_dry
from unlearn_pl.files import write_text
from unlearn_pl.training.metrics_file import MetricsFile, unlogged

# Options of loggers and checkpoints that say where they write.
PLACES = ("save_dir", "dirpath")
# The key of a checkpoint under which it is said what was logged before it.
LOGGED = "unlearn_pl_logged"
# Stands for the run folder until the text is made: jsonargparse would rewrite an interpolation.
MARK = "RUN-FOLDER"


class SaveRunConfig(SaveConfigCallback):
    """Writes the resolved `config.yaml` into the run folder, hands it to every logger, and opens the metrics file:
    all when the first step is about to be made, so that a command that is refused leaves an earlier run as it was. A
    fit that goes on from a checkpoint keeps the rows that were logged before it, and logs what was about to be."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{**kwargs, "save_to_log_dir": False})
        self._logged: dict[str, Any] = {}  # by the checkpoint that this fit goes on from

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Too early: the model may still be refused."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._begin(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(trainer, pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(trainer, pl_module)

    def _begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        verb = str(trainer.state.fn.value)  # type: ignore[union-attr]
        if not trainer.is_global_zero or is_dry(trainer):
            return
        logged = self._logged if verb == "fit" else {}
        rows = list(logged.get("rows", []))
        for file in metrics_files(trainer):
            file.begin(verb, rows.pop(0) if rows else 0)
        if late := dict(logged.get("unlogged") or {}):
            step = int(late.pop("step"))
            for logger in trainer.loggers:
                logger.log_metrics(late, step)
        self.save_config(trainer, pl_module, verb)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.is_global_zero:
            rows = [file.written() for file in metrics_files(trainer)]
            checkpoint[LOGGED] = {"rows": rows, "unlogged": unlogged(trainer)}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._logged = checkpoint.get(LOGGED, {})

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        config = self.config.clone()
        follow_run_folder(config["trainer"], str(config["trainer"]["default_root_dir"]))
        text = self.parser.dump(config, skip_none=False, skip_link_targets=False, skip_validation=True)
        text = text.replace(MARK, "${trainer.default_root_dir}")
        name = "config.yaml" if stage == "fit" else f"config_{stage}.yaml"
        write_text(Path(trainer.default_root_dir) / name, text)
        if stage == "fit":
            for logger in trainer.loggers:
                logger.log_hyperparams(self.config.as_dict())


def metrics_files(trainer: Trainer) -> list[MetricsFile]:
    """Those of the trainer's loggers, in order."""
    return [logger for logger in trainer.loggers if isinstance(logger, MetricsFile)]


def follow_run_folder(options: Any, run_folder: str) -> None:
    """Write the places of loggers and checkpoints that are within the run folder as relative to it, in place: the
    interpolation that they came from is resolved by now, and the file is to work for another run folder."""
    items = options if isinstance(options, list) else [value for _, value in list(vars(options).items())]
    for key, value in [] if isinstance(options, list) else list(vars(options).items()):
        if key in PLACES and isinstance(value, str) and (value == run_folder or value.startswith(f"{run_folder}/")):
            options[key] = MARK + value.removeprefix(run_folder)
    for item in items:
        if isinstance(item, list) or hasattr(item, "__dict__"):
            follow_run_folder(item, run_folder)
