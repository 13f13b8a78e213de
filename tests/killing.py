"""Callbacks by which a fit of the command line dies like a process that is killed, at a known moment."""

import io
import os
import signal
import threading
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from unlearn_pl.inference.engine import Engine


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


class KillAt(Callback):
    """SIGKILL at the ``count``-th time (from 1) that a moment comes to the process of a given rank.

    Args:
        moment: A hook of a callback, such as `on_train_epoch_end`; `writing`, in the middle of a checkpoint file;
            `written`, after it has its name; `evaluating`, a forward of an evaluation; `seconds`, that many after the
            first batch, wherever the process is then.
        count: Which of them; for `seconds`, how many.
        share: For `writing`, how much of the file is on the disk by then, in [0, 1].
        rank: The process; -1 for all.
    """

    def __init__(self, moment: str, count: float, share: float = 1.0, rank: int = 0):
        self.moment, self.left, self.share, self.rank = moment, count, share, rank
        if moment not in ("writing", "written", "evaluating", "seconds"):
            setattr(self, moment, self._come)

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        if self.rank not in (-1, trainer.global_rank):
            self.left = float("inf")
        files, save = trainer.strategy.checkpoint_io, torch.save

        def torn(value: Any, stream: Any) -> None:
            whole = io.BytesIO()
            save(value, whole)
            if self.left <= 1:
                stream.write(whole.getvalue()[: int(self.share * len(whole.getvalue()))])
                stream.flush()
            self._come()
            stream.write(whole.getvalue())

        def and_then(call: Any, come: Any) -> Any:
            return lambda *given, **options: (call(*given, **options), come())[0]

        if self.moment == "writing":
            torch.save = torn
        elif self.moment == "written":
            files.save_checkpoint = and_then(files.save_checkpoint, self._come)
        elif self.moment == "evaluating":
            Engine.states = and_then(Engine.states, self._come)

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self.moment == "seconds" and self.left < float("inf"):
            threading.Timer(self.left, os.kill, (os.getpid(), signal.SIGKILL)).start()
            self.left = float("inf")

    def _come(self, *_: Any) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
