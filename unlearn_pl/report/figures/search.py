"""The path of a balance search: what each merge that it tried gave, and which it chose."""

from collections.abc import Mapping, Sequence
from typing import Any

from unlearn_pl.metrics.headline import HEADLINE
from unlearn_pl.report.figure import Axis, Figure, Guide, Line, Panel, Points
from unlearn_pl.report.figures.scales import AGGREGATE, CHOICE, RATE, SCORE, TASK, identity_of
from unlearn_pl.report.run import Run

MIX = Axis(title="share of the under-forgetting adapter", limits=RATE)
Tried = Sequence[Mapping[str, Any]]


def search_figures(run: Run) -> list[Figure]:
    """One figure a search."""
    return [search(one.found, name, identity_of(run)) for name, one in run.searches.items()]


def search(found: Mapping[str, Any], name: str = "", identity: Mapping[str, str] | None = None) -> Figure:
    """``found`` is a `balance.json`: the calibration AUC over the coefficient, one line a method, scale and density;
    and the scores of the points where all was measured."""
    chosen, counts = found["chosen"], found["documents"]
    low, high = found["holdout_interval"]
    held = Points(
        name="chosen, held-out half",
        x=[chosen["mix"]],
        y=[found["holdout_auc"]],
        low=[low],
        high=[high],
        colour="chosen",
    )
    ring = Points(name="chosen", x=[chosen["mix"]], y=[chosen["calibration_auc"]], ringed=True, text=[_told(chosen)])
    half = Guide(at=0.5, name="one half")
    auc = Axis(title="membership AUC", limits=SCORE.limits)
    rays = Panel(title="calibration half", x=MIX, y=auc, series=[*_rays(found["path"]), ring, held], guides=[half])
    scored = [point for point in found["path"] if point[TASK] is not None]
    best = Points(name="chosen", x=[chosen["mix"]], y=[chosen["aggregate_calibration"]], ringed=True)
    kinds = {TASK: TASK, CHOICE: CHOICE, AGGREGATE: "aggregate_calibration"}
    points = [_scores(scored, HEADLINE[score], key) for score, key in kinds.items()]
    scores = Panel(title="merges that were scored", x=MIX, y=SCORE, series=[*points, best])
    return Figure(
        key=f"balance_{name}" if name else "balance",
        title=f"Balance search {name}".rstrip(),
        caption=f"Left: membership AUC on the calibration half ({_documents(counts, 'calibration')}) of every merge "
        f"that was tried; at one half the merge is balanced. The held-out half ({_documents(counts, 'holdout')}) took "
        "no part in the choice; the bar is its 95 % interval. Right: the scores of the merges that came near one half.",
        panels=[rays, scores],
        columns=2,
        identity=identity or {},
    )


def _documents(counts: Mapping[str, Any], half: str) -> str:
    members, others = counts[half]
    return f"{members} members, {others} non-members"


def _rays(path: Tried) -> list[Line]:
    """The points of a method, scale and density, by coefficient; those with offsets of a module are on no line."""
    rays: dict[str, list[Mapping[str, Any]]] = {}
    for point in path:
        density = "" if point["density"] is None else f", density {point['density']:g}"
        if not point["shifts"]:
            rays.setdefault(f"{point['method']}, scale {point['scale']:g}{density}", []).append(point)
    found = []
    for name, points in rays.items():
        ordered = sorted(points, key=lambda point: point["mix"])
        x, y = ([point[key] for point in ordered] for key in ("mix", "calibration_auc"))
        found.append(Line(name=name, x=x, y=y, markers=True))
    return found


def _scores(points: Tried, name: str, key: str) -> Points:
    told = [_told(point) for point in points]
    return Points(name=name, x=[point["mix"] for point in points], y=[point[key] for point in points], text=told)


def _told(point: Mapping[str, Any]) -> str:
    density = "" if point["density"] is None else f", density {point['density']:g}"
    return f"{point['method']}, scale {point['scale']:g}{density}"
