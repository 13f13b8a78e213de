"""KillItself: a callback by which a fit of the command line dies like a process that is killed, at a fixed place."""

import os
import signal
from typing import Any

from lightning.pytorch import Callback, Trainer


class KillItself(Callback):
    """SIGKILL right after the given batch of the given epoch (both from 0), after a checkpoint of it was written.

    Args:
        epoch: Epoch.
        batch: Batch of the epoch.
        checkpoint: File of the checkpoint.
    """

    def __init__(self, epoch: int, batch: int, checkpoint: str):
        self.epoch, self.batch, self.checkpoint = epoch, batch, checkpoint

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (trainer.current_epoch, batch_idx) == (self.epoch, self.batch):
            trainer.save_checkpoint(self.checkpoint)
            os.kill(os.getpid(), signal.SIGKILL)
