"""How much personal data each model gives away, by type."""

from collections.abc import Iterable
from typing import Any

from unlearn_pl.report.figure import Axis, Bars, Figure, Panel
from unlearn_pl.report.figures.scales import identity_of
from unlearn_pl.report.run import Model, Run

NAMES = {"birth_date": "birth date", "ssn": "SSN", "phone": "phone", "email": "e-mail", "address": "address"}
KINDS = {"whole": "whole value", "partial": "longest part"}
SHARES = {"whole": "share of people", "partial": "share of the value"}


def leakage_figures(run: Run) -> list[Figure]:
    """One panel a set and measure."""
    keys = {key: None for model in run.models.values() for key in model.results["scores"] if "/pii/" in key}
    splits = list(dict.fromkeys(key.partition("/pii/")[0] for key in keys))
    types = list(dict.fromkeys(key.partition("/pii/")[2].split("/")[0] for key in keys))
    panels = [
        panel
        for split in splits
        for kind in KINDS
        if (panel := _panel(run.models.items(), split, kind, types)) is not None
    ]
    if not panels:
        return []
    return [
        Figure(
            key="leakage",
            title="Personal data that is given away, by type",
            caption="Share of people whose value stands whole in some text about them, and how much of the value its "
            "longest part found there is; on hover how much of it another person's texts hold, which is chance. No "
            "intervals are computed for these. Lower is better on the forget set.",
            panels=panels,
            columns=2,
            identity=identity_of(run),
        )
    ]


def _panel(models: Iterable[tuple[str, Model]], split: str, kind: str, types: list[str]) -> Panel | None:
    names = [NAMES.get(one, one) for one in types]
    bars = []
    for name, model in models:
        scores = [model.results["scores"].get(f"{split}/pii/{one}/{kind}") or {} for one in types]
        values = [score.get("value") for score in scores]
        if any(value is not None for value in values):
            told = [_told(model, f"{split}/pii/{one}", kind, score) for one, score in zip(types, scores, strict=True)]
            low, high = ([score.get(end) for score in scores] for end in ("low", "high"))
            bars.append(Bars(name=name, categories=names, values=values, low=low, high=high, text=told))
    if not bars:
        return None
    axis = Axis(title=SHARES[kind], limits=(0.0, 1.03))
    return Panel(title=f"{split} set: {KINDS[kind]}", x=Axis(title="", categories=names), y=axis, series=bars)


def _told(model: Model, key: str, kind: str, score: dict[str, Any]) -> str:
    chance = model.results["scores"].get(f"{key}/partial_of_others") if kind == "partial" else None
    words = f"{score.get('n', 0)} people"
    return words if not chance or chance["value"] is None else f"{words}; of others {chance['value']:.3g}"
