"""Evidence: a number that an answer rests on, with its interval and the rows behind it."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from unlearn_pl.metrics.intervals import interval_of_equal, mean_interval
from unlearn_pl.report.run import Model
from unlearn_pl.report.table import number

Results = Mapping[str, Any]
Sample = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """A measured number. Without ends it says nothing of how far it could be chance."""

    name: str
    value: float
    low: float | None = None
    """Lower end of the 95 % interval."""
    high: float | None = None
    n: int | None = None
    """Rows or documents behind it."""
    documents: int | None = None
    """Documents that the rows are of, where they were counted."""
    of: str = ""
    """The entry of ``scores`` in `results.json` that it is; empty if it was computed from the rows."""

    def text(self) -> str:
        """``0.026 (95 % interval 0.003 to 0.058, n 80, of 24 documents)``"""
        beside = [] if self.low is None or self.high is None else [f"95 % interval {self.low:.3f} to {self.high:.3f}"]
        beside += [] if self.n is None else [f"n {self.n}"]
        beside += [] if self.documents is None else [f"of {self.documents} documents"]
        return f"{self.value:.3f}" + (f" ({', '.join(beside)})" if beside else "")

    def surely_below(self, limit: float) -> bool:
        """Whether all of its interval is at or below."""
        return self.high is not None and self.high <= limit

    def surely_above(self, limit: float) -> bool:
        """Whether all of its interval is above."""
        return self.low is not None and self.low > limit


def entry(results: Results, key: str, name: str) -> Evidence | None:
    """An entry of the ``scores`` of `results.json`, None where it was not measured."""
    found = results.get("scores", {}).get(key)
    value = number((found or {}).get("value"))
    if value is None:
        return None
    return Evidence(
        name=name, of=key, value=value, low=number(found.get("low")), high=number(found.get("high")), n=found.get("n")
    )


def known(found: Iterable[Evidence | None]) -> list[Evidence]:
    """Those that were measured."""
    return [one for one in found if one is not None]


def splits(results: Results, better: str) -> list[str]:
    """Names of the sets of rows whose scores are best ``lower`` (to be forgotten) or ``higher`` (to be kept)."""
    scores = results.get("scores", {})
    names = [term for term in results.get("terms", {}) if scores.get(term, {}).get("better") == better]
    return list(dict.fromkeys(term.split("/")[0] for term in names))


def terms(results: Results, better: str) -> list[Evidence]:
    """The row scores behind the terms of the task aggregate, of the sets to be forgotten or to be kept."""
    scores = results.get("scores", {})
    return known(entry(results, t, t) for t in results.get("terms", {}) if scores.get(t, {}).get("better") == better)


def mean_score(model: Model, names: Sequence[str], title: str) -> Evidence | None:
    """Mean of the row scores of these sets; what is drawn for the interval are documents, not rows."""
    rows = scored(model.samples, names)
    return mean_of(list(rows.values()), [unit(key) for key in rows], title)


def change(before: Model, after: Model, names: Sequence[str], title: str) -> Evidence | None:
    """Mean change of the score of the same rows from one model to another, in [-1, 1]: each row is compared with
    itself, which tells far smaller changes from chance than two intervals side by side."""
    old, new = scored(before.samples, names), scored(after.samples, names)
    rows = [key for key in new if key in old]
    # a change lies in [-1, 1], and the interval of values that are all equal is known for [0, 1]
    found = mean_of([(new[key] - old[key] + 1) / 2 for key in rows], [unit(key) for key in rows], title)
    if found is None:
        return None
    low, high = (None if end is None else 2 * end - 1 for end in (found.low, found.high))
    return replace(found, value=fmean(new[key] - old[key] for key in rows), low=low, high=high)


def empty(model: Model, names: Sequence[str], title: str) -> Evidence | None:
    """Share of the texts of these sets that hold nothing; None where each holds something."""
    rows = [row for row in model.samples if row.get("split") in names and isinstance(row.get("generated"), str)]
    values = [float(not row["generated"].strip()) for row in rows]
    units = [tuple(str(row.get(name)) for name in ("split", "task", "document")) for row in rows]
    return mean_of(values, units, title) if any(values) else None


def has(row: Sample, score: str) -> bool:
    """Whether a row was given a score, which a text without words is not; yes where its file does not say."""
    given = row.get("scores")
    return not isinstance(given, Mapping) or number(given.get(score)) is not None


def mean_of(values: Sequence[float], units: Sequence[Hashable], title: str) -> Evidence | None:
    """A mean with its interval; None of nothing."""
    if not values:
        return None
    low, high = mean_interval(values, units) or (None, None)
    return Evidence(name=title, value=fmean(values), low=low, high=high, n=len(values), documents=len(set(units)))


def unseen(documents: int | None) -> float:
    """The share of documents of another kind that so many, drawn at random, may all have missed (see
    ``interval_of_equal``): no resample holds what was not seen, so an interval of a few documents that all went well is
    too narrow to call it well."""
    return interval_of_equal(0.0, documents)[1] if documents else 1.0


def at_most(share: Evidence) -> float:
    """What a share in [0, 1] does not exceed, if the documents that were not seen give all."""
    missed = unseen(share.documents)
    return max(1.0 if share.high is None else share.high, share.value + (1 - share.value) * missed)


def at_least(moved: Evidence) -> float:
    """Below what a change in [-1, 1] does not lie, if the documents that were not seen lost all."""
    missed = unseen(moved.documents)
    return min(-1.0 if moved.low is None else moved.low, moved.value - (moved.value + 1) * missed)


Key = tuple[str, str, str, str, str, int]


def scored(samples: Sequence[Sample], names: Sequence[str]) -> dict[Key, float]:
    """The rows of these sets that have a score in [0, 1]: what a row is (equal ones are counted) -> its score."""
    found: dict[Key, float] = {}
    times: dict[tuple[str, ...], int] = {}
    for sample in samples:
        if sample.get("split") in names:
            same = tuple(str(sample.get(name)) for name in ("split", "task", "document", "id", "kind"))
            times[same] = times.get(same, -1) + 1
            score = number(sample.get("score"))
            if score is not None and 0 <= score <= 1:
                split, task, document, name, kind = same
                found[split, task, document, name, kind, times[same]] = score
    return found


def unit(key: Key) -> tuple[str, str, str]:
    """The document that a row is of."""
    return key[:3]


def percent(share: float) -> str:
    """A share in percent, with one decimal below ten."""
    return f"{100 * share:.1f} %" if abs(share) < 0.0995 else f"{100 * share:.0f} %"
