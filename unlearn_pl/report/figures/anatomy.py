"""What a merge met in its adapters, by layer: opposite signs, mass that it dropped, and how they point."""

from collections.abc import Mapping
from typing import Any

from unlearn_pl.report.figure import Axis, Figure, Guide, Line, Panel
from unlearn_pl.report.figures.scales import identity_of, layer_axis, layers_of
from unlearn_pl.report.run import Run

MEASURES = {
    "sign_conflict": ("sign conflict", Axis(title="share of entries", limits=(0.0, 1.03))),
    "trimmed_mass": ("trimmed mass", Axis(title="share of mass", limits=(0.0, 1.03))),
    "cosine": ("cosine of the two deltas", Axis(title="cosine", limits=(-1.05, 1.05))),
}


def anatomy_figures(run: Run) -> list[Figure]:
    """All merges of a run beside one another; dashed: all layers together."""
    merges = {**run.merges, **run.searches}
    reports = {name: merge.anatomy for name, merge in merges.items() if merge.anatomy}
    layers = layers_of(list(reports.values()))
    if not layers:
        return []
    return [
        Figure(
            key="anatomy",
            title="Sign conflict, trimmed mass and direction by layer",
            caption="What each merge met in its adapters, in what its method merges (the factors A and B, or the "
            "deltas): of the entries that two adapters have after pruning, the share whose signs differ; the share of "
            "the sum of magnitudes that pruning dropped (no line for a method that does not prune). And the cosine of "
            "the two deltas, whatever the method merges. Dashed: all layers together.",
            panels=[
                Panel(
                    title=title,
                    x=layer_axis(layers),
                    y=axis,
                    series=[line for name, report in reports.items() for line in _lines(name, report, key, layers)],
                    guides=[Guide(at=0)] if key == "cosine" else [],
                )
                for key, (title, axis) in MEASURES.items()
                if any(report["overall"][key] is not None for report in reports.values())
            ],
            identity=identity_of(run),
        )
    ]


def _lines(name: str, report: Mapping[str, Any], key: str, layers: list[str]) -> list[Line]:
    if report["overall"][key] is None:
        return []
    values = [report["layers"].get(layer, {}).get(key) for layer in layers]
    overall = [report["overall"][key]] * len(layers)
    return [
        Line(name=name, x=layers, y=values, markers=True),
        Line(name=f"{name}, all layers", x=layers, y=overall, dashed=True, colour=name),
    ]
