"""What a metric is: its name, what it needs, how it is computed, and which of its values are better."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from statistics import fmean
from typing import Any, Literal

from unlearn_pl.errors import InputError
from unlearn_pl.metrics.intervals import Interval, mean_interval
from unlearn_pl.metrics.leakage import Corpus
from unlearn_pl.metrics.measured import Measured
from unlearn_pl.metrics.number import number
from unlearn_pl.metrics.sample import Sample

Better = Literal["lower", "higher", "lower on forget, higher on retain", "one half"]
OPPOSITE: Better = "lower on forget, higher on retain"
ALWAYS = "always"
"""The family of what is measured whatever families are asked for."""

Need = Literal["likelihood", "base", "sampling", "documents", "truth", "choice", "retrained"]
THERE: Mapping[Need, Callable[[Measured], bool]] = {
    "documents": lambda measured: bool(measured.attacks),
    "truth": lambda measured: bool(measured.truth),
    "choice": lambda measured: measured.choice is not None,
    "retrained": lambda measured: measured.retrained is not None,
}
"""Need -> whether a measurement has it. The others (a likelihood of the true answer, texts drawn at random, the
base model for a request) are those of single rows: see ``Metric.applies``."""


@dataclass(frozen=True)
class Estimate:
    """A score with what is known of it."""

    value: float | None
    """None if it was measured and says nothing, as of a broken model."""
    n: int = 0
    """Rows, documents or questions behind it."""
    interval: Interval = None
    role: str | None = None
    """Role of the set that it is of, if it is of one."""


UNDEFINED = Estimate(None)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One row of the table: a metric of single rows (``value``), whose mean over each set is a score, or of a whole
    measurement (``statistic``)."""

    name: str
    family: str
    """What ``metrics`` of an evaluation names it by."""
    formula: str
    better: Better
    range: str
    source: str
    needs: tuple[Need, ...] = ()
    """What must have been measured."""
    value: Callable[[Sample, Corpus], float | None] | None = None
    """The metric of one row with a text; None where it says nothing of the row."""
    applies: Callable[[Sample], bool] = lambda _: True
    """Whether it is a metric of the row at all."""
    statistic: Callable[[Measured], Mapping[str, Estimate]] | None = None
    """Name -> score; a name that was not measured is not there."""
    notes: Callable[[Measured], Sequence[str]] = lambda _: ()
    """Why scores say nothing; equal notes of several metrics are told once."""
    request: Callable[[Any], Any] | None = None
    """What it asks of the model beside the requests of every evaluation; takes an ``evaluation.request.Request``. What
    it gives is ``Measured.found[name]``, or for a metric of rows, one number for each, ``Sample.found[name]``."""

    def __post_init__(self) -> None:
        if (self.value is None) == (self.statistic is None):
            raise InputError(f"the metric {self.name} needs this or value, and not both", "statistic")

    def better_on(self, role: str | None) -> str:
        """``lower`` or ``higher`` on the sets with that role."""
        if self.better != OPPOSITE:
            return self.better
        return "lower" if role == "forget" else "higher"

    def entry(self, score: Estimate) -> dict[str, Any]:
        """A score of this metric as the results have it."""
        low, high = score.interval or (None, None)
        found = {"value": score.value, "low": low, "high": high, "n": score.n}
        return found | {"better": self.better_on(score.role), "range": self.range}

    def measurable(self, measured: Measured) -> bool:
        """Whether what it needs is there."""
        return all(THERE[need](measured) for need in self.needs if need in THERE)

    def mean(self, measured: Measured, split: str) -> dict[str, Estimate]:
        """The mean of a row metric over a set; nothing if it was not measured on any row."""
        rows = [row for row in measured.samples if row.split == split and self.name in row.scores]
        known = [(value, row.unit) for row in rows if (value := row.scores[self.name]) is not None]
        values, units = [value for value, _ in known], [unit for _, unit in known]
        score = mean_score(values, units, measured.resamples, self.range.endswith("1]"), measured.role(split))
        return {f"{split}/{self.name}": score} if rows else {}


def was_found(name: str) -> Callable[[Sample], bool]:
    """Whether a row has what the request of the metric ``name`` gives."""
    return lambda sample: name in sample.found


def mean_score(
    values: Sequence[float],
    units: Sequence[Any],
    resamples: int,
    unit_range: bool = True,
    role: str | None = None,
) -> Estimate:
    """The mean of rows' values with its interval; undefined if there are none. See ``mean_interval``."""
    if not values:
        return Estimate(None, role=role)
    return Estimate(fmean(values), len(values), mean_interval(values, units, resamples, unit_range), role)


def scores_of(measured: Measured, metrics: Sequence[Metric]) -> Iterator[tuple[Metric, str, Estimate]]:
    """(metric, name, score) of all ``metrics``, in their order; of neighbouring row metrics all of one set come before
    those of the next. Each must be measurable."""
    for of_rows, neighbours in groupby(metrics, key=lambda metric: metric.value is not None):
        group = list(neighbours)
        for split in measured.roles if of_rows else [None]:
            for metric in group:
                found = metric.mean(measured, split) if split is not None else _statistic(metric, measured)
                yield from ((metric, name, score) for name, score in found.items())


def _statistic(metric: Metric, measured: Measured) -> Mapping[str, Estimate]:
    assert metric.statistic is not None, metric.name
    return metric.statistic(measured)


def row_scores(sample: Sample, metrics: Sequence[Metric], corpus: Corpus) -> dict[str, float | None]:
    """Scores of one row with a text, by name of the row metrics that apply to it.

    Raises InputError if one gives no finite number, which a metric of one's own may do.
    """
    return {
        one.name: number(one.value(sample, corpus), f"the metric {one.name} of row {sample.id!r:.60}")
        for one in metrics
        if one.value is not None and one.applies(sample)
    }


def with_scores(samples: Sequence[Sample], metrics: Sequence[Metric]) -> list[Sample]:
    """``samples`` with the scores of their texts; words are as rare as they are among all expected answers."""
    corpus = Corpus.of(sample.expected for sample in samples)
    return [
        sample if sample.generated is None else replace(sample, scores=row_scores(sample, metrics, corpus))
        for sample in samples
    ]
