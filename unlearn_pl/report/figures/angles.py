"""The angles between directions of training before and after a pivot step: Figure 4 of the ZJUKLAB paper."""

from collections.abc import Mapping, Sequence
from typing import Any

from unlearn_pl.report.figure import Axis, Figure, Guide, Line, Number, Panel
from unlearn_pl.report.figures.scales import identity_of, layer_axis
from unlearn_pl.report.run import Run

ANGLES = {"before_after": "before to after", "before_total": "before to total", "after_total": "after to total"}
SPACES = {"factors": "LoRA factors", "delta": "weight delta"}
RIGHT = Guide(at=90, name="right angle")


def angle_figures(run: Run) -> list[Figure]:
    """By layer, and over the pivots where there are several; for every fit that has any."""
    found = []
    for name, fit in run.fits.items():
        if fit.angles:
            found.append(angles(fit.angles, name, identity_of(run)))
        if len(fit.angles) > 1:
            found.append(pivots(fit.angles, name, identity_of(run)))
    return found


def angles(reports: Sequence[Mapping[str, Any]], name: str = "", identity: Mapping[str, str] | None = None) -> Figure:
    """The three angles by layer, one panel a pivot and space; dashed: of all layers together."""
    panels = [_panel(report, space) for report in reports for space in SPACES]
    of = f" of {name}" if name else ""
    return Figure(
        key=f"angles_{name}" if name else "angles",
        title=f"Angles between directions of training{of}",
        caption="Between the displacements of the adapter's weights before the pivot step, after it, and in total, by "
        "layer; dashed: all layers together. At a right angle the later direction neither goes on nor turns back. "
        "Figure 4 of the ZJUKLAB paper.",
        panels=panels,
        columns=2,
        identity=identity or {},
    )


def pivots(reports: Sequence[Mapping[str, Any]], name: str = "", identity: Mapping[str, str] | None = None) -> Figure:
    """The angles of all layers together over the pivot step, one panel a space."""
    ordered = sorted(reports, key=lambda report: report["steps"][1])
    steps = [report["steps"][1] for report in ordered]
    panels = []
    for space, title in SPACES.items():
        values = {key: [report[space]["overall"]["angles"][key] for report in ordered] for key in ANGLES}
        lines = [Line(name=ANGLES[key], x=steps, y=values[key], markers=True) for key in ANGLES]
        axis = Axis(title="pivot (optimizer step)")
        panels.append(Panel(title=title, x=axis, y=_degrees(values.values()), series=lines, guides=[RIGHT]))
    of = f" of {name}" if name else ""
    return Figure(
        key=f"pivots_{name}" if name else "pivots",
        title=f"Angles over the pivot step{of}",
        caption="Between the displacements before and after each pivot step and in total, all layers together.",
        panels=panels,
        columns=2,
        identity=identity or {},
    )


def _panel(report: Mapping[str, Any], space: str) -> Panel:
    start, pivot, end = report["steps"]
    layers, overall = report[space]["layers"], report[space]["overall"]["angles"]
    lines, values = [], {key: [layer["angles"][key] for layer in layers.values()] for key in ANGLES}
    for key, label in ANGLES.items():
        lines.append(Line(name=label, x=list(layers), y=values[key], markers=True))
    for key, label in ANGLES.items():
        constant = [overall[key]] * len(layers)
        lines.append(Line(name=f"{label}, all layers", x=list(layers), y=constant, dashed=True, colour=label))
    return Panel(
        title=f"{SPACES[space]}: {start} → {pivot} → {end}",
        x=layer_axis(list(layers)),
        y=_degrees([*values.values(), list(overall.values())]),
        series=lines,
        guides=[RIGHT],
    )


def _degrees(values: Any) -> Axis:
    """From 0 to the next 30 degrees above all, past the right angle."""
    known: list[Number] = [value for row in values for value in row if value is not None]
    most = max([100.0, *(value for value in known if value is not None)])
    return Axis(title="angle (degrees)", limits=(0.0, min(30.0 * -(-most // 30), 180.0)))
