"""How far a score could be chance: intervals of the bootstrap."""

from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
Statistic = Callable[[Sequence[Floats], Sequence[Counts]], Floats]
"""Takes the groups, each [rows], and for each group how often every resample drew every row, [resamples, rows];
gives the value of each resample, [resamples]. With counts of one it is the plain statistic of the groups. Resamples
may differ in their number of rows."""

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
