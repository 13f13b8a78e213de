"""What membership attacks see of each model: ROC curves, their areas with intervals, and the scores behind them."""

from collections.abc import Iterable, Sequence
from itertools import groupby

from unlearn_pl.report.figure import Axis, Bars, Figure, Guide, Line, Panel
from unlearn_pl.report.figures.documents import counted, histograms, sides_of
from unlearn_pl.report.figures.scales import BAR, RATE, identity_of
from unlearn_pl.report.run import Run

NAMES = {"loss": "Loss", "zlib": "Zlib", "min_k": "Min-K%", "min_k_pp": "Min-K%++", "reference": "Reference"}
UNITS = {
    "loss": "nats per token",
    "zlib": "nats per token and byte",
    "min_k": "nats per token",
    "min_k_pp": "standard deviations",
    "reference": "nats per token",
}
Sides = dict[str, list[float]]


def attack_figures(run: Run) -> list[Figure]:
    """Areas, curves, and one figure of scores an attack."""
    return [*areas(run), *curves(run), *scores(run)]


def areas(run: Run) -> list[Figure]:
    """The AUC of every attack on every model, with its interval."""
    attacks = _attacks(key for model in run.models.values() for key in model.results["scores"])
    bars, names = [], [NAMES.get(attack, attack) for attack in attacks]
    for name, model in run.models.items():
        found = [model.results["scores"].get(f"membership/{attack}/auc") or {} for attack in attacks]
        if any(one.get("value") is not None for one in found):
            value, low, high = ([one.get(part) for one in found] for part in ("value", "low", "high"))
            told = [f"{one.get('n', 0)} documents" for one in found]
            bars.append(Bars(name=name, categories=names, values=value, low=low, high=high, text=told))
    if not bars:
        return []
    half = Guide(at=0.5, name="one half")
    axis = Axis(title="AUC", limits=BAR.limits)
    panel = Panel(title="", x=Axis(title="attack", categories=names), y=axis, series=bars, guides=[half])
    return [
        Figure(
            key="attacks",
            title="How well membership attacks tell members apart",
            caption="Area under the ROC curve of every attack on every model, with 95 % intervals. At one half the "
            "attack tells nothing; above it members stand out, below it they stand out by being too unlikely.",
            panels=[panel],
            identity=identity_of(run),
        )
    ]


def curves(run: Run) -> list[Figure]:
    """The ROC curve of every attack on every model."""
    scored = _scored(run)
    share = Axis(title="false positive rate", limits=RATE)
    panels = []
    for attack, models in scored.items():
        drawn = {name: roc(*sides.values()) for name, sides in models.items() if all(sides.values())}
        lines = [Line(name=name, x=x, y=y) for name, (x, y) in drawn.items()]
        if lines:
            chance = Line(name="chance", x=[0, 1], y=[0, 1], dashed=True)
            axis = Axis(title="true positive rate", limits=RATE)
            panels.append(Panel(title=NAMES.get(attack, attack), x=share, y=axis, series=[*lines, chance]))
    if not panels:
        return []
    return [
        Figure(
            key="roc",
            title="ROC of every membership attack",
            caption=f"{counted(next(iter(scored.values())))} A curve on the diagonal tells members from non-members "
            "no better than chance.",
            panels=panels,
            identity=identity_of(run),
        )
    ]


def scores(run: Run) -> list[Figure]:
    """What every attack gives members and non-members: one figure an attack but for `loss`, whose scores are the
    log-probabilities."""
    found = []
    for attack, models in _scored(run).items():
        unit = UNITS.get(attack)
        panels = histograms(models, f"score ({unit})" if unit else "score")
        if attack != "loss" and panels:
            name = NAMES.get(attack, attack)
            caption = f"{counted(models)} The attack takes those of the higher score for members."
            title = f"Scores of the attack {name}"
            key = f"scores_{attack}"
            found.append(Figure(key=key, title=title, caption=caption, panels=panels, identity=identity_of(run)))
    return found


def _attacks(keys: Iterable[str]) -> list[str]:
    found = dict.fromkeys(key.split("/")[1] for key in keys if key.startswith("membership/") and key.endswith("/auc"))
    return list(found)


def _scored(run: Run) -> dict[str, dict[str, Sides]]:
    """Attack -> model -> scores of each side."""
    found: dict[str, dict[str, Sides]] = {}
    for name, model in run.models.items():
        for attack in dict.fromkeys(attack for row in model.documents for attack in row["attacks"]):
            rows = [(row["side"], row["attacks"].get(attack)) for row in model.documents]
            found.setdefault(attack, {})[name] = sides_of(rows)
    return found


def roc(members: Sequence[float], nonmembers: Sequence[float]) -> tuple[list[float], list[float]]:
    """False and true positive rates as the threshold falls, at the corners of the curve; equal scores are passed
    together, which makes a slope."""
    ranked = sorted([(-score, True) for score in members] + [(-score, False) for score in nonmembers])
    corners = [(0, 0)]
    for _, equal in groupby(ranked, lambda pair: pair[0]):
        sides = [member for _, member in equal]
        false, true = corners[-1][0] + sides.count(False), corners[-1][1] + sides.count(True)
        if len(corners) > 1 and _straight(corners[-2], corners[-1], (false, true)):
            corners.pop()
        corners.append((false, true))
    return [false / len(nonmembers) for false, _ in corners], [true / len(members) for _, true in corners]


def _straight(first: tuple[int, int], middle: tuple[int, int], last: tuple[int, int]) -> bool:
    """Whether three points are on one line."""
    across, up = middle[0] - first[0], middle[1] - first[1]
    return across * (last[1] - middle[1]) == up * (last[0] - middle[0])
