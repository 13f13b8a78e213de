"""The pictures of a run: loss terms, scores while training, angles, and the scores of a recipe, as PNG files.

Every function takes numbers and a path, and writes one file; matplotlib draws without a screen.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from unlearn_pl.metrics.headline import HEADLINE

PANEL = (4.4, 3.2)
TASK, AUC, SCORE, CHOICE, AGGREGATE = HEADLINE
COLUMNS = {"Task Aggregate": TASK, "MIA AUC": AUC, "MIA score": SCORE, "MMLU": CHOICE, "Aggregate": AGGREGATE}
MERGED = {"TA": TASK, "AUC": AUC, "MMLU": CHOICE, "Aggregate": AGGREGATE}


@contextmanager
def panels(path: str | Path, count: int, columns: int = 3) -> Iterator[Any]:
    """Axes of ``count`` panels; the file is written, under a temporary name first, when the block ends."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for unused in axes[count:]:
        unused.set_visible(False)
    yield axes[:count]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    # without the software's version the same numbers give the same bytes
    figure.savefig(temporary, format="png", dpi=120, metadata={"Software": None})
    temporary.replace(path)


def plot_losses(runs: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]], path: str | Path) -> None:
    """Figure 3 of the ZJUKLAB paper: the unweighted loss terms (nats) over optimizer steps, one panel a term.

    ``runs`` is run name -> term -> points (step, value).
    """
    terms = list(dict.fromkeys(term for curves in runs.values() for term in curves))
    with panels(path, len(terms)) as axes:
        for axis, term in zip(axes, terms, strict=True):
            for name, curves in runs.items():
                axis.plot(*zip(*curves.get(term, [(0, float("nan"))]), strict=True), label=name, linewidth=1)
            axis.set(title=term, xlabel="optimizer step", ylabel="nats")
            axis.legend()


class Curve(NamedTuple):
    """A score in [0, 1] over optimizer steps."""

    panel: str
    """Title of the panel that it is drawn in."""
    label: str
    points: Sequence[tuple[int, float | None]]
    """(step, score), None for a step at which it says nothing."""
    dashed: bool = False


def plot_terms(curves: Sequence[Curve], path: str | Path) -> None:
    """Figure 2 of the ZJUKLAB paper: the terms of the Task Aggregate over optimizer steps, higher is better."""
    titles = list(dict.fromkeys(curve.panel for curve in curves))
    with panels(path, len(titles)) as axes:
        for axis, title in zip(axes, titles, strict=True):
            for curve in (one for one in curves if one.panel == title):
                known = [(step, float("nan") if score is None else score) for step, score in curve.points]
                axis.plot(*zip(*known, strict=True), "--" if curve.dashed else "-", label=curve.label)
            axis.set(title=title, xlabel="optimizer step", ylabel="score", ylim=(-0.03, 1.03))
            axis.legend(fontsize="small")


def plot_angles(report: Mapping[str, Any], path: str | Path) -> None:
    """Figure 4 of the ZJUKLAB paper: the three angles by layer, one panel a space; dashed: over all layers."""
    start, pivot, final = report["steps"]
    names = {
        "before_after": f"{start}→{pivot} to {pivot}→{final}",
        "before_total": f"{start}→{pivot} to {start}→{final}",
        "after_total": f"{pivot}→{final} to {start}→{final}",
    }
    with panels(path, 2) as axes:
        for axis, space in zip(axes, ("factors", "delta"), strict=True):
            layers = report[space]["layers"]
            for colour, (key, label) in enumerate(names.items()):
                values = [layer["angles"][key] for layer in layers.values()]
                axis.plot(
                    list(layers),
                    [float("nan") if v is None else v for v in values],
                    "o-",
                    label=label,
                    color=f"C{colour}",
                )
                overall = report[space]["overall"]["angles"][key]
                if overall is not None:
                    axis.axhline(overall, color=f"C{colour}", linestyle="--", linewidth=0.8)
            axis.set(title=f"{space} space", xlabel="layer", ylabel="degrees")
            axis.legend(fontsize="small")


def plot_scores(models: Mapping[str, Mapping[str, Any]], path: str | Path) -> None:
    """The scores of a recipe's models side by side, each in [0, 1]; a score without data has no bar."""
    width = 0.8 / len(models)
    with panels(path, 1) as axes:
        for place, (name, scores) in enumerate(models.items()):
            heights = [scores[key] or 0.0 for key in COLUMNS.values()]
            axes[0].bar([i + (place + 0.5) * width - 0.4 for i in range(len(COLUMNS))], heights, width, label=name)
        axes[0].set(xticks=range(len(COLUMNS)), ylim=(0, 1.05), ylabel="score")
        axes[0].set_xticklabels(list(COLUMNS), rotation=20, ha="right")
        axes[0].legend(fontsize="small")


def plot_balance(found: Mapping[str, Any], path: str | Path) -> None:
    """A balance search (``found`` is its `balance.json`): the calibration AUC over the coefficient, one line a method,
    density and scale; and the scores of the points where all was measured. The chosen point is ringed."""
    rays: dict[str, list[Mapping[str, Any]]] = {}
    for point in found["path"]:
        density = "" if point["density"] is None else f", density {point['density']:g}"
        if not point["shifts"]:
            rays.setdefault(f"{point['method']}, scale {point['scale']:g}{density}", []).append(point)
    chosen = found["chosen"]
    with panels(path, 2) as axes:
        for label, points in rays.items():
            points.sort(key=lambda point: point["mix"])
            axes[0].plot([p["mix"] for p in points], [p["calibration_auc"] for p in points], ".-", label=label)
        axes[0].axhline(0.5, color="black", linewidth=0.8)
        axes[0].plot(chosen["mix"], chosen["calibration_auc"], "ko", fillstyle="none", markersize=10)
        axes[0].set(title="calibration half", ylabel="membership AUC", ylim=(-0.03, 1.03))
        scored = [point for point in found["path"] if point[TASK] is not None]
        for name, key in ((TASK, TASK), (CHOICE, CHOICE), (AGGREGATE, "aggregate_calibration")):
            kept = [point for point in scored if point[key] is not None]
            axes[1].plot([p["mix"] for p in kept], [p[key] for p in kept], "o", label=HEADLINE[name])
        axes[1].plot(chosen["mix"], chosen["aggregate_calibration"], "ko", fillstyle="none", markersize=10)
        axes[1].set(title="scored points", ylabel="score", ylim=(-0.03, 1.03))
        for axis in axes:
            axis.set(xlabel="share of the under-forgetting adapter")
            axis.legend(fontsize="x-small")


def plot_densities(rows: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Figure 5 of the ZJUKLAB paper: scores over the density, one panel a method; dashed: at the common norm."""
    methods = list(dict.fromkeys(row["method"] for row in rows if row["density"] is not None))
    with panels(path, max(len(methods), 1)) as axes:
        for axis, method in zip(axes, methods, strict=False):
            points = sorted((row for row in rows if row["method"] == method), key=lambda row: row["density"])
            for colour, (name, key) in enumerate(MERGED.items()):
                for scale, line in (("defined", "o-"), ("normalised", "o--")):
                    values = [float("nan") if row[scale][key] is None else row[scale][key] for row in points]
                    label = name if scale == "defined" else None
                    axis.plot([row["density"] for row in points], values, line, color=f"C{colour}", label=label)
            axis.set(title=method, xlabel="density", ylabel="score", ylim=(-0.03, 1.03))
            axis.legend(fontsize="small")
