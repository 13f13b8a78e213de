"""95 % intervals of scores in [0, 1], also where the bootstrap has none: few documents, and all of them alike."""

import math
from collections.abc import Hashable, Sequence
from statistics import fmean, harmonic_mean

from unlearn_pl.metrics.roc import membership_score
from unlearn_pl.metrics.statistics import auc_of, bootstrap_interval, harmonic_of, mean_of

Interval = tuple[float, float] | None
"""(low, high), None where nothing can be said: of a single document, and of equal values without an upper bound."""
LEVEL = 0.95


def interval_of_equal(value: float, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Interval of the mean of values in [0, 1] of which ``n`` were drawn, all of them ``value``.

    A share u of other values is missed by all n draws with chance (1 - u)^n, so more than 1 - ((1 - level) / 2)^(1/n)
    is as good as excluded; the others are 0 or 1 at worst. For 0 of n and n of n this is Clopper and Pearson's
    interval (1934): 0 of 8 gives 0 to 0.369.
    """
    missed = 1 - ((1 - level) / 2) ** (1 / n)
    return value * (1 - missed), value * (1 - missed) + missed


def mean_interval(
    values: Sequence[float], units: Sequence[Hashable], resamples: int = 1000, unit_range: bool = True
) -> Interval:
    """Interval of a mean over rows; ``units`` are the documents that the rows are of, ``unit_range`` says that no value
    is below 0 or above 1."""
    if (n := len(set(units))) < 2:
        return None
    if min(values) == max(values):
        return interval_of_equal(values[0], n) if unit_range else None
    return bootstrap_interval([values], mean_of, resamples, units=[units])


def auc_interval(members: Sequence[float], nonmembers: Sequence[float], resamples: int = 1000) -> Interval:
    """Interval of the area under the ROC curve.

    Where all resamples agree (every member above every non-member, say) it is that of as many pairs as the smaller side
    has documents: pairs without a document in common are independent, and all of them are won if all documents are.
    """
    if (n := min(len(members), len(nonmembers))) < 2:
        return None
    low, high = bootstrap_interval([members, nonmembers], auc_of, resamples)
    return interval_of_equal(low, n) if low == high else (low, high)


def membership_interval(auc: Interval) -> Interval:
    """Interval of 1 - 2 |AUC - 1/2| from that of the AUC: up to 1 if one half is in it."""
    if auc is None:
        return None
    ends = [membership_score(end) for end in auc]
    return min(ends), 1.0 if auc[0] <= 0.5 <= auc[1] else max(ends)


def harmonic_interval(
    groups: Sequence[Sequence[float]],
    turned: Sequence[bool],
    units: Sequence[Sequence[Hashable]],
    resamples: int = 1000,
) -> Interval:
    """Interval of the harmonic mean of groups' means in [0, 1], those ``turned`` as 1 - mean (the task aggregate).

    The bootstrap's, widened for the groups whose values are all equal: each is moved to the ends of its own interval,
    and what that changes is added as ``interval_of_mean`` does. Groups that make the harmonic mean 0 move together, as
    one alone leaves it there.
    """
    if len({unit for group in units for unit in group}) < 2:
        return None
    low, high = bootstrap_interval(groups, harmonic_of(turned), resamples, units=units)
    means = [fmean(group) for group in groups]
    ends = {g: interval_of_equal(means[g], len(set(units[g]))) for g, one in enumerate(groups) if min(one) == max(one)}

    def harmonic(moved: Sequence[int], end: int) -> float:
        now = [ends[g][end != turned[g]] if g in moved else mean for g, mean in enumerate(means)]
        return float(harmonic_mean([1 - mean if turn else mean for mean, turn in zip(now, turned, strict=True)]))

    value = harmonic([], 0)
    moves = [[g] for g in ends] if value else [[g for g in ends if means[g] == turned[g]]]
    below = math.hypot(value - low, *(value - harmonic(move, 0) for move in moves))
    above = math.hypot(high - value, *(harmonic(move, 1) - value for move in moves))
    return max(0.0, value - below), min(1.0, value + above)


def interval_of_mean(values: Sequence[float], intervals: Sequence[Interval]) -> Interval:
    """Interval of the mean of independent estimates with intervals of their own: the distances to the ends add as
    squares (MOVER, Zou and Donner 2008). Unlike a resampled one it reaches an end that no resample does."""
    if any(interval is None for interval in intervals):
        return None
    below = math.hypot(*(value - ends[0] for value, ends in zip(values, intervals, strict=True) if ends is not None))
    above = math.hypot(*(ends[1] - value for value, ends in zip(values, intervals, strict=True) if ends is not None))
    mean = math.fsum(values) / len(values)
    return mean - below / len(values), mean + above / len(values)
