"""Study: runs that differ in some settings, as one: the settings and scores of each, and the command of the best."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from unlearn_pl.metrics.headline import HEADLINE
from unlearn_pl.report.card import told
from unlearn_pl.report.figure import Number
from unlearn_pl.report.paper import written
from unlearn_pl.report.run import Run, dig
from unlearn_pl.report.scores import COLUMNS, DIRECTIONS
from unlearn_pl.report.seeds import settings_of
from unlearn_pl.report.table import Cell, Column, Row, Table, number
from unlearn_pl.report.verdict import subject

SEED = "seed_everything"
PLACES = ("trainer.default_root_dir", "trainer.logger", "trainer.callbacks")
"""Settings that say where things are written, or what is measured on the way: no parameters of a study."""
SLOTS = ("ga", "gd", "gk")
JUDGES = ("aggregate", "task_aggregate")
"""Scores by which a study is judged: the first that a run has."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of a study."""

    name: str
    parameters: Mapping[str, Any]
    """What differs from run to run: flag -> value."""
    weights: Mapping[str, float]
    """Weights of the terms ``ga``, ``gd`` and ``gk`` of a fit, also where they do not differ."""
    scores: Mapping[str, Number]
    """The five scores: of the evaluated model, else those at the end of training."""
    folder: str
    """Where it is, as its own configuration has it."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """Runs with the same fits and other settings."""

    fit: str
    """The fit whose settings they are, of several; empty with a single one."""
    rows: Sequence[Trial]
    """In the order in which they were given."""
    parameters: Sequence[str] = field(default_factory=tuple)
    """Names of what differs."""
    judge: str = ""
    """Key of the score by which one is the best; empty if none was scored, or if they differ by their seed alone."""

    @property
    def best(self) -> Trial | None:
        """The run with the highest score; the first of several."""
        scored = [
            (score, -place) for place, one in enumerate(self.rows) if (score := one.scores.get(self.judge)) is not None
        ]
        return self.rows[-max(scored)[1]] if scored else None

    @property
    def command(self) -> str:
        """What trains the best run again, into a folder of its own; empty if there is none."""
        if self.best is None:
            return ""
        config, again = f"{told(self.best.folder)}/config.yaml", f"{told(self.best.folder)}_again"
        return shlex.join(["unlearn-pl", "fit", "--config", config, f"--trainer.default_root_dir={again}"])


def study_of(runs: Sequence[Run]) -> Study | None:
    """The study that the runs are; None of fewer than two with a configuration, or where nothing differs.

    Of runs with several fits, as recipes have, the study is about the first fit that they share in which anything but
    the seed differs, else the first.
    """
    known = [run for run in runs if any(fit.config for fit in run.fits.values())]
    names = shared_fits(known)
    if len(known) < 2:
        return None
    if not names:
        # each a run of one fit, whose folder has the name of the run
        if any(len(run.fits) != 1 for run in known):
            return None
        return made({run.name: next(iter(run.fits)) for run in known}, known, "")
    found = [made(dict.fromkeys((run.name for run in known), name), known, name) for name in names]
    telling = [one for one in found if one and set(one.parameters) - {SEED}]
    return next(iter([*telling, *(one for one in found if one)]), None)


def shared_fits(runs: Sequence[Run]) -> list[str]:
    """Names of the fits that all runs have."""
    return [name for name in (runs[0].fits if runs else ()) if all(name in run.fits for run in runs)]


def made(fits: Mapping[str, str], runs: Sequence[Run], title: str) -> Study | None:
    """The study of these fits, one a run; None where nothing differs."""
    settings = [flat(run.fits[fits[run.name]]) for run in runs]
    keys = dict.fromkeys(key for one in settings for key in one)
    differ = [key for key in keys if len({repr(one.get(key)) for one in settings}) > 1]
    if not differ:
        return None
    rows = [
        trial(run, fits[run.name], {key: one.get(key) for key in differ})
        for run, one in zip(runs, settings, strict=True)
    ]
    judges = [key for key in JUDGES if any(one.scores.get(key) is not None for one in rows)]
    # of seeds none is better, only luckier
    judge = next(iter(judges), "") if set(differ) - {SEED} else ""
    return Study(fit=title, rows=rows, parameters=differ, judge=judge)


def trial(run: Run, fit: str, parameters: Mapping[str, Any]) -> Trial:
    """A run with its scores."""
    config = run.fits[fit].config
    weights = {slot: dig(config, f"model.objectives.{slot}.init_args.weight") for slot in SLOTS}
    folder = dig(config, "trainer.default_root_dir")
    return Trial(
        name=run.name,
        parameters=parameters,
        weights={slot: float(one) for slot, one in weights.items() if isinstance(one, int | float)},
        scores=scores_of(run, fit),
        folder=folder if isinstance(folder, str) else fit,
    )


def scores_of(run: Run, fit: str) -> dict[str, Number]:
    """The five scores of the model that a run is about, else those of the last evaluation while it trained."""
    name = subject(run)
    if name is not None:
        return {key: number(run.models[name].results.get(key)) for key in HEADLINE}
    evaluations = sorted(run.fits[fit].evaluations, key=lambda one: one["step"])
    return {key: number(evaluations[-1].get(key)) for key in HEADLINE} if evaluations else {}


def flat(fit: Any) -> dict[str, Any]:
    """The settings of a fit as flags: ``model.objectives.ga.weight`` -> 0.4; the seed once."""
    found = dict(leaves(settings_of(fit)))
    kept = {
        key: one
        for key, one in found.items()
        if not any(key == place or key.startswith(f"{place}.") for place in PLACES)
    }
    seed = (fit.config or {}).get(SEED)
    return kept if seed is None else {SEED: seed, **kept}


def leaves(value: Any, key: str = "") -> Iterable[tuple[str, Any]]:
    """Dotted key -> value; ``init_args`` is left out of a key, as a command line takes it without."""
    if isinstance(value, Mapping) and value:
        for name, one in value.items():
            yield from leaves(one, key if name == "init_args" and key else f"{key}.{name}" if key else str(name))
    else:
        yield key, value


def short(parameters: Sequence[str]) -> dict[str, str]:
    """Flag -> as much of its end as tells it from the others: ``ga.weight``."""
    found = {}
    for name in parameters:
        parts = PurePath(name.replace(".", "/")).parts
        ends = [".".join(parts[-count:]) for count in range(min(2, len(parts)), len(parts) + 1)]
        others = [one for one in parameters if one != name]
        found[name] = next((end for end in ends if not any(f".{one}".endswith(f".{end}") for one in others)), name)
    return found


def study_table(study: Study) -> Table:
    """One line a run: what differs and the five scores, the best run first."""
    names = short(study.parameters)
    rows = sorted(study.rows, key=lambda one: -(one.scores.get(study.judge) or 0.0))
    scores = [Column(name=name, better=DIRECTIONS[key] if study.judge else None) for name, key in COLUMNS.items()]
    of = f" of the fit {study.fit}" if study.fit else ""
    first = "; the first line is the best" if study.judge else ""
    chosen = (
        f"The best of {len(rows)} runs, chosen by the score that is shown, looks better here than on new data. What "
        "took no part in the choice, as a held-out half, tells more."
    )
    return Table(
        key="study",
        title=f"{len(rows)} runs",
        caption=f"What differs in the settings{of} from run to run, and the scores{first}.",
        stub="run",
        columns=[*(Column(name=names[one]) for one in study.parameters), *scores],
        rows=[
            Row(
                name=one.name,
                cells=[
                    *(Cell(text=written(one.parameters[name])) for name in study.parameters),
                    *(score_cell(one.scores.get(key)) for key in COLUMNS.values()),
                ],
            )
            for one in rows
        ],
        notes=[chosen] if study.judge else [],
    )


def score_cell(value: Number) -> Cell:
    """A score of a run."""
    return Cell(why="the run was not scored, or lacks a part of it") if value is None else Cell(value=value)
