"""The Kolmogorov-Smirnov test: could two samples come from one distribution?"""

import math
from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

EXACT_VALUES = 10_000
"""Largest sample whose p-value is exact, as in scipy."""


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
