"""The trials of a sweep, the best first, and the command that trains the best again."""

import math
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from unlearn_pl.callbacks.monitor import PREFIX
from unlearn_pl.report.markdown import plain
from unlearn_pl.report.paper import written
from unlearn_pl.report.scores import COLUMNS
from unlearn_pl.report.study import short
from unlearn_pl.report.table import Cell, Column, Row, Table
from unlearn_pl.sweep.file import SweepFile
from unlearn_pl.sweep.trial import Trial

SHOWN = 10
"""Lines that the terminal gets."""


def ranked(sweep: SweepFile, trials: Sequence[Trial]) -> list[Trial]:
    """The trials, those with an adapter first, and among them the best; by their number where none is better."""
    metric = None if sweep.seeds_alone else sweep.metric

    def place(trial: Trial) -> tuple[int, float, int]:
        group = {"finished": 0, "stopped": 1}.get(trial.state, 2)
        cost = math.inf if metric is None or trial.score is None else metric.cost(trial.score)
        return group, cost, trial.number

    return sorted(trials, key=place)


def best_of(sweep: SweepFile, trials: Sequence[Trial]) -> Trial | None:
    """The best trial that came to its end; None if none is better, or nothing was measured."""
    if sweep.metric is None or sweep.seeds_alone:
        return None
    first = next(iter(ranked(sweep, trials)), None)
    return first if first is not None and first.state == "finished" and first.score is not None else None


def sweep_table(sweep: SweepFile, trials: Sequence[Trial]) -> Table:
    """One line a trial: what differs, the metric, the five scores, how it ended."""
    differ = [
        one.name for one in sweep.parameters if len({repr(trial.parameters.get(one.name)) for trial in trials}) > 1
    ]
    names = short(differ)
    metric = sweep.metric.name if sweep.metric else ""
    scores = {name: key for name, key in COLUMNS.items() if f"{PREFIX}{key}" != metric}
    measured = any(trial.scores for trial in trials)
    rows = [
        Row(
            name=trial.name,
            cells=[
                *(Cell(text=written(trial.parameters.get(name))) for name in differ),
                *([cell(trial.score)] if metric else []),
                *(cell(trial.scores.get(key)) for key in scores.values() if measured),
                Cell(text=trial.state),
                cell(trial.seconds),
            ],
        )
        for trial in ranked(sweep, trials)
    ]
    columns = [
        *(Column(name=names[one]) for one in differ),
        *([Column(name=metric)] if metric else []),
        *(Column(name=name) for name in scores if measured),
        Column(name="state"),
        Column(name="seconds", digits=0),
    ]
    return Table(key="sweep", title=sweep.name, caption="", stub="trial", columns=columns, rows=rows)


def cell(value: float | None) -> Cell:
    """A number that was measured, or not."""
    return Cell(why="it was not measured") if value is None else Cell(value=value)


def texts(sweep: SweepFile, trials: Sequence[Trial], folder: Path) -> tuple[str, str]:
    """What `table.md` holds, and the shorter text for the terminal."""
    table = sweep_table(sweep, trials)
    top = replace(table, rows=table.rows[:SHOWN])
    more = len(table.rows) - len(top.rows)
    note = f"{more} more in {folder / 'table.md'}" if more > 0 else ""
    verdict = verdict_on(sweep, trials, folder)
    shown = "\n".join(filter(None, [plain(top), note]))
    return f"{plain(table)}\n\n{verdict}\n", f"{shown}\n\n{verdict}"


def verdict_on(sweep: SweepFile, trials: Sequence[Trial], folder: Path) -> str:
    """Which trial is the best and how to train it again, or why none is."""
    if sweep.metric is None:
        return "The file names no metric: no trial is better than another."
    if sweep.seeds_alone:
        return "The trials differ by their seed alone: none is better than another, only luckier."
    best = best_of(sweep, trials)
    if best is None:
        return f"No trial that came to its end has {sweep.metric.name}."
    config, again = folder / best.name / "config.yaml", folder / f"{best.name}_again"
    command = shlex.join(["unlearn-pl", "fit", "--config", str(config), f"--trainer.default_root_dir={again}"])
    return f"{best.name} is the best by {sweep.metric.name} ({sweep.metric.goal}): {command}"
