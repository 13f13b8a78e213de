"""Weak scaling: tokens a second of `unlearn-pl fit` on 1, 2, 4 processes that each have the same work.

python -m benchmarks.scale --model DIR --data.forget F --data.retain R --json OUT
"""

import csv
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.command import BenchData, hashes_of, run, shown, tell
from unlearn_pl.errors import InputError
from unlearn_pl.files import write_json
from unlearn_pl.models.load import resolve
from unlearn_pl.provenance import provenance

TERMS = (
    "{ga: {class_path: NPO, init_args: {weight: 0.4}}, "
    "gd: {class_path: RetainNLL, init_args: {weight: 0.6, reduction: step_mean}}}"
)


@dataclass(frozen=True)
class Point:
    """Of one number of processes; the fastest of the rounds."""

    processes: int
    tokens_per_second: float
    """Of all processes together, in the second epoch."""
    share: float
    """Of what as many processes would do if each were as fast as one alone."""


def scale(
    model: str,
    data: BenchData,
    processes: tuple[int, ...] = (1, 2, 4),
    strategy: str = "ddp",
    accelerator: str = "cpu",
    steps: int = 8,
    batch_size: int = 4,
    rounds: int = 2,
    json: str | None = None,
) -> None:
    """Time the real fit on several numbers of processes, each with the same number of rows a step.

    Args:
        model: Folder or name of the base model.
        data: The rows; an epoch must have `steps` steps for the most processes.
        processes: Numbers of processes; the first is what the others are compared with.
        strategy: Lightning's strategy.
        accelerator: Lightning's accelerator.
        steps: Optimizer steps of an epoch; the second epoch is timed.
        batch_size: Pairs of each process in a step.
        rounds: Fits of each; the fastest counts, since other work on the machine only slows.
        json: File for the figures.
    """
    if not processes or min(processes) < 1:
        raise InputError(f"must be at least 1 each, got {list(processes)}", "processes")
    for name, value in (("steps", steps), ("batch_size", batch_size), ("rounds", rounds)):
        if value < 1:
            raise InputError(f"must be at least 1, got {value}", name)
    resolve(model)
    options = [
        "--seed_everything=1", f"--model.base={model}", f"--model.objectives={TERMS}", f"--data.forget={data.forget}",
        f"--data.retain={data.retain}", f"--data.batch_size={batch_size}", f"--trainer.accelerator={accelerator}",
        f"--trainer.limit_train_batches={steps}", "--trainer.max_epochs=2", "--trainer.limit_val_batches=0",
        "--trainer.log_every_n_steps=1", "--trainer.enable_checkpointing=false", "--trainer.enable_progress_bar=false",
    ]  # fmt: skip
    speeds: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        cached = [*options, f"--model.reference_cache.folder={folder}/cache"]
        for number in [count for _ in range(rounds) for count in processes]:
            launch = [f"--trainer.devices={number}", *([f"--trainer.strategy={strategy}"] if number > 1 else [])]
            speed = number * tokens_per_second([*cached, *launch], Path(folder) / f"run{number}", 2 * steps)
            tell(f"{number} processes: {shown(speed)} tokens/s")
            speeds[number] = max(speed, speeds.get(number, 0.0))
    points = weak_scaling(speeds)
    print_points(points, batch_size)
    if json is not None:
        config = {"model": model, "strategy": strategy, "steps": steps, "batch_size": batch_size, "rounds": rounds}
        facts = {"cores": os.cpu_count(), "sha256": hashes_of(data), "config": config}
        write_json(json, provenance(points=[asdict(point) for point in points], **facts))


def tokens_per_second(options: Sequence[str], folder: Path, steps: int) -> float:
    """What one process of a fit logs at its last step, of which its second epoch has half.

    Raises InputError if the fit fails, or ends after fewer steps.
    """
    command = [sys.executable, "-m", "unlearn_pl", "fit", *options, f"--trainer.default_root_dir={folder}"]
    environment = {"OMP_NUM_THREADS": "1"} | os.environ
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise InputError(f"the fit failed: {(done.stderr.strip() or 'without a word').splitlines()[-1]}")
    with (folder / "metrics.csv").open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["tokens_per_second"]]
    if len(rows) < steps:
        raise InputError(f"an epoch has {len(rows) // 2} steps of as many processes, fewer than {steps // 2}", "steps")
    return float(rows[-1]["tokens_per_second"])


def weak_scaling(speeds: dict[int, float]) -> list[Point]:
    """Each beside the first: 100 tokens/s by 1 process and 150 by 2 are a share of 150 / (2 x 100) = 0.75."""
    first, alone = next(iter(speeds.items()))
    return [Point(number, speed, speed * first / (number * alone)) for number, speed in speeds.items()]


def print_points(points: Sequence[Point], batch_size: int) -> None:
    """One line for each number of processes."""
    table = Table("processes", "pairs a step", "tokens/s together", "share of the ideal")
    for point in points:
        row = (point.processes, point.processes * batch_size, shown(point.tokens_per_second), f"{point.share:.2f}")
        table.add_row(*map(str, row))
    Console(width=100).print(table)


if __name__ == "__main__":
    run(scale)
