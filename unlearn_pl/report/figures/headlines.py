"""The five scores that stand for a model: models beside one another, with intervals."""

from collections.abc import Mapping, Sequence
from typing import Any

from unlearn_pl.report.figure import Axis, Bars, Figure, Guide, Panel
from unlearn_pl.report.figures.scales import BAR, identity_of
from unlearn_pl.report.run import Run
from unlearn_pl.report.scores import COLUMNS, headline_cell

CAPTION = "The thin lines at the ends of bars are 95 % intervals; a dash is a score that was not measured. Higher is "
CAPTION += "better, but for the MIA AUC, which is best at one half (dotted)."
HALF = Guide(at=0.5, name="best MIA AUC")


def headline_figures(run: Run) -> list[Figure]:
    """One group of bars a score."""
    if not run.models:
        return []
    return [headlines({name: model.results for name, model in run.models.items()}, identity_of(run))]


def headlines(models: Mapping[str, Mapping[str, Any]], identity: Mapping[str, str] | None = None) -> Figure:
    """``models`` is name -> `results.json`, or the five scores of it."""
    panel = Panel(
        title="",
        x=Axis(title="", categories=list(COLUMNS)),
        y=BAR,
        series=[
            _bars(name, list(COLUMNS), [(results, key) for key in COLUMNS.values()]) for name, results in models.items()
        ],
        guides=[HALF],
    )
    return Figure(
        key="scores",
        title="Scores of the models",
        caption=CAPTION,
        panels=[panel],
        identity=identity or {},
    )


def across_runs(runs: Sequence[Run]) -> list[Figure]:
    """One panel a score, one group of bars a model that at least two runs have, one bar a run."""
    names = [name for run in runs for name in run.models]
    shared = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if not shared:
        return []
    panels = []
    for title, key in COLUMNS.items():
        bars = [
            _bars(run.name, shared, [(run.models[one].results if one in run.models else {}, key) for one in shared])
            for run in runs
            if set(shared) & set(run.models)
        ]
        guides = [HALF] if title == "MIA AUC" else []
        panels.append(Panel(title=title, x=Axis(title="", categories=shared), y=BAR, series=bars, guides=guides))
    return [
        Figure(
            key="runs_scores",
            title="Scores of several runs",
            caption=CAPTION,
            panels=panels,
            identity={"runs": ", ".join(run.name for run in runs)},
        )
    ]


def _bars(name: str, categories: Sequence[str], places: Sequence[tuple[Mapping[str, Any], str]]) -> Bars:
    cells = [headline_cell(results, key) for results, key in places]
    return Bars(
        name=name,
        categories=categories,
        values=[cell.value for cell in cells],
        low=[cell.low for cell in cells],
        high=[cell.high for cell in cells],
        text=["" if cell.n is None else f"n = {cell.n}" for cell in cells],
    )
