"""Fits that are killed (SIGKILL) and go on: what they leave is that of a fit in peace, bit for bit."""

import csv
import random
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock

from tests.lightning_runs import write_rows
from tests.scale.programs import Ended, unlearn_pl
from tests.scale.table import Case
from tests.tiny_base import write_base

# What a fit leaves, but for its checkpoints and for the pictures of the numbers that are compared.
FILES = (
    "adapter/adapter_model.safetensors", "adapter/adapter_config.json", "adapter/unlearn_pl.json",
    "snapshots/step_0/adapter_model.safetensors", "snapshots/step_3/adapter_model.safetensors",
    "angles.json", "spectrum.json", "evaluations.json",
)  # fmt: skip
SPEED = "tokens_per_second"  # differs between any two runs
EPOCHS, STEPS = 3, 6
BATCHES, WINDOW = {1: 18, 2: 9}, {1: 3, 2: 2}  # 12 pairs in twos, two optimizer steps an epoch
PASSES = 8  # an evaluation's forwards are more than that
PLACES = {
    "within accumulation": [
        "on_train_batch_start", "on_before_backward", "on_after_backward", "on_before_optimizer_step",
        "on_before_zero_grad", "on_train_batch_end",
    ],
    "in a checkpoint write": ["writing", "writing", "written"],
    "within an evaluation": ["evaluating"],
    "at an epoch's edge": [
        "on_train_epoch_start", "on_train_epoch_end", "on_validation_start", "on_validation_epoch_end",
        "on_validation_end", "on_train_end",
    ],
    "at any moment": ["seconds"],
}  # fmt: skip
SECONDS = 4.0  # of training, evaluations included, of the fit in peace
EARLIEST = 0.05


@dataclass(frozen=True)
class Layout:
    """How a fit is run: processes and data workers. Its fit in peace is run once, by whoever asks first."""

    processes: int
    workers: int
    shared: Path
    _lock: Lock = field(default_factory=Lock, repr=False)

    def words(self, folder: Path) -> list[str]:
        """Of the fit into ``folder``: by the demo's configuration, with dropout, evaluation, snapshots and angles."""
        rows = {side: self.shared / f"{side}.jsonl" for side in ("forget", "retain")}
        options = {
            "model.base": self.shared / "base",
            "model.reference_cache.folder": self.shared / "cache",
            **{f"data.{side}": path for side, path in rows.items()},
            "data.batch_size": 2,
            "data.num_workers": self.workers,
            "trainer.max_epochs": EPOCHS,
            "trainer.check_val_every_n_epoch": 1,
            "trainer.accumulate_grad_batches": WINDOW[self.processes],
            "trainer.log_every_n_steps": 1,
            "trainer.enable_progress_bar": "false",
            "trainer.default_root_dir": folder,
            "trainer.callbacks": f"[{', '.join(map(str, callbacks(folder)))}]",
        }
        if self.processes > 1:
            options |= {"trainer.devices": self.processes, "trainer.strategy": "ddp"}
        return ["fit", "--config=configs/demo/over.yaml", *(f"--{key}={value}" for key, value in options.items())]

    def peace(self) -> Path:
        folder = self.shared / f"peace-{self.processes}-{self.workers}"
        with self._lock:
            if not folder.exists():
                unlearn_pl(*self.words(folder)).well()
        return folder


def callbacks(folder: Path) -> list[dict[str, object]]:
    saved = {"dirpath": str(folder / "checkpoints"), "save_last": True, "every_n_train_steps": 1}
    given: dict[str, dict[str, object]] = {
        "WeightSnapshot": {"steps": [3]},
        "AngleAnalysis": {"pivot": 3},
        "EvaluateDuringFit": {"every_n_epochs": 1, "every_n_steps": 3, "generation": {"max_new_tokens": 4}},
        "lightning.pytorch.callbacks.ModelCheckpoint": saved | {"enable_version_counter": False},
    }
    return [{"class_path": name, "init_args": options} for name, options in given.items()]


