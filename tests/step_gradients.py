"""RecordSteps: a callback that writes what a fit of the command line computes: its gradients and the rows it draws."""

import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer


class RecordSteps(Callback):
    """`rows-RANK.jsonl`, the ids of forget and retain rows of each batch, and `gradient-STEP.pt`, by factor, as the
    optimizer of the first process gets them.

    Args:
        folder: Where they go; made if it is not there.
    """

    def __init__(self, folder: str):
        self.folder = Path(folder)

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        row = {"step": trainer.global_step} | {s: list(batch.rows[s].record_ids) for s in ("forget", "retain")}
        with (self.folder / f"rows-{trainer.global_rank}.jsonl").open("a") as stream:
            stream.write(json.dumps(row) + "\n")

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        whole = {name: full(p.grad) for name, p in pl_module.trained().items() if p.grad is not None}
        if trainer.is_global_zero:
            torch.save(whole, self.folder / f"gradient-{trainer.global_step}.pt")


def full(tensor: Any) -> torch.Tensor:
    """All of a tensor, which may be in shards over the processes."""
    value = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return value.detach().clone()
