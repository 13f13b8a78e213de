"""How far a score could be chance: bootstrap intervals, and the Kolmogorov-Smirnov test of two samples."""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
Statistic = Callable[[Sequence[Floats], Sequence[Counts]], Floats]
"""Takes the groups, each [rows], and for each group how often every resample drew every row, [resamples, rows];
gives the value of each resample, [resamples]. With counts of one it is the plain statistic of the groups."""

DRAWS_AT_ONCE = 2**20
"""Rows drawn at a time: bounds the memory at some 50 MB, whatever the number of resamples."""
EXACT_PAIRS = 10_000
"""Largest product of two sample sizes whose Kolmogorov-Smirnov p-value is counted exactly."""


def bootstrap_interval(
    groups: Sequence[Sequence[float]],
    statistic: Statistic,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval of a statistic of ``groups`` (Efron & Tibshirani 1993, chapter 13), as (low, high).

    Every group is resampled with replacement by itself and keeps its size. The ends are two of the resampled values,
    never between two, so infinite values do no harm. The same seed gives the same interval.

    Few rows give too narrow an interval, and one row none: a group with one row adds no spread, and if every group has
    one row the interval is (value, value). Asserts that no group is empty or holds NaN.
    """
    assert resamples >= 1, resamples
    assert 0 < level < 1, level
    arrays = [np.asarray(group, dtype=np.float64) for group in groups]
    assert arrays, "no groups"
    assert all(array.ndim == 1 and len(array) for array in arrays), [array.shape for array in arrays]
    assert not any(np.isnan(array).any() for array in arrays), "NaN in a group"
    generator = np.random.default_rng(seed)
    at_once = max(1, DRAWS_AT_ONCE // sum(map(len, arrays)))
    parts = []
    for start in range(0, resamples, at_once):
        number = min(at_once, resamples - start)
        parts.append(statistic(arrays, [_counts(generator, len(array), number) for array in arrays]))
    values = np.concatenate(parts)
    assert values.shape == (resamples,), values.shape
    assert not np.isnan(values).any(), "the statistic gave NaN"
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    return float(low), float(high)


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
    means = drawn[:, finite] @ values[finite] / len(values)
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
    return twice_won / (2 * len(members) * len(nonmembers))


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

    The distance is the largest gap between the two empirical distribution functions. Up to 10 000 pairs (product of
    the sizes) the p-value is exact, by counting lattice paths (Hodges 1958); beyond, it is Kolmogorov's limit
    (Smirnov 1939) at distance x sqrt(n m / (n + m)), without a correction for small samples.

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
    if n * m <= EXACT_PAIRS:
        paths = math.comb(n + m, n)
        return distance, (paths - _paths_within(n, m, gap)) / paths
    return distance, _kolmogorov_tail(distance * math.sqrt(n * m / (n + m)))


def _paths_within(n: int, m: int, gap: int) -> int:
    """Number of lattice paths from (0, 0) to (n, m) with |i m - j n| < ``gap`` at each of their points (i, j).

    A path is an order of both samples, a step in i being a value of the first: all orders are equally likely.
    """
    row = [int(j * n < gap) for j in range(m + 1)]
    for i in range(1, n + 1):
        before = 0
        for j in range(m + 1):
            before = row[j] + before if abs(i * m - j * n) < gap else 0
            row[j] = before
    return row[m]


def _kolmogorov_tail(x: float) -> float:
    """Chance that the Kolmogorov distribution exceeds ``x``, to the precision of a float."""
    if x == 0:
        return 1.0
    if x < 1:  # the alternating series converges slowly here; this is the same function by Jacobi's theta identity
        terms = (math.exp(-(((2 * k - 1) * math.pi / x) ** 2) / 8) for k in range(1, 8))
        return 1 - math.sqrt(2 * math.pi) / x * math.fsum(terms)
    return 2 * math.fsum((-1) ** (k - 1) * math.exp(-2 * (k * x) ** 2) for k in range(1, 8))
