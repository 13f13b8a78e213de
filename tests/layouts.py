"""An optimizer step of sixteen pairs laid out over processes, accumulated batches and rows, by the command line."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from transformers import PreTrainedModel

from tests.lightning_runs import write_rows
from tests.tiny_adapters import adapted
from unlearn_pl.models.lora import save_adapter

TESTS = Path(__file__).parent
PAIRS = 16
STEPS = 2
# Every kind of term that is the same in every layout.
EXACT = {
    "ga": ("NPO", {"weight": 0.4, "reduction": "sequence_sum"}),
    "gd": ("RetainNLL", {"weight": 0.3, "reduction": "step_mean"}),
    "gk": ("RetainKL", {"weight": 0.5, "reduction": "step_mean"}),
    "attended": ("RetainKL", {"weight": 0.5, "positions": "attended", "reduction": "step_mean"}),
    "rows": ("RetainKL", {"weight": 0.5, "reduction": "sequence_mean"}),
    "padded": ("RetainKL", {"weight": 0.5, "positions": "padded"}),
    "sim": ("SimNPO", {"weight": 0.2}),
    "ascent": ("GradAscent", {"weight": 0.1, "reduction": "step_mean"}),
}
TIED = {
    "ga": ("NPO", {"weight": 0.4, "reduction": "batch_mean"}),
    "gd": ("RetainNLL", {"weight": 0.3}),
    "gk": ("RetainKL", {"weight": 0.5}),
}


@dataclass(frozen=True)
class Layout:
    """Of one optimizer step; their product is ``PAIRS``."""

    processes: int
    accumulate: int
    rows: int
    micro_batches: int = 1

    def __str__(self) -> str:
        text = f"{self.processes} processes x {self.accumulate} accumulated x {self.rows} rows"
        return text + (f" x {self.micro_batches} micro-batches" if self.micro_batches > 1 else "")

    @property
    def options(self) -> list[str]:
        """Of the command line."""
        ddp = [f"--trainer.devices={self.processes}", "--trainer.strategy=ddp"] if self.processes > 1 else []
        return [
            *ddp,
            f"--trainer.accumulate_grad_batches={self.accumulate}",
            f"--data.batch_size={self.rows}",
            f"--data.micro_batches={self.micro_batches}",
        ]


ONE_BATCH = Layout(1, 1, PAIRS)


@dataclass(frozen=True)
class Recorded:
    """What ``RecordSteps`` wrote of a fit."""

    gradients: list[dict[str, Tensor]]
    drawn: dict[str, list[list[str]]]
    """By split: the ids that each step draws on all processes."""
    told: str


def write_setting(folder: Path, base: PreTrainedModel, base_folder: str, terms: dict[str, Any]) -> Path:
    """Rows, an adapter that does something (at B = 0 half of the gradients are zero) and the configuration of a fit."""
    folder.mkdir(parents=True, exist_ok=True)
    save_adapter(adapted(base), folder / "start")
    content = {
        "seed_everything": 3,
        "model": {
            "base": base_folder,
            "adapter": str(folder / "start"),
            "warmup": 0,
            "objectives": {slot: {"class_path": kind, "init_args": args} for slot, (kind, args) in terms.items()},
            "reference_cache": {"folder": str(folder / "cache")},
        },
        "data": write_rows(folder, forget=PAIRS * STEPS, retain=PAIRS * STEPS + 8),
        "trainer": {
            "accelerator": "cpu", "max_epochs": 1, "limit_val_batches": 0, "enable_checkpointing": False,
            "enable_progress_bar": False,
        },
    }  # fmt: skip
    path = folder / "fit.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def record(run: Callable[..., Any], config: Path, layout: Layout, *options: str) -> Recorded:
    """Fit one epoch, ``STEPS`` steps, by ``run(*words, **environment)``, and read what it left."""
    folder = config.parent / "-".join([config.stem, *str(layout).split(), *options]).replace("/", "_")
    done = run(
        "fit", f"--config={config}", f"--trainer.default_root_dir={folder / 'run'}", *layout.options, *options,
        "--trainer.callbacks+=step_gradients.RecordSteps", f"--trainer.callbacks.folder={folder / 'recorded'}",
        PYTHONPATH=os.pathsep.join([str(TESTS), str(TESTS.parent)]),
    )  # fmt: skip
    assert done.code == 0, done.out + done.err
    return read_recorded(folder / "recorded", layout.processes, done.err)


def read_recorded(folder: Path, processes: int, told: str) -> Recorded:
    gradients = [torch.load(folder / f"gradient-{step}.pt") for step in range(STEPS)]
    drawn: dict[str, list[list[str]]] = {side: [[] for _ in range(STEPS)] for side in ("forget", "retain")}
    for rank in range(processes):
        for line in (folder / f"rows-{rank}.jsonl").read_text().splitlines():
            row = json.loads(line)
            for side, steps in drawn.items():
                steps[row["step"]] += row[side]
    return Recorded(gradients, drawn, told)


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Norm of the difference over all factors, relative to that of ``one``."""
    assert one.keys() == other.keys()
    difference, size = (
        torch.cat([values.flatten().double() for values in tensors])
        for tensors in ([one[name] - other[name] for name in one], list(one.values()))
    )
    return float(difference.norm() / size.norm())


def check_rows(whole: Recorded, parts: Recorded) -> None:
    """Raise AssertionError unless every step draws the same rows, and no forget row comes twice in the epoch."""
    for side, steps in whole.drawn.items():
        assert [sorted(ids) for ids in parts.drawn[side]] == [sorted(ids) for ids in steps], side
        epoch = [name for ids in parts.drawn[side] for name in ids]
        assert len(epoch) == len(set(epoch)) == PAIRS * STEPS, f"{side} rows come twice, or not at all"
