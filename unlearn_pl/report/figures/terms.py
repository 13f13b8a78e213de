"""Regurgitation and knowledge while a model is trained: Figure 2 of the ZJUKLAB paper."""

from collections.abc import Mapping, Sequence
from typing import Any

from unlearn_pl.report.figure import Figure, Line, Panel
from unlearn_pl.report.figures.scales import SCORE, STEP, identity_of
from unlearn_pl.report.run import Run


def term_figures(run: Run) -> list[Figure]:
    """One figure a fit that was scored while it trained."""
    drawn = {name: fit.evaluations for name, fit in run.fits.items() if fit.evaluations}
    return [terms(history, name, identity_of(run)) for name, history in drawn.items()]


def terms(history: Sequence[Mapping[str, Any]], name: str = "", identity: Mapping[str, str] | None = None) -> Figure:
    """The terms of the Task Aggregate over the steps of a fit, those of one task in one panel. A term is named by set,
    task (which may have a slash in its name) and kind: ``forget/Task1/regurgitation``."""
    panels: dict[str, list[Line]] = {}
    steps = [entry["step"] for entry in history]
    for term in dict.fromkeys(term for entry in history for term in entry["terms"]):
        split, _, rest = term.partition("/")
        task, _, kind = rest.rpartition("/")
        values = [entry["terms"].get(term) for entry in history]
        drawn = f"1 - {kind}" if split == "forget" else kind
        line = Line(name=f"{split}: {drawn}", x=steps, y=values, dashed=split == "forget", markers=True, colour=kind)
        panels.setdefault(task, []).append(line)
    of = f" of {name}" if name else ""
    return Figure(
        key=f"terms_{name}" if name else "evaluations",
        title=f"Regurgitation and knowledge during training{of}",
        caption="The terms of the Task Aggregate over the optimizer steps, by task; higher is better for all: what "
        "had to be forgotten (dashed) counts as one minus its score. Figure 2 of the ZJUKLAB paper.",
        panels=[Panel(title=task, x=STEP, y=SCORE, series=lines) for task, lines in panels.items()],
        identity=identity or {},
    )
