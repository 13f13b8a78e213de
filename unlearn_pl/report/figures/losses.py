"""Losses while models are trained, by term and in total: Figure 3 of the ZJUKLAB paper."""

from collections.abc import Mapping, Sequence
from typing import Any

from unlearn_pl.report.figure import Axis, Figure, Line, Panel
from unlearn_pl.report.figures.scales import STEP, identity_of
from unlearn_pl.report.run import Fit, Run

TOTAL = "loss"
NATS = Axis(title="loss (nats)")
Curves = Mapping[str, Sequence[tuple[int, float]]]


def loss_figures(run: Run) -> list[Figure]:
    """All fits of a run beside one another."""
    fits = {name: fit for name, fit in run.fits.items() if terms_of(fit.losses)}
    if not fits:
        return []
    return [losses({name: fit.losses for name, fit in fits.items()}, titles_of(fits.values()), identity_of(run))]


def losses(
    fits: Mapping[str, Curves], titles: Mapping[str, str] | None = None, identity: Mapping[str, str] | None = None
) -> Figure:
    """The unweighted terms and their weighted sum over the steps, one panel each; ``fits`` is name -> column of
    `metrics.csv` -> points (step, value), ``titles`` the meaning of a term's name."""
    names = dict.fromkeys(term for curves in fits.values() for term in terms_of(curves))
    ordered = sorted(names, key=lambda term: term == TOTAL)
    panels = []
    for term in ordered:
        lines = [line for name, curves in fits.items() for line in _lines(name, term, curves)]
        title = "total (weighted sum)" if term == TOTAL else (titles or {}).get(term, term)
        panels.append(Panel(title=title, x=STEP, y=NATS, series=lines))
    return Figure(
        key="losses",
        title="Loss by term and in total",
        caption="Each term without its weight, and the weighted sum that is minimised, over the optimizer steps; a "
        "fit without a term has no line in its panel. Figure 3 of the ZJUKLAB paper.",
        panels=panels,
        identity=identity or {},
    )


def terms_of(curves: Curves) -> list[str]:
    """Names of the terms that a fit's columns hold (``ga`` of ``train/ga``), and `loss`, their sum."""
    names = [column.removeprefix("train/") for column in curves if column.startswith("train/") and curves[column]]
    return [name for name in names if not name.endswith("_weighted")]


def titles_of(fits: Any) -> dict[str, str]:
    """What each term is, from the configurations: ``ga`` -> ``ga: NPO``."""
    classes: dict[str, dict[str, None]] = {}
    for fit in fits:
        for term, given in _objectives(fit).items():
            if isinstance(given, Mapping) and isinstance(given.get("class_path"), str):
                classes.setdefault(str(term), {})[given["class_path"].rsplit(".", 1)[-1]] = None
    return {term: f"{term}: {' or '.join(found)}" for term, found in classes.items()}


def _objectives(fit: Fit) -> Mapping[str, Any]:
    model = (fit.config or {}).get("model")
    given = model.get("objectives") if isinstance(model, Mapping) else None
    return given if isinstance(given, Mapping) else {}


def _lines(name: str, term: str, curves: Curves) -> list[Line]:
    """The loss in training, and on the validation rows where it was measured."""
    found = []
    for column, label in ((f"train/{term}", name), (f"val/{term}", f"{name}, validation")):
        if points := curves.get(column):
            steps, values = zip(*points, strict=True)
            held = column.startswith("val/")
            found.append(Line(name=label, x=steps, y=values, dashed=held, markers=held, colour=name))
    return found