@dataclass(frozen=True)
class Moment:
    """Where a fit is killed, as tests/killing.py takes it."""

    moment: str
    count: float
    share: float
    rank: int

    def words(self) -> list[str]:
        options = [f"--trainer.callbacks.{key}={value}" for key, value in vars(self).items()]
        return ["--trainer.callbacks+=killing.KillAt", *options]

    def __str__(self) -> str:
        share = f", {self.share:.0%} of it written" if self.moment == "writing" else ""
        which = f"{self.count} s" if self.moment == "seconds" else f"{self.moment} {self.count}{share}"
        return which + ("" if self.rank == 0 else ", all processes" if self.rank < 0 else f", rank {self.rank}")


def draw(place: str, layout: Layout, random: random.Random) -> Moment:
    """A moment of the kind, none of them before the first batch."""
    moment = random.choice(PLACES[place])
    if moment == "seconds":
        count: float = round(random.uniform(0, SECONDS), 2)
    elif moment in ("writing", "written"):
        count = random.randint(1, STEPS)
    elif moment == "evaluating":
        count = random.randint(PASSES, 4 * PASSES // layout.processes)
    elif place == "at an epoch's edge":
        count = 1 if moment == "on_train_end" else random.randint(1, EPOCHS)
    else:
        count = random.randint(2, STEPS if "optimizer" in moment or "zero" in moment else BATCHES[layout.processes])
    ranks = [-1, *range(layout.processes)] if moment not in ("writing", "written") else [0]
    return Moment(moment, count, round(random.random(), 2), random.choice(ranks))


def cases(seed: int, shared: Path) -> Iterator[Case]:
    """Twenty kills: each kind of moment in each layout."""
    write_base(shared / "base")
    write_rows(shared, forget=12, retain=10)
    generator = random.Random(seed)
    for processes in (1, 2):
        for workers in (0, 2):
            layout = Layout(processes, workers, shared)
            for place in PLACES:
                moment = draw(place, layout, generator)
                name = (
                    f"fit, {processes} process{'es' * (processes - 1)}, {workers} workers, SIGKILL {place} ({moment})"
                )
                yield Case(name, "killed, then equal", lambda folder, args=(layout, moment): kill(folder, *args))


def kill(folder: Path, layout: Layout, moment: Moment) -> str:
    """Kill a fit, go on from its last checkpoint (from the start if there is none), compare with the fit in peace.

    A machine may be so fast that the fit is over before its second has come; then half of that is tried."""
    peace, run = layout.peace(), folder / "run"
    killed = unlearn_pl(*layout.words(run), *moment.words())
    while killed.code == 0 and moment.moment == "seconds" and moment.count > EARLIEST:
        moment, run = replace(moment, count=moment.count / 2), folder / f"run within {moment.count / 2} s"
        killed = unlearn_pl(*layout.words(run), *moment.words())
    if killed.code == 0 or (moment.rank <= 0 and killed.code != -signal.SIGKILL):
        return f"was not killed: exit code {killed.code}, {killed.last_line}"
    if killed.left_some:
        return "killed; another process of it was left"
    last = run / "checkpoints/last.ckpt"
    go_on: Sequence[str] = [f"--ckpt_path={last}"] if last.exists() else []
    return verdict(unlearn_pl(*layout.words(run), *go_on), peace, run)


def verdict(ended: Ended, peace: Path, run: Path) -> str:
    """How a fit that went on ended and what it left, beside the fit in peace."""
    if ended.code != 0:
        return f"exit code {ended.code}: {ended.last_line}"
    if "not the run that was interrupted" in ended.err:
        return f"said to be another run: {ended.err}"
    different = [name for name in FILES if (run / name).read_bytes() != (peace / name).read_bytes()]
    different += ["metrics.csv"] * (metrics(run) != metrics(peace))
    left = [str(path.relative_to(run)) for path in run.rglob(".*")]
    return "killed, then equal" + f"; but {different} differ" * bool(different) + f"; {left} left" * bool(left)


def metrics(run: Path) -> list[dict[str, str]]:
    """The rows of the metrics file in order, each value as it is written, but for the speed."""
    with (run / "metrics.csv").open(newline="") as stream:
        return [{name: value for name, value in row.items() if name != SPEED} for row in csv.DictReader(stream)]
