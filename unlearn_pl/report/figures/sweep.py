"""Runs that differ in their settings: which settings go with which score."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unlearn_pl.metrics.headline import HEADLINE
from unlearn_pl.report.figure import Axis, Figure, Label, Line, Panel, Points
from unlearn_pl.report.figures.scales import RATE
from unlearn_pl.report.run import Run
from unlearn_pl.report.study import SEED, SLOTS, Study, short, study_of
from unlearn_pl.report.style import finite

MOST = 8
"""Settings that are drawn side by side."""
DECADES = 50
"""Ratio of the largest to the smallest value from which an axis counts decades."""
TOP = math.sqrt(3) / 2
CORNERS = dict(zip(SLOTS, ((0.5, TOP), (0.0, 0.0), (1.0, 0.0)), strict=True))
PLAIN = Axis(title="")


def sweep_figures(runs: Sequence[Run]) -> list[Figure]:
    """The views of a study, if the runs are one that more than the seed differs in."""
    study = study_of(runs) if len(runs) > 1 else None
    if study is None or not study.judge or not set(study.parameters) - {SEED}:
        return []
    identity = {"runs": ", ".join(run.name for run in runs)}
    return [parallel(study, identity), *simplex(study, identity)]


@dataclass(frozen=True)
class Scale:
    """One setting, or the score, as an axis from 0 to 1."""

    name: str
    values: Sequence[Any]

    @property
    def numbers(self) -> list[float] | None:
        """Its values; None if they are words, or some are not given."""
        known = [v for v in self.values if isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)]
        return [float(value) for value in known] if len(known) == len(self.values) else None

    @property
    def words(self) -> list[str]:
        """Values that are no numbers, each once."""
        return sorted({str(value) for value in self.values})

    @property
    def decades(self) -> bool:
        """Whether it is drawn by its logarithm."""
        numbers = self.numbers
        return numbers is not None and min(numbers) > 0 and max(numbers) >= DECADES * min(numbers)

    @property
    def title(self) -> str:
        """Name with the ends of the axis."""
        low, high = (min(self.numbers), max(self.numbers)) if self.numbers else (self.words[0], self.words[-1])
        ends = [f"{end:.3g}" if isinstance(end, float) else end for end in (low, high)]
        return f"{self.name}: {ends[0]} to {ends[1]}{' (log)' if self.decades else ''}"

    def place(self, value: Any) -> float:
        """From 0 to 1; the middle if all values are one."""
        if self.numbers is None:
            return self.words.index(str(value)) / max(len(self.words) - 1, 1)
        value, low, high = float(value), min(self.numbers), max(self.numbers)
        if self.decades:
            value, low, high = math.log(value), math.log(low), math.log(high)
        return (value - low) / (high - low) if high > low else 0.5


def parallel(study: Study, identity: Mapping[str, str]) -> Figure:
    """One line a run through its settings and its score; runs without a score are left out of the last axis."""
    shown = list(study.parameters)[:MOST]
    names = _ends(short(study.parameters))
    scales = [Scale(names[key], [row.parameters.get(key) for row in study.rows]) for key in shown]
    score = HEADLINE[study.judge]
    known = [value for row in study.rows if (value := finite(row.scores.get(study.judge))) is not None]
    axes = [*scales, Scale(score, known)]
    titles = [axis.title for axis in axes]
    lines = []
    for row in study.rows:
        value = finite(row.scores.get(study.judge))
        places = [scale.place(row.parameters.get(key)) for key, scale in zip(shown, scales, strict=True)]
        told = [f"{scale.name}: {row.parameters.get(key)}" for key, scale in zip(shown, scales, strict=True)]
        places_ = [*places, None if value is None else axes[-1].place(value)]
        told.append(f"{score}: " + ("not measured" if value is None else f"{value:.4g}"))
        lines.append(Line(name=row.name, x=titles, y=places_, shade=value, shade_title=score, text=told))
    left = len(study.parameters) - len(shown)
    return Figure(
        key="sweep",
        title=f"Settings and score of {len(study.rows)} runs",
        caption=f"One line a run, from its settings to its {score}, which is its colour too; each axis from its lowest "
        "to its highest value." + (f" {left} more settings differ, see the table." if left else ""),
        panels=[
            Panel(
                title="",
                x=Axis(title="", categories=titles),
                y=Axis(title="from lowest to highest", limits=RATE),
                series=lines,
            )
        ],
        identity=identity,
    )


def _ends(names: Mapping[str, str]) -> dict[str, str]:
    """The names without what stands before their last dot, where that tells them apart."""
    ends = {key: name.rpartition(".")[2] for key, name in names.items()}
    return {key: end if list(ends.values()).count(end) == 1 else names[key] for key, end in ends.items()}


def simplex(study: Study, identity: Mapping[str, str]) -> list[Figure]:
    """The shares of the three terms' weights, coloured by score; none if they are the same in all runs."""
    rows = [row for row in study.rows if set(row.weights) == set(SLOTS) and min(row.weights.values()) >= 0]
    rows = [row for row in rows if sum(row.weights.values()) > 0]
    shares = [{slot: row.weights[slot] / sum(row.weights.values()) for slot in SLOTS} for row in rows]
    if len({tuple(round(one[slot], 9) for slot in SLOTS) for one in shares}) < 2:
        return []
    score = HEADLINE[study.judge]
    spots = [corner_mean(one) for one in shares]
    told = [f"{row.name}; " + ", ".join(f"{slot} {row.weights[slot]:.3g}" for slot in SLOTS) for row in rows]
    points = Points(
        name="runs",
        x=[x for x, _ in spots],
        y=[y for _, y in spots],
        shade=[row.scores.get(study.judge) for row in rows],
        shade_title=score,
        text=told,
    )
    ring = [
        Points(name="best run", x=[x], y=[y], ringed=True, colour="chosen")
        for row, (x, y) in zip(rows, spots, strict=True)
        if row is study.best
    ]
    edge = Line(name="", x=[0.5, 0.0, 1.0, 0.5], y=[TOP, 0.0, 0.0, TOP], colour="chance")
    labels = [
        Label(x=x, y=y + (0.03 if y else -0.03), text=f"{slot} alone", above=y > 0) for slot, (x, y) in CORNERS.items()
    ]
    return [
        Figure(
            key="simplex",
            title=f"Shares of the three weights and {score}",
            caption="Where a run lies between the corners says how its weights of the terms ga, gd and gk share their "
            f"sum; the colour is its {score}, the ring the best run.",
            panels=[Panel(title="", x=PLAIN, y=PLAIN, series=[edge, points, *ring], labels=labels, bare=True)],
            identity=identity,
        )
    ]


def corner_mean(shares: Mapping[str, float]) -> tuple[float, float]:
    """The place between the corners that has these shares."""
    x, y = (sum(share * CORNERS[slot][axis] for slot, share in shares.items()) for axis in (0, 1))
    return x, y
