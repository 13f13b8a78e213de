"""Small real runs that several test files share: rows on disk, a module, a trainer."""

import json
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

from unlearn_pl.models.lora import Lora
from unlearn_pl.objectives.base import Objective
from unlearn_pl.objectives.forget import NPO
from unlearn_pl.objectives.retain import RetainKL, RetainNLL
from unlearn_pl.training.cache import ReferenceCache
from unlearn_pl.training.module import UnlearningModule


def write_rows(folder: Path, forget: int = 8, retain: int = 10) -> dict[str, str]:
    """Forget and retain rows of different lengths, half sentence completion and half questions."""
    for split, count in (("forget", forget), ("retain", retain)):
        rows = []
        for i in range(count):
            kind = ("sc1", "qa0")[i % 2]
            task = f"Task{1 + i % 3}"
            question = f"Where did {split} {i} live" + "?" * i
            rows.append(
                {"id": f"{split}{i}{kind}", "input": question, "output": "in Paris " * (1 + i % 3), "task": task}
            )
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {split: str(folder / f"{split}.jsonl") for split in ("forget", "retain")}


def objectives(reduction: str = "sequence_mean") -> dict[str, Objective]:
    """The three slots with weights that differ."""
    return {"ga": NPO(0.5, reduction=reduction), "gd": RetainNLL(0.3, reduction=reduction), "gk": RetainKL(0.2)}


def module(base: str, **options: Any) -> UnlearningModule:
    """A module that learns fast enough to move within a few steps."""
    options = {
        "lora": Lora(rank=4, alpha=8, dropout=0.1),
        "learning_rate": 1e-2,
        "objectives": objectives(),
        "reference_cache": ReferenceCache(folder=None),
    } | options
    return UnlearningModule(base, **options)


def trainer(folder: Path, callbacks: list[Callback] | None = None, **options: Any) -> Trainer:
    """A quiet trainer on the CPU."""
    options = {"max_epochs": 2, "logger": False, "enable_checkpointing": False} | options
    return Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
