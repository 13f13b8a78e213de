"""What the membership attacks found, as scores and verdicts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from unlearn_pl.evaluation.entries import Scores
from unlearn_pl.metrics.intervals import Interval, auc_interval, membership_interval
from unlearn_pl.metrics.roc import (
    area_under_curve,
    broken,
    halves,
    membership_score,
    true_positive_rate,
    verdict,
)
from unlearn_pl.metrics.table import BY_NAME, Metric

# The interval of fewer documents than this is too wide, or not to be trusted, to judge by.
LEAST_DOCUMENTS = 10


@dataclass(frozen=True)
class Sides:
    """Scores of one attack."""

    members: Sequence[float]
    nonmembers: Sequence[float]

    @property
    def count(self) -> int:
        """Documents."""
        return len(self.members) + len(self.nonmembers)

    @property
    def broken(self) -> int:
        """Documents without a finite score."""
        return broken(self.members) + broken(self.nonmembers)

    @property
    def auc(self) -> float | None:
        """Area under the ROC curve, None from a broken model."""
        return None if self.broken else area_under_curve(self.members, self.nonmembers)

    def part(self, members: Sequence[int], nonmembers: Sequence[int]) -> "Sides":
        """The documents with these indices."""
        return Sides([self.members[i] for i in members], [self.nonmembers[i] for i in nonmembers])


def add_membership(
    scores: Scores, attacks: Mapping[str, Sides], members: Sequence[str], nonmembers: Sequence[str]
) -> None:
    """AUC of each attack, also by halves of the documents, what it finds at few false alarms, and its score."""
    parts = list(zip(halves(members), halves(nonmembers), strict=True))
    for attack, sides in attacks.items():
        if sides.broken:
            what = f"{sides.broken} of {sides.count} documents have no finite score"
            scores.notes.append(f"broken model: {attack} attack: {what}, so it has no AUC and no score")
            for figure in ("auc", "score"):
                scores.undefined(f"membership/{attack}/{figure}", *_metric(attack, figure))
            continue
        add_attack(scores, attack, sides, [sides.part(*part) for part in parts])
    few = [percent for percent in (1, 5) if len(nonmembers) * percent < 100]
    if attacks and few:
        named = " and ".join(f"tpr_at_{percent}_percent" for percent in few)
        scores.notes.append(f"no {named}: 1 % needs 100 non-members, 5 % needs 20, got {len(nonmembers)}")


def add_attack(scores: Scores, attack: str, sides: Sides, halves_of: Sequence[Sides]) -> None:
    """The figures of one attack."""

    def add(figure: str, value: float | None, n: int, interval: Interval = None) -> None:
        scores.add(f"membership/{attack}/{figure}", *_metric(attack, figure), value, n, interval)

    for figure, part in zip(("auc", "auc_calibration", "auc_holdout"), (sides, *halves_of), strict=True):
        if part.members and part.nonmembers:
            add(figure, part.auc, part.count, auc_interval(part.members, part.nonmembers, scores.resamples))
    for percent in (1, 5):
        figure = f"tpr_at_{percent}_percent"
        if len(sides.nonmembers) * percent < 100:  # not one false alarm is so rare
            scores.undefined(f"membership/{attack}/{figure}", *_metric(attack, figure))
        else:
            add(figure, true_positive_rate(sides.members, sides.nonmembers, percent / 100), sides.count)
    auc = scores.value(f"membership/{attack}/auc")
    assert auc is not None
    add("score", membership_score(auc), sides.count, membership_interval(scores.interval(f"membership/{attack}/auc")))


def _metric(attack: str, figure: str) -> tuple[Metric, str]:
    metric = BY_NAME[f"membership/{attack}/{figure}"]
    return metric, metric.better


def verdicts(scores: Scores, attacks: Mapping[str, Sides]) -> dict[str, str]:
    """Attack -> whether its AUC shows a leak, if there are enough documents on either side for an interval."""
    found = {}
    for attack, sides in attacks.items():
        documents = min(len(sides.members), len(sides.nonmembers))
        auc, interval = scores.value(f"membership/{attack}/auc"), scores.interval(f"membership/{attack}/auc")
        if auc is None:
            found[attack] = f"broken model: {sides.broken} of {sides.count} documents have no finite loss"
        elif documents < LEAST_DOCUMENTS or interval is None:
            found[attack] = f"no verdict: it needs {LEAST_DOCUMENTS} documents on either side, got {documents}"
        else:
            found[attack] = verdict(auc, *interval)
    return found
