"""The axes that several figures have, and what a file says of the run that it shows."""

from collections.abc import Mapping, Sequence
from typing import Any

from unlearn_pl.metrics.headline import HEADLINE
from unlearn_pl.report.figure import Axis
from unlearn_pl.report.run import Run

STEP = Axis(title="optimizer step")
SCORE = Axis(title="score", limits=(-0.03, 1.03))
BAR = Axis(title="score", limits=(0.0, 1.03))
RATE = (-0.02, 1.02)
TASK, AUC, MEMBERSHIP, CHOICE, AGGREGATE = HEADLINE
TERMS = {TASK: "Task Aggregate", AUC: "MIA AUC", CHOICE: "MMLU", AGGREGATE: "Aggregate"}
"""Scores of a merge -> name, as the paper's tables and figures have it."""


def layer_axis(names: Sequence[str]) -> Axis:
    """The layers of a model, in order; what is in none is `other`."""
    return Axis(title="layer", categories=list(names))


def layers_of(reports: Sequence[Mapping[str, Any]]) -> list[str]:
    """The layers that any of several reports has, `other` last."""
    names = {name for report in reports for name in report["layers"]}
    return sorted(names, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name))


def identity_of(run: Run) -> dict[str, str]:
    """Name, version, commit and seed of a run, as far as its files say."""
    sources: list[Mapping[str, Any] | None] = [run.summary]
    sources += [model.results.get("provenance") for model in run.models.values()]
    sources += [fit.adapter for fit in run.fits.values()]
    sources += [search.found.get("provenance") for search in run.searches.values()]
    sources += [comparison.found.get("provenance") for comparison in run.comparisons.values()]
    return identity(run.name, next((source for source in sources if source), {}))


def identity(name: str | None, facts: Mapping[str, Any]) -> dict[str, str]:
    """Name of a run, if it has one, with what is known of its origin; ``facts`` is a file's provenance."""
    versions = facts.get("versions") or {}
    known = {"run": name, "commit": facts.get("commit"), "seed": facts.get("seed")}
    known["unlearn_pl"] = versions.get("unlearn_pl")
    return {key: str(value) for key, value in known.items() if value is not None}
