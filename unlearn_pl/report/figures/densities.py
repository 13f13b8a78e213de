"""Merge methods beside one another: scores over the density (Figure 5 of the ZJUKLAB paper), and by method."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from unlearn_pl.report.figure import Axis, Bars, Figure, Guide, Line, Panel
from unlearn_pl.report.figures.scales import AUC, BAR, SCORE, TERMS, identity_of
from unlearn_pl.report.run import Run

SIZES = {"defined": "", "normalised": ", common norm"}
"""Scale of a merge -> what is added to the name of a line."""
Rows = Sequence[Mapping[str, Any]]


def comparison_figures(run: Run) -> list[Figure]:
    """Over densities where there are several, and by method; of every comparison."""
    found, several = [], len(run.comparisons) > 1
    for name, comparison in run.comparisons.items():
        rows, end = comparison.found["methods"], f"_{name}" if several else ""
        if has_several(rows):
            found.append(densities(rows, f"densities{end}", identity_of(run)))
        if len({row["method"] for row in rows}) > 1:
            found.append(methods(rows, f"methods{end}", identity_of(run)))
    return found


def has_several(rows: Rows) -> bool:
    """Whether a method was tried at more than one density."""
    tried = [(row["method"], row["density"]) for row in rows if row["density"] is not None]
    return len(set(tried)) > len({method for method, _ in tried})


def densities(rows: Rows, key: str = "densities", identity: Mapping[str, str] | None = None) -> Figure:
    """One panel a method that was tried at several densities; dashed: at the common norm."""
    tried = {(row["method"], row["density"]): row["method"] for row in rows if row["density"] is not None}
    names = [method for method, count in Counter(tried.values()).items() if count > 1]
    half = Guide(at=0.5, name="best AUC")
    panels = [
        Panel(
            title=method,
            x=Axis(title="density (share of entries kept)"),
            y=SCORE,
            series=_lines([row for row in rows if row["method"] == method and row["density"] is not None]),
            guides=[half],
        )
        for method in names
    ]
    return Figure(
        key=key,
        title="Scores over the density of a merge",
        caption="Both adapters merged with equal weights at each density, at the scale that the method's definition "
        "gives; dashed: brought to the norm of the mean of both deltas. The AUC is best at one half, the others the "
        "higher. Figure 5 of the ZJUKLAB paper.",
        panels=panels,
        identity=identity or {},
    )


def _lines(rows: Rows) -> list[Line]:
    ordered = sorted(rows, key=lambda row: row["density"])
    return [
        Line(
            name=name + words,
            x=[row["density"] for row in ordered],
            y=[row[scale][score] for row in ordered],
            dashed=scale == "normalised",
            markers=True,
            colour=name,
        )
        for score, name in TERMS.items()
        for scale, words in SIZES.items()
    ]


def methods(rows: Rows, key: str = "methods", identity: Mapping[str, str] | None = None) -> Figure:
    """One panel a score, one pair of bars a method (and density)."""
    names = [_name(row) for row in rows]
    labels = {"defined": "as defined", "normalised": "at the common norm"}
    panels = []
    for score, title in TERMS.items():
        bars = [
            Bars(name=label, categories=names, values=[row[scale][score] for row in rows])
            for scale, label in labels.items()
        ]
        axis = Axis(title="AUC" if score == AUC else "score", limits=BAR.limits)
        half = [Guide(at=0.5, name="best AUC")] if score == AUC else []
        panels.append(Panel(title=title, x=Axis(title="", categories=names), y=axis, series=bars, guides=half))
    return Figure(
        key=key,
        title="Merge methods",
        caption="Both adapters merged with equal weights, at the scale that each method's definition gives and at the "
        "norm of the mean of both deltas: a difference that goes at one norm was one of size. Table 2 of the ZJUKLAB "
        "paper compares at the defined scales.",
        panels=panels,
        columns=2,
        identity=identity or {},
    )


def _name(row: Mapping[str, Any]) -> str:
    return row["method"] if row["density"] is None else f"{row['method']} {row['density']:g}"
