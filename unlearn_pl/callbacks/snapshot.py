"""WeightSnapshot: the adapter at given optimizer steps, for the study of directions in weight space."""

import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from unlearn_pl.callbacks.adapter import is_dry, training_facts
from unlearn_pl.errors import InputError
from unlearn_pl.files import new_folder
from unlearn_pl.models.lora import save_adapter


class WeightSnapshot(Callback):
    """Saves the adapter to `snapshots/step_N/` in the run folder, right after optimizer step N; step 0 is always saved.

    Steps count optimizer updates, not micro-batches, so they are the same under accumulation. A step that training
    never reaches is named in a warning at the end. A run that goes on from a checkpoint in another folder takes over
    what was saved in the old one.

    Args:
        steps: Optimizer steps, each at least 1. The ZJUKLAB paper looks at step 165.
    """

    def __init__(self, steps: list[int] | None = None):
        self.steps = [165] if steps is None else list(steps)
        if not self.steps or min(self.steps) < 1:
            raise InputError(f"must be optimizer steps of at least 1, got {self.steps}", "WeightSnapshot.steps")

        self._earlier: str | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"folder": self._folder}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._earlier = state_dict["folder"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._folder = str(Path(trainer.default_root_dir).absolute())

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._earlier in (None, self._folder) or not trainer.is_global_zero or is_dry(trainer):
            return
        for step in (0, *self.steps):
            old, new = Path(str(self._earlier)) / folder_name(step), Path(self._folder) / folder_name(step)
            if old.is_dir() and not new.exists():
                with new_folder(new) as folder:
                    shutil.copytree(old, folder, dirs_exist_ok=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == 0:
            self._save(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # within an accumulation window the step stays the same: only the batch that made it may write
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch
        if stepped and trainer.global_step in self.steps:
            self._save(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        missed = [step for step in self.steps if step > trainer.global_step]
        if missed and not is_dry(trainer):
            rank_zero_warn(
                f"WeightSnapshot: no snapshot of step {', '.join(map(str, missed))}: training ended at optimizer step "
                f"{trainer.global_step}"
            )

    def _save(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and not is_dry(trainer):
            folder = snapshot_folder(trainer, trainer.global_step)
            save_adapter(pl_module.model, folder, **training_facts(trainer, pl_module))


def snapshot_folder(trainer: Trainer, step: int) -> Path:
    """Where the snapshot of an optimizer step is."""
    return Path(trainer.default_root_dir) / folder_name(step)


def folder_name(step: int) -> str:
    """The same within the run folder."""
    return f"snapshots/step_{step}"
