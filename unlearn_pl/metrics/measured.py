"""All that was measured of one model, before scores are made of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean
from typing import Any

from unlearn_pl.metrics.intervals import Interval, auc_interval
from unlearn_pl.metrics.roc import area_under_curve, broken, halves
from unlearn_pl.metrics.sample import Sample
from unlearn_pl.metrics.truth_ratio import AnswerLogprobs, Definition


@dataclass(frozen=True)
class RetrainedScores:
    """What other scores are compared with, of a model that never saw what had to be forgotten."""

    truth: Mapping[str, Sequence[AnswerLogprobs]]
    """Set -> log probabilities of each row's answers."""
    auc: Mapping[str, float | None]
    """Attack -> AUC."""


@dataclass(frozen=True)
class Sides:
    """Scores of one membership attack, higher for a likelier member."""

    members: Sequence[float]
    nonmembers: Sequence[float]
    resamples: int = 1000

    @property
    def count(self) -> int:
        """Documents."""
        return len(self.members) + len(self.nonmembers)

    @property
    def broken(self) -> int:
        """Documents without a finite score."""
        return broken(self.members) + broken(self.nonmembers)

    @cached_property
    def auc(self) -> float | None:
        """Area under the ROC curve, None from a broken model."""
        return None if self.broken else area_under_curve(self.members, self.nonmembers)

    @cached_property
    def interval(self) -> Interval:
        """The 95 % interval of the AUC, None from a broken model and where nothing can be said."""
        return None if self.broken else auc_interval(self.members, self.nonmembers, self.resamples)

    def part(self, members: Sequence[int], nonmembers: Sequence[int]) -> "Sides":
        """The documents with these indices."""
        return Sides([self.members[i] for i in members], [self.nonmembers[i] for i in nonmembers], self.resamples)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured of one model. What was not is empty, or None."""

    samples: Sequence[Sample] = ()
    attacks: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Attack -> score of each member, then of each non-member."""
    members: Sequence[str] = ()
    nonmembers: Sequence[str] = ()
    choice: Mapping[str, Any] | None = None
    """What ``answer_choices`` gives: ``right`` (of each question, None from a broken model), accuracies, counts."""
    truth: Mapping[str, Sequence[AnswerLogprobs]] = field(default_factory=dict)
    """Set -> log probabilities of each row's answers."""
    definition: Definition = "tofu_code"
    """Of the truth ratio."""
    retrained: RetrainedScores | None = None
    found: Mapping[str, Any] = field(default_factory=dict)
    """What the requests of further metrics gave, by name of the metric."""
    resamples: int = 1000
    """Resamples of the bootstrap behind intervals."""

    @cached_property
    def sides(self) -> dict[str, Sides]:
        """Attack -> scores of the members and of the non-members."""
        count = len(self.members)
        return {name: Sides(all[:count], all[count:], self.resamples) for name, all in self.attacks.items()}

    @cached_property
    def halves(self) -> list[tuple[list[int], list[int]]]:
        """Indices of members and non-members to calibrate an attack on, and of those held out."""
        return list(zip(halves(self.members), halves(self.nonmembers), strict=True))

    @cached_property
    def roles(self) -> dict[str, str]:
        """Set -> its role, of the sets that have rows."""
        return {sample.split: sample.role for sample in self.samples}

    def role(self, split: str) -> str:
        """The role of a set; its name, if it has no rows."""
        return self.roles.get(split, split)

    def rows(self, role: str) -> list[Sample]:
        """The rows of the sets with that role."""
        return [sample for sample in self.samples if sample.role == role]

    def truth_rows(self, role: str) -> list[AnswerLogprobs]:
        """The truth rows of the sets with that role."""
        return [row for split, rows in self.truth.items() if self.role(split) == role for row in rows]

    def mean(self, role: str, metric: str) -> float | None:
        """Mean of a row metric over the rows with that role that have a value; None if none has."""
        values = [value for row in self.rows(role) if (value := row.scores.get(metric)) is not None]
        return fmean(values) if values else None
