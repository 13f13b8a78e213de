"""How likely documents are under each model: Figure 1 of the ZJUKLAB paper, as measured."""

from collections.abc import Mapping, Sequence
from typing import Any

from unlearn_pl.report.figure import Axis, Figure, Histogram, Panel
from unlearn_pl.report.figures.scales import identity_of
from unlearn_pl.report.run import Run
from unlearn_pl.report.style import finite

SIDES = {"member": "members", "nonmember": "non-members"}
"""Side of a document -> its name in a figure."""
SHARE = Axis(title="share of documents")


def log_probabilities(run: Run) -> list[Figure]:
    """One panel a model, all over the same range."""
    models = {name: model.documents for name, model in run.models.items() if model.documents}
    values = {name: sides_of([(row["side"], row["logprob"]) for row in rows]) for name, rows in models.items()}
    panels = histograms(values, "mean log-probability (nats per token)")
    if not panels:
        return []
    return [
        Figure(
            key="log_probabilities",
            title="How likely members and non-members are",
            caption=f"{counted(values)} A model that remembers finds members likelier than documents that it never "
            "saw, one that forgot too much finds them less likely; after forgetting, both should lie alike. Figure 1 "
            "of the ZJUKLAB paper, as measured.",
            panels=panels,
            identity=identity_of(run),
        )
    ]


def sides_of(rows: Sequence[tuple[str, float | None]]) -> dict[str, list[float]]:
    """The numbers of each side that are there."""
    found: dict[str, list[float]] = {side: [] for side in SIDES}
    for side, value in rows:
        if (known := finite(value)) is not None:
            found[side].append(known)
    return found


def histograms(models: Mapping[str, Mapping[str, list[float]]], title: str) -> list[Panel]:
    """A panel for each model that has numbers of both sides."""
    drawn = {name: sides for name, sides in models.items() if all(sides.values())}
    numbers = [value for sides in drawn.values() for values in sides.values() for value in values]
    if not numbers:
        return []
    low, high = min(numbers), max(numbers)
    if high <= low:
        low, high = low - 0.5, high + 0.5
    axis = Axis(title=title, limits=(low, high))
    return [
        Panel(
            title=name,
            x=axis,
            y=SHARE,
            series=[Histogram(name=SIDES[side], values=values) for side, values in sides.items()],
        )
        for name, sides in drawn.items()
    ]


def counted(models: Mapping[str, Mapping[str, list[Any]]]) -> str:
    """How many documents were measured."""
    told = {" and ".join(f"{len(values)} {SIDES[side]}" for side, values in one.items()) for one in models.values()}
    return f"{told.pop()} under each model." if len(told) == 1 else "Members and non-members under each model."
