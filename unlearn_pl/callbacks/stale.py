"""SetStaleAside: no checkpoint of an earlier run passes for the last one of this run."""

import os
import re
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn

PREFIX = "earlier-"


class SetStaleAside(Callback):
    """Renames each `last*.ckpt` of an earlier run to `earlier-last*.ckpt` when a fit begins that does not go on from a
    checkpoint: with it `--ckpt_path=.../last.ckpt` would restore the earlier run. The command line always adds it."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        goes_on = trainer.fit_loop.total_batch_idx >= 0
        if trainer.fast_dev_run or goes_on or not trainer.is_global_zero:  # type: ignore[attr-defined]
            return
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is not None:
                for path in sorted(Path(callback.dirpath).glob("last*.ckpt")):
                    if re.fullmatch(r"last(-v\d+)?", path.stem):
                        os.replace(path, path.with_name(PREFIX + path.name))
                        rank_zero_warn(f"{path} is of an earlier run in this folder; it is now {PREFIX}{path.name}")
