"""WritePredictions: what `predict` generated, as a file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch.distributed
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_info

from unlearn_pl.callbacks.adapter import is_dry
from unlearn_pl.files import write_json_lines


class WritePredictions(BasePredictionWriter):
    """Writes `predictions.jsonl` into the run folder: id and generated text of every forget and retain row, once
    each. The command line always adds it."""

    def __init__(self, write_interval: Literal["epoch"] = "epoch"):
        super().__init__(write_interval)

    def write_on_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule, predictions: Sequence[Any], batch_indices: Sequence[Any]
    ) -> None:
        rows = [row for batch in predictions for row in batch]
        if trainer.world_size > 1:
            gathered: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(gathered, rows)
            rows = [row for part in gathered for row in part]
        if trainer.is_global_zero and not is_dry(trainer):
            # retain rows come round again with later forget rows, and a distributed sampler repeats rows to fill up
            unique = sorted({row["id"]: row for row in rows}.values(), key=lambda row: (row["split"], row["id"]))
            target = Path(trainer.default_root_dir) / "predictions.jsonl"
            write_json_lines(target, unique)
            rank_zero_info(f"predictions: {target} ({len(unique)} rows)")
