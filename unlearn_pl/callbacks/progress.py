"""Throughput: tokens per second, in the progress bar and the logs."""

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class Throughput(Callback):
    """Logs `tokens_per_second`: tokens of forget and retain rows (padding not counted) that this process trained on
    in this epoch, by the time that their batches took; validation and evaluation are not counted. The command line
    always adds it."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # no epoch starts where a run goes on within one
        self._tokens, self._seconds = 0, 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._tokens, self._seconds = 0, 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._tokens += sum(int(rows.lengths.sum()) for rows in batch.rows.values())
        self._seconds += time.perf_counter() - self._began
        pl_module.log("tokens_per_second", self._tokens / self._seconds, prog_bar=True, batch_size=len(batch))
