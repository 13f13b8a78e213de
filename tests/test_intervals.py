"""Intervals where the bootstrap has none, against closed forms, brute force and simulated coverage."""

import math

import numpy as np
import pytest

from unlearn_pl.metrics.intervals import (
    auc_interval,
    harmonic_interval,
    interval_of_equal,
    interval_of_mean,
    mean_interval,
    membership_interval,
)
from unlearn_pl.metrics.roc import area_under_curve, membership_score
from unlearn_pl.metrics.statistics import bootstrap_interval, mean_of


@pytest.mark.parametrize(("n", "upper"), [(8, 0.369), (40, 0.088), (152, 0.024)])
def test_none_of_n(n: int, upper: float) -> None:
    """Clopper and Pearson: the rate at which n misses in a row have a chance of 2.5 %, (1 - p)^n = .025."""
    assert mean_interval([0.0] * n, range(n)) == (0, pytest.approx(upper, abs=5e-4))
    assert mean_interval([1.0] * n, range(n)) == (pytest.approx(1 - upper, abs=5e-4), 1)
    assert (1 - interval_of_equal(0.0, n)[1]) ** n == pytest.approx(0.025)


def test_documents_count_and_not_rows() -> None:
    """Ten rows of two documents know as much as two: (1 - p)^2 = .025. One document, or no bound: nothing is known."""
    assert mean_interval([0.0] * 10, [0, 1] * 5) == (0, pytest.approx(1 - math.sqrt(0.025)))
    assert mean_interval([0.3, 0.4], ["a", "a"]) is None
    assert mean_interval([64.0] * 9, range(9), unit_range=False) is None


def test_an_attack_that_is_always_right() -> None:
    """Ten pairs without a common document, all won: an AUC below .025^(1/10) = .69 does so in 2.5 % at most. Two
    documents on a side show no leak."""
    assert auc_interval([1.0] * 10, [0.0] * 30) == (pytest.approx(0.025**0.1), 1)
    assert auc_interval([0.0] * 10, [1.0] * 30) == (0, pytest.approx(1 - 0.025**0.1))
    low, high = auc_interval([2.0, 3.0], [0.0, 1.0]) or (1, 1)
    assert low < 0.5 < high
    assert auc_interval([1.0], [0.0, 0.5]) is None


def test_the_membership_score_reaches_one() -> None:
    """Of an AUC of .4 to .55: 1 at one half, .8 at .4; of one of .6 to .9: .8 and .2."""
    assert membership_interval((0.4, 0.55)) == (pytest.approx(0.8), 1)
    assert membership_interval((0.6, 0.9)) == (pytest.approx(0.2), pytest.approx(0.8))
    assert membership_interval(None) is None


def test_the_mean_of_estimates_by_hand() -> None:
    """Distances 3 and 4 below (5 together), none above, over two: .5 - 2.5 to .5."""
    assert interval_of_mean([0.0, 1.0], [(-3.0, 0.0), (-3.0, 1.0)]) == (-2, 0.5)
    assert interval_of_mean([0.0, 1.0], [(-3.0, 0.0), None]) is None


def test_a_task_aggregate_of_equal_values() -> None:
    """All right: 1, yet each of two terms may be .631 (0 of 8), alone 2 / (1 + 1/.631) = .774; .226 twice as squares.
    All forgotten and nothing kept: 0, whose one term may be .369, 2 / (1 + 1/.369) = .539."""
    ends, units = interval_of_equal(0.0, 8), [[(group, row) for row in range(8)] for group in range(2)]
    alone = 2 / (1 + 1 / (1 - ends[1]))
    low, high = harmonic_interval([[0.0] * 8, [1.0] * 8], [True, False], units) or (0, 0)
    assert (low, high) == (pytest.approx(1 - math.sqrt(2) * (1 - alone)), 1)
    found = harmonic_interval([[0.0] * 8, [0.0] * 8], [True, False], units)
    assert found == (0, pytest.approx(2 / (1 + 1 / ends[1])))
    assert harmonic_interval([[0.0], [1.0]], [True, False], [["a"], ["a"]]) is None


def test_groups_of_the_same_documents_are_drawn_together() -> None:
    """Two groups whose rows are of the same documents have the same counts; those of others have their own."""
    seen: list[np.ndarray] = []

    def record(groups: list[np.ndarray], counts: list[np.ndarray]) -> np.ndarray:
        seen.extend(counts)
        return np.zeros(len(counts[0]))

    units = [["a", "b", "c", "d"], ["d", "c", "c"], ["x", "y", "z", "w"]]
    bootstrap_interval([[0.0] * 4, [0.0] * 3, [0.0] * 4], record, resamples=50, units=units)
    assert (seen[0][:, [3, 2, 2]] == seen[1]).all()
    assert (seen[0] != seen[2]).any()
    assert seen[1].any(axis=1).all(), "no resample is without a row of a group"


def coverage(samples: list, truth: float, interval) -> float:  # type: ignore[no-untyped-def, type-arg]
    found = [interval(sample) for sample in samples]
    return float(np.mean([low - 1e-12 <= truth <= high + 1e-12 for low, high in found]))


@pytest.mark.parametrize(("rate", "n", "before", "now"), [(0.02, 8, 0.25, 0.95), (0.01, 40, 0.5, 0.95)])
def test_rare_leaks_are_covered(rate: float, n: int, before: float, now: float) -> None:
    random = np.random.default_rng(1)
    samples = [(random.random(n) < rate).astype(float).tolist() for _ in range(150)]
    assert coverage(samples, rate, lambda values: bootstrap_interval([values], mean_of, 200)) < before
    assert coverage(samples, rate, lambda values: mean_interval(values, range(n), 200)) >= now


def test_rows_of_documents_are_covered() -> None:
    """107 documents of five rows each, half of whose variance is that of the documents, 30 % on average."""
    random = np.random.default_rng(2)
    units = [row // 5 for row in range(535)]
    samples = [
        (random.random((107, 5)) < random.beta(0.3, 0.7, size=107)[:, None]).astype(float).ravel().tolist()
        for _ in range(150)
    ]
    assert coverage(samples, 0.3, lambda values: bootstrap_interval([values], mean_of, 200)) < 0.85
    assert coverage(samples, 0.3, lambda values: mean_interval(values, units, 200)) > 0.9


def test_the_aggregate_at_an_auc_of_one_half_is_covered() -> None:
    """The resampled score never reached 1 there: coverage was 0."""
    random = np.random.default_rng(3)
    samples = [(random.normal(size=24).tolist(), random.normal(size=72).tolist()) for _ in range(100)]

    def aggregate(sides):  # type: ignore[no-untyped-def]
        score = membership_score(area_under_curve(*sides))
        return interval_of_mean([0.8, score], [(0.8, 0.8), membership_interval(auc_interval(*sides, 200))])

    assert coverage(samples, 0.9, aggregate) > 0.9
