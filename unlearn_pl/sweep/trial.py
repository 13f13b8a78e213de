"""Trial: one fit of a sweep, as its `trial.json` has it, and what it has measured so far."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from unlearn_pl.callbacks.evaluate import scores_of
from unlearn_pl.callbacks.monitor import PREFIX
from unlearn_pl.errors import InputError
from unlearn_pl.files import write_json
from unlearn_pl.metrics.headline import HEADLINE
from unlearn_pl.sweep.file import Metric
from unlearn_pl.training.metrics_file import read_rows

FILE = "trial.json"
DONE = ("finished", "stopped")
"""States in which a trial is not run again: it came to its end, or early termination ended it."""
STATES = (*DONE, "running", "interrupted", "failed")


@dataclass(kw_only=True)
class Trial:
    """A trial and what came of it."""

    number: int
    parameters: Mapping[str, Any]
    state: str = "running"
    score: float | None = None
    """The last value of the sweep's metric."""
    scores: Mapping[str, float | None] = field(default_factory=dict)
    """The five scores, by its last evaluation."""
    history: Sequence[float] = ()
    """Every value of the metric, in order."""
    seconds: float | None = 0.0
    """Of all attempts that count; None if one was killed, so that nobody measured it."""
    exit_code: int | None = None
    command: Sequence[str] = ()

    @property
    def name(self) -> str:
        return name_of(self.number)

    def write(self, sweep_folder: Path) -> None:
        """Into its own folder."""
        write_json(sweep_folder / self.name / FILE, asdict(self))

    def measure(self, sweep_folder: Path, metric: Metric | None) -> None:
        """Take over what its files hold by now."""
        evaluations = read_evaluations(sweep_folder / self.name)
        self.scores = {key: evaluations[-1].get(key) for key in HEADLINE} if evaluations else {}
        if metric is not None:
            self.history = history_of(sweep_folder / self.name, metric.name)
            self.score = self.history[-1] if self.history else None


def name_of(number: int) -> str:
    """The name of a trial, and of its folder."""
    return f"trial_{number:04d}"


def read_trials(sweep_folder: Path) -> dict[int, Trial]:
    """The trials that were begun, by number. Raises InputError for a file that none of ours is."""
    found = [read_trial(path) for path in sorted(sweep_folder.glob(f"trial_*/{FILE}"))]
    return {one.number: one for one in found}


def read_trial(path: Path) -> Trial:
    """The trial that a file describes."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        trial = Trial(**{one.name: content[one.name] for one in fields(Trial)})
        sound = trial.state in STATES and trial.name == path.parent.name and isinstance(trial.parameters, dict)
    except (ValueError, LookupError, TypeError):
        sound = False
    if not sound:
        raise InputError(f"{path} is not what a sweep writes; remove the folder, and the trial runs again", "name")
    return trial


def read_evaluations(folder: Path) -> list[dict[str, Any]]:
    """What EvaluateDuringFit has written into the folder of a trial."""
    path = folder / "evaluations.json"
    return list(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else []


def history_of(folder: Path, name: str) -> list[float]:
    """The values that a trial has logged under a name, in order."""
    if name.startswith(PREFIX):
        values = [scores_of(entry).get(name.removeprefix(PREFIX)) for entry in read_evaluations(folder)]
    else:
        values = [float(row[name]) for row in read_rows(folder / "metrics.csv") if row.get(name)]
    return [value for value in values if value is not None and math.isfinite(value)]
