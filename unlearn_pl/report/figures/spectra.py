"""How large the update of every adapter is by layer, and how many directions it has: exact from the factors."""

from collections.abc import Mapping
from typing import Any

from unlearn_pl.report.figure import Axis, Figure, Line, Panel
from unlearn_pl.report.figures.scales import identity_of, layer_axis, layers_of
from unlearn_pl.report.run import Fit, Merge, Run

MEASURES = {
    "norm": ("norm of the update", Axis(title="Frobenius norm")),
    "stable_rank": ("stable rank of the update", Axis(title="stable rank")),
}
VALUES = 64
"""Singular values of a layer that are drawn, the largest."""


def spectrum_figures(run: Run) -> list[Figure]:
    """Norm and stable rank of all adapters beside one another, and the singular values of each."""
    parts: dict[str, Fit | Merge] = {**run.fits, **run.merges, **run.searches}
    reports = {name: part.spectrum for name, part in parts.items() if part.spectrum and part.spectrum["layers"]}
    if not reports:
        return []
    identity = identity_of(run)
    return [_sizes(reports, identity), _values(reports, identity)]


def _sizes(reports: Mapping[str, Mapping[str, Any]], identity: Mapping[str, str]) -> Figure:
    layers = layers_of(list(reports.values()))
    panels = []
    for key, (title, axis) in MEASURES.items():
        lines = [
            Line(name=name, x=layers, y=[report["layers"].get(one, {}).get(key) for one in layers], markers=True)
            for name, report in reports.items()
        ]
        panels.append(Panel(title=title, x=layer_axis(layers), y=axis, series=lines))
    return Figure(
        key="updates",
        title="Size and stable rank of every update by layer",
        caption="Of the weight delta of each adapter, over all modules of a layer. The stable rank is the squared "
        "Frobenius norm over the squared largest singular value: about how many directions the update has.",
        panels=panels,
        columns=2,
        identity=identity,
    )


def _values(reports: Mapping[str, Mapping[str, Any]], identity: Mapping[str, str]) -> Figure:
    panels = [
        Panel(
            title=name,
            x=Axis(title="rank of the singular value"),
            y=Axis(title="singular value", logarithmic=True),
            series=[_line(layer, found) for layer, found in report["layers"].items()],
        )
        for name, report in reports.items()
    ]
    return Figure(
        key="spectra",
        title="Singular values of every update by layer",
        caption=f"Of the weight delta of each adapter, all modules of a layer together, the largest first (at most "
        f"{VALUES}); values of zero have no place on the scale.",
        panels=panels,
        identity=identity,
    )


def _line(layer: str, found: Mapping[str, Any]) -> Line:
    values = [value if value and value > 0 else None for value in found["singular_values"][:VALUES]]
    shade = float(layer) if layer.isdigit() else None
    return Line(name=f"layer {layer}", x=range(1, len(values) + 1), y=values, shade=shade, shade_title="layer")
