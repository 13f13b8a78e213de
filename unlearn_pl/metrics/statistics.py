"""How far a score could be chance (bootstrap, Kolmogorov-Smirnov test), and leak@k from more than k samples."""

import math
from bisect import bisect_right
from collections.abc import Callable, Hashable, Mapping, Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
Statistic = Callable[[Sequence[Floats], Sequence[Counts]], Floats]
"""Takes the groups, each [rows], and for each group how often every resample drew every row, [resamples, rows];
gives the value of each resample, [resamples]. With counts of one it is the plain statistic of the groups. Resamples
may differ in their number of rows."""

EXACT_VALUES = 10_000
"""Largest sample whose p-value is exact, as in scipy."""

DRAWS_AT_ONCE = 2**20
"""Rows drawn at a time: bounds the memory at some 50 MB, whatever the number of resamples."""


def bootstrap_interval(
    groups: Sequence[Sequence[float]],
    statistic: Statistic,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    units: Sequence[Sequence[Hashable]] | None = None,
) -> tuple[float, float]:
    """Percentile interval of a statistic of ``groups`` (Efron & Tibshirani 1993, chapter 13), as (low, high).

    What is drawn with replacement are ``units``, the documents that the rows are of (for each group one a row), as rows
    of one document are alike; without them every row is one. Groups that share a unit are drawn together, others by
    themselves, each with as many units as it has; a draw that leaves a group without a row is drawn again. The ends are
    two of the resampled values, never between two, so infinite values do no harm. The same seed gives the same
    interval.

    Few units give too narrow an interval, and values that are all equal one without width, as no resample holds what
    was not seen: ``intervals`` has better ones. Asserts that no group is empty or holds NaN.
    """
    assert resamples >= 1, resamples
    assert 0 < level < 1, level
    arrays = [np.asarray(group, dtype=np.float64) for group in groups]
    assert arrays, "no groups"
    assert all(array.ndim == 1 and len(array) for array in arrays), [array.shape for array in arrays]
    assert not any(np.isnan(array).any() for array in arrays), "NaN in a group"
    generator = np.random.default_rng(seed)
    strata = _strata(units or [[(number, row) for row in range(len(group))] for number, group in enumerate(arrays)])
    at_once = max(1, DRAWS_AT_ONCE // sum(map(len, arrays)))
    parts = [
        statistic(arrays, _drawn(generator, strata, min(at_once, resamples - start)))
        for start in range(0, resamples, at_once)
    ]
    values = np.concatenate(parts)
    assert values.shape == (resamples,), values.shape
    assert not np.isnan(values).any(), "the statistic gave NaN"
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    return float(low), float(high)


Strata = Sequence[tuple[int, dict[int, Counts]]]
"""For each set of groups that are drawn together: its number of units, and by group the unit of each row."""


def _strata(units: Sequence[Sequence[Hashable]]) -> Strata:
    """The groups by what they share: a group joins the first stratum that has one of its units."""
    found: list[tuple[dict[Hashable, int], dict[int, Counts]]] = []
    for group, names in enumerate(units):
        known, groups = next((one for one in found if not one[0].keys().isdisjoint(names)), ({}, {}))
        if not groups:
            found.append((known, groups))
        groups[group] = np.array([known.setdefault(name, len(known)) for name in names])
    return [(len(known), groups) for known, groups in found]


def _drawn(generator: np.random.Generator, strata: Strata, resamples: int) -> list[Counts]:
    """How often each row of each group is in each resample."""
    found: dict[int, Counts] = {}
    for number, groups in strata:
        counts = _counts(generator, number, resamples)
        while len(empty := np.flatnonzero(_lacks_a_group(counts, groups))):
            counts[empty] = _counts(generator, number, len(empty))
        found |= {group: counts[:, codes] for group, codes in groups.items()}
    return [found[group] for group in sorted(found)]


def _lacks_a_group(counts: Counts, groups: Mapping[int, Counts]) -> npt.NDArray[np.bool_]:
    """Which resamples have no row of one of the groups."""
    held = [counts[:, np.unique(codes)].any(axis=1) for codes in groups.values()]
    lacks: npt.NDArray[np.bool_] = ~np.logical_and.reduce(held)
    return lacks


def _counts(generator: np.random.Generator, rows: int, resamples: int) -> Counts:
    """How often each of ``rows`` rows is in each resample of as many rows: [resamples, rows]."""
    draws = generator.integers(rows, size=(resamples, rows))
    draws += rows * np.arange(resamples)[:, None]  # a range of numbers per resample: one count for all of them
    return np.bincount(draws.ravel(), minlength=resamples * rows).reshape(resamples, rows)


def mean_of(groups: Sequence[Floats], counts: Sequence[Counts]) -> Floats:
    """Statistic: mean over the rows of one group, in the unit of its values.

    A resample that drew an infinite value has that mean. Asserts that a group has not both infinities: such a mean
    does not exist.
    """
    (values,), (drawn,) = groups, counts
    finite = np.isfinite(values)  # left out of the product: 0 draws x infinity would be NaN
    means = drawn[:, finite] @ values[finite] / drawn.sum(axis=1)
    infinite = np.unique(values[~finite])
    assert len(infinite) < 2, "both infinities in a group"
    for value in infinite:
        means[drawn[:, values == value].any(axis=1)] = value
    return means


def auc_of(groups: Sequence[Floats], counts: Sequence[Counts]) -> Floats:
    """Statistic of the groups (members, nonmembers): area under the ROC curve, in [0, 1], a tie counting one half.

    Exact for each resample: whole numbers of won pairs, as in ``roc.area_under_curve``. Only the order of the values
    counts, so they may be infinite.
    """
    (members, nonmembers), (members_drawn, nonmembers_drawn) = groups, counts
    order = np.argsort(nonmembers)
    ordered = nonmembers[order]
    # below[r, k]: drawn non-members among the k lowest; then each member's wins are two look-ups
    below = np.zeros((len(nonmembers_drawn), len(nonmembers) + 1), dtype=np.int64)
    np.cumsum(nonmembers_drawn[:, order], axis=1, out=below[:, 1:])
    twice_below = below[:, np.searchsorted(ordered, members, "left")]
    twice_below += below[:, np.searchsorted(ordered, members, "right")]
    twice_won: Counts = (members_drawn * twice_below).sum(axis=1)
    return twice_won / (2 * members_drawn.sum(axis=1) * nonmembers_drawn.sum(axis=1))


def harmonic_of(turned: Sequence[bool]) -> Statistic:
    """Statistic of as many groups of values in [0, 1]: harmonic mean of their means, 0 as soon as one is 0.

    A group that is ``turned`` enters as 1 - mean: with forget groups turned it is the task aggregate of
    SemEval-2025 Task 4.
    """

    def harmonic(groups: Sequence[Floats], counts: Sequence[Counts]) -> Floats:
        parts = []
        for turn, values, drawn in zip(turned, groups, counts, strict=True):
            means = mean_of([values], [drawn])
            assert means.min() >= 0, "a mean below 0"
            assert means.max() <= 1, "a mean above 1"
            parts.append(1 - means if turn else means)
        # 1 / 0 is infinite, and so is the sum; dividing by that gives the 0 that is wanted.
        with np.errstate(divide="ignore", over="ignore"):
            inverses: Floats = (1 / np.stack(parts)).sum(axis=0)
        return len(parts) / inverses

    return harmonic


def kolmogorov_smirnov(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """Two-sample, two-sided test that both come from one continuous distribution: (distance, p-value), both in [0, 1].

    The distance is the largest gap between the two empirical distribution functions. Up to 10 000 values in the larger
    sample the p-value is exact (Hodges 1958), as scipy's is; beyond, it is Kolmogorov's limit (Smirnov 1939) at
    distance x sqrt(n m / (n + m)).

    The gap is taken only after all values of a tie; with ties the p-value is conservative, that is, too large rather
    than too small. Values may be infinite, not NaN. Asserts that no sample is empty.
    """
    assert len(first), "no values in the first sample"
    assert len(second), "no values in the second sample"
    n, m = len(first), len(second)
    one, two = sorted(first), sorted(second)
    # whole numbers: the gap |i / n - j / m| times n m
    gap = max(abs(bisect_right(one, value) * m - bisect_right(two, value) * n) for value in {*one, *two})
    distance = gap / (n * m)
    if max(n, m) <= EXACT_VALUES:
        return distance, chance_of_gap(n, m, gap)
    return distance, _kolmogorov_tail(distance * math.sqrt(n * m / (n + m)))


def least_p_value(n: int, m: int) -> float:
    """The p-value of two samples of these sizes without any overlap: no data can give a smaller one."""
    return min(1.0, 2 / math.comb(n + m, n))


def chance_of_gap(n: int, m: int, gap: int) -> float:
    """Chance that a random order of n and m values has |i m - j n| >= ``gap`` after some i of the first and j of the
    second sample.

    A random order that comes to (i, j) came from (i - 1, j) with chance i / (i + j), else from (i, j - 1); all places
    with one i + j are computed at once. Only positive terms are added, so that the smallest chances are right too.
    """
    i = np.arange(n + 1)
    chance = np.full(n + 1, float(gap <= 0))  # by i, of the places (i, 0 - i): only i = 0 is one
    for total in range(1, n + m + 1):
        j = total - i
        came = j * chance
        came[1:] += i[1:] * chance[:-1]
        chance = np.where(np.abs(i * m - j * n) >= gap, 1.0, came / total)
        chance[(j < 0) | (j > m)] = 0.0
    return float(chance[n])


def _kolmogorov_tail(x: float) -> float:
    """Chance that the Kolmogorov distribution exceeds ``x``, to the precision of a float."""
    if x == 0:
        return 1.0
    if x < 1:  # the alternating series converges slowly here; this is the same function by Jacobi's theta identity
        terms = (math.exp(-(((2 * k - 1) * math.pi / x) ** 2) / 8) for k in range(1, 8))
        return 1 - math.sqrt(2 * math.pi) / x * math.fsum(terms)
    return 2 * math.fsum((-1) ** (k - 1) * math.exp(-2 * (k * x) ** 2) for k in range(1, 8))


def leak_at_k(scores: Sequence[float], k: int) -> float:
    """leak@k (arXiv 2511.04934): the expected highest score among k sampled generations of a row, from n >= k of them.

    The mean of the highest score over all subsets of k of the n, an unbiased estimate: sum over i of
    s_(i) C(i-1, k-1) / C(n, k), where s_(1) <= ... <= s_(n), as s_(i) is the highest of C(i-1, k-1) subsets. In the
    range and unit of the scores. For c scores of 1 among zeros it is pass@k, 1 - C(n-c, k) / C(n, k) (arXiv
    2107.03374). Exact but for one rounding, hence never beyond the highest score and never smaller for a larger k.

    Raises ValueError if k is not in 1..n, or if a score is not finite.
    """
    n = len(scores)
    if not 1 <= k <= n:
        raise ValueError(f"leak@k: k must be from 1 to the number of samples, got k = {k} and {n} samples")
    if broken := [score for score in scores if not math.isfinite(score)]:
        raise ValueError(f"leak@k: scores must be finite, got {broken[0]}")
    ordered = sorted(Fraction(float(score)) for score in scores)
    total = sum((ordered[i] * math.comb(i, k - 1) for i in range(k - 1, n)), Fraction(0))
    return float(total / math.comb(n, k))
