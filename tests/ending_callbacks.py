"""Callbacks that a command in a process of its own is given by import path, to be stopped at a known moment."""

import os
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer


class SignalAt(Callback):
    """Sends a signal to this process, or to the one that started it, when a batch begins; only once if ``once`` names
    a file, which it then makes, and only in the process of ``rank`` if one is given."""

    def __init__(
        self, batch: int, signum: int = 15, parent: bool = False, once: str | None = None, rank: int | None = None
    ):
        self.batch, self.signum, self.parent, self.once, self.rank = batch, signum, parent, once, rank

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.fit_loop.epoch_loop.total_batch_idx != self.batch or (self.once and Path(self.once).exists()):
            return
        if self.rank not in (None, trainer.global_rank):
            return
        if self.once:
            Path(self.once).touch()
        os.kill(os.getppid() if self.parent else os.getpid(), self.signum)


class SignalIn(Callback):
    """Sends a signal to this process in the ``count``-th call (from 1) of a hook, after StopOnSignal's own; only once
    if ``once`` names a file, which it then makes. The processes of other ranks than ``rank`` wait there for
    ``others_wait`` seconds instead."""

    def __init__(
        self, hook: str, count: int, signum: int = 15, once: str | None = None, rank: int = 0, others_wait: float = 0.0
    ):
        self.left, self.signum, self.once, self.rank, self.others_wait = count, signum, once, rank, others_wait
        setattr(self, hook, self._come)

    def _come(self, trainer: Trainer, *_: Any) -> None:
        self.left -= 1
        if self.left or (self.once and Path(self.once).exists()):
            return
        if trainer.global_rank != self.rank:
            time.sleep(self.others_wait)
            return
        if self.once:
            Path(self.once).touch()
        os.kill(os.getpid(), self.signum)
