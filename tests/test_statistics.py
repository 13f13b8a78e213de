"""Bootstrap intervals, the Kolmogorov-Smirnov test and leak@k against loops, closed forms and published values."""

import itertools
import math
import statistics as stdlib
import time
import tracemalloc
from itertools import combinations
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearn_pl.metrics import statistics
from unlearn_pl.metrics.roc import area_under_curve
from unlearn_pl.metrics.statistics import (
    auc_of,
    bootstrap_interval,
    harmonic_of,
    kolmogorov_smirnov,
    leak_at_k,
    least_p_value,
    mean_of,
)

finite = st.integers(-3, 3).map(float) | st.floats(-1e6, 1e6, allow_subnormal=False)
scores = st.lists(finite | st.sampled_from([-math.inf, math.inf]), min_size=1, max_size=9)
unit = st.lists(st.sampled_from([0.0, 1.0]) | st.floats(0, 1, allow_subnormal=False), min_size=1, max_size=6)
seeds = st.integers(0, 2**32 - 1)


def drawn(group: list[float], counts: list[int]) -> list[float]:
    """The rows of one resample, written out."""
    return [value for value, count in zip(group, counts, strict=True) for _ in range(count)]


def random_counts(groups: list[list[float]], seed: int) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.multinomial(len(group), [1 / len(group)] * len(group), size=5) for group in groups]


@settings(deadline=None)
@given(scores, scores, seeds)
def test_auc_of_equals_the_auc_of_rows_written_out(members: list[float], nonmembers: list[float], seed: int) -> None:
    groups = [members, nonmembers]
    counts = random_counts(groups, seed)
    expected = [area_under_curve(drawn(members, one), drawn(nonmembers, two)) for one, two in zip(*counts, strict=True)]
    assert auc_of([np.array(group) for group in groups], counts).tolist() == expected


@settings(deadline=None)
@given(st.lists(finite, min_size=1, max_size=9), seeds)
def test_mean_of_equals_the_mean_of_rows_written_out(values: list[float], seed: int) -> None:
    (counts,) = random_counts([values], seed)
    expected = [stdlib.fmean(drawn(values, row)) for row in counts]
    assert mean_of([np.array(values)], [counts]) == pytest.approx(expected, rel=1e-9, abs=1e-8)


def test_mean_of_infinite_values() -> None:
    """Infinite where the infinite row was drawn, (1 + 2 + 2) / 3 where it was not; both infinities have no mean."""
    counts = np.array([[1, 2, 0], [1, 1, 1]])
    assert mean_of([np.array([1.0, 2.0, math.inf])], [counts]).tolist() == [5 / 3, math.inf]
    assert mean_of([np.array([1.0, 2.0, -math.inf])], [counts]).tolist() == [5 / 3, -math.inf]
    with pytest.raises(AssertionError, match="both infinities"):
        mean_of([np.array([0.0, math.inf, -math.inf])], [counts])


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), unit), min_size=1, max_size=4), seeds)
def test_harmonic_of_equals_that_of_rows_written_out(parts: list[tuple[bool, list[float]]], seed: int) -> None:
    turned, groups = [turn for turn, _ in parts], [group for _, group in parts]
    counts = random_counts(groups, seed)
    expected = []
    for resample in range(5):
        means = [stdlib.fmean(drawn(group, rows[resample])) for group, rows in zip(groups, counts, strict=True)]
        turns = [max(0.0, 1 - mean) if turn else mean for turn, mean in zip(turned, means, strict=True)]
        expected.append(stdlib.harmonic_mean(turns))
    assert harmonic_of(turned)([np.array(group) for group in groups], counts) == pytest.approx(expected, abs=1e-9)


def test_harmonic_of_by_hand() -> None:
    """Means 1/2 and 1/4: harmonic 2 / (2 + 4) = 1/3; the second turned to 3/4: 2 / (2 + 4/3) = 3/5; a 0 makes 0."""
    groups, ones = [np.array([0.0, 1.0]), np.array([0.25])], [np.ones((1, 2), dtype=int), np.ones((1, 1), dtype=int)]
    assert harmonic_of([False, False])(groups, ones) == pytest.approx([1 / 3])
    assert harmonic_of([False, True])(groups, ones) == pytest.approx([3 / 5])
    assert harmonic_of([False, True])([groups[0], np.array([1.0])], ones).tolist() == [0]
    with pytest.raises(AssertionError, match="above 1"):
        harmonic_of([True])([np.array([1.5])], [np.ones((1, 1), dtype=int)])


def all_resamples(group: list[float]) -> list[float]:
    return sorted(stdlib.fmean(rows) for rows in itertools.product(group, repeat=len(group)))


@pytest.mark.parametrize("level", [0.5, 0.8, 0.95])
def test_interval_of_a_mean_equals_that_over_all_resamples(level: float) -> None:
    """A group of six rows has 6^6 = 46656 resamples: the interval over all of them is that of infinitely many drawn
    ones, but for steps of one mean to the next."""
    group = [0.0, 1.0, 2.0, 4.0, 8.0, 16.0]
    every = all_resamples(group)
    low, high = bootstrap_interval([group], mean_of, resamples=20_000, level=level)
    assert low == pytest.approx(every[round(len(every) * (1 - level) / 2)], abs=0.2)
    assert high == pytest.approx(every[round(len(every) * (1 + level) / 2)], abs=0.2)


def test_interval_of_a_mean_is_near_the_normal_one() -> None:
    """400 values 0..399: the mean 199.5, its standard error sqrt((400^2 - 1) / 12 / 400) = 5.77."""
    low, high = bootstrap_interval([list(range(400))], mean_of, resamples=4000)
    error = math.sqrt((400**2 - 1) / 12 / 400)
    assert (low, high) == pytest.approx((199.5 - 1.96 * error, 199.5 + 1.96 * error), abs=0.12 * error)


def test_ends_are_two_of_the_resampled_values() -> None:
    """Of 1000 values 1..1000 in any order, 95 % leaves out 25 at each side."""
    values = np.random.default_rng(0).permutation(1000) + 1.0
    low, high = bootstrap_interval([[0.0]], lambda groups, counts: values)
    assert low in (25, 26)
    assert high in (975, 976)


def test_one_row_has_no_spread() -> None:
    """But that of another group stays: one member wins, ties or loses against each of three non-members."""
    assert bootstrap_interval([[0.1]], mean_of) == (0.1, 0.1)
    assert bootstrap_interval([[3.0], [3.0]], auc_of) == (0.5, 0.5)
    low, high = bootstrap_interval([[2.0], [1.0, 2.0, 3.0]], auc_of)
    assert 0 <= low < 0.5 < high <= 1


def test_resamples_are_stratified() -> None:
    """Each group keeps its size in every resample, and groups of one size are drawn independently."""
    seen: list[np.ndarray] = []

    def record(groups: list[np.ndarray], counts: list[np.ndarray]) -> np.ndarray:
        seen.extend(counts)
        return np.zeros(len(counts[0]))

    assert bootstrap_interval([[0.0] * 4, [0.0] * 4, [0.0] * 7], record, resamples=50) == (0, 0)
    assert [counts.shape for counts in seen] == [(50, 4), (50, 4), (50, 7)]
    assert [set(counts.sum(axis=1).tolist()) for counts in seen] == [{4}, {4}, {7}]
    assert (seen[0] != seen[1]).any()


def test_rows_are_drawn_alike() -> None:
    """Each row 2000 times in 2000 resamples, give or take sqrt(2000 * 4/5) = 40; its square, as in a multinomial of 5
    draws at 1/5, 5 * 1/5 * 4/5 + 1 = 1.8 on average."""
    counts = statistics._counts(np.random.default_rng(0), rows=5, resamples=2000)
    assert counts.sum(axis=0) == pytest.approx([2000] * 5, abs=160)
    assert (counts**2).mean() == pytest.approx(1.8, abs=0.1)


def test_the_seed_decides() -> None:
    group = np.random.default_rng(1).normal(size=40).tolist()
    assert bootstrap_interval([group], mean_of, seed=3) == bootstrap_interval([group], mean_of, seed=3)
    assert bootstrap_interval([group], mean_of, seed=3) != bootstrap_interval([group], mean_of, seed=4)


def test_many_draws_come_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten rows and at most 35 draws at once: three resamples at a time, and still 100 of them."""
    monkeypatch.setattr(statistics, "DRAWS_AT_ONCE", 35)
    sizes: list[int] = []

    def count(groups: list[np.ndarray], counts: list[np.ndarray]) -> np.ndarray:
        sizes.append(len(counts[0]))
        return np.arange(len(counts[0]), dtype=float)

    assert bootstrap_interval([[0.0] * 10], count, resamples=100) == (0, 2)
    assert sizes == [3] * 33 + [1]


@pytest.mark.parametrize("statistic", [auc_of, harmonic_of([False, True])])
def test_interval_is_widest_at_the_highest_level(statistic: statistics.Statistic) -> None:
    generator = np.random.default_rng(2)
    groups = [generator.uniform(0, 1, 30).tolist(), generator.uniform(0, 0.8, 20).tolist()]
    intervals = [bootstrap_interval(groups, statistic, level=level) for level in (0.99, 0.9, 0.5)]
    lows, highs = zip(*intervals, strict=True)
    assert list(lows) == sorted(lows)
    assert list(highs) == sorted(highs, reverse=True)
    point = statistic([np.array(group) for group in groups], [np.ones((1, len(group)), dtype=int) for group in groups])
    assert lows[-1] < point[0] < highs[-1]


def test_infinite_values_give_no_nan() -> None:
    """Order decides about the AUC; a mean with an infinite row is infinite in most resamples."""
    members, nonmembers = [-math.inf, 0.0, math.inf], [-math.inf, 1.0, math.inf]
    assert bootstrap_interval([members, nonmembers], auc_of) == bootstrap_interval([[-9, 0, 9], [-9, 1, 9]], auc_of)
    assert bootstrap_interval([[0.0] * 9 + [math.inf]], mean_of) == (0, math.inf)
    assert bootstrap_interval([[-math.inf] * 3], mean_of) == (-math.inf, -math.inf)


@pytest.mark.parametrize("groups", [[], [[]], [[1.0], []], [[1.0, math.nan]]])
def test_interval_refuses(groups: list[list[float]]) -> None:
    with pytest.raises(AssertionError):
        bootstrap_interval(groups, mean_of)


def test_a_usual_attack_is_quick_and_small() -> None:
    """150 members, 150 non-members, 1000 resamples: far below a second and 100 MB."""
    generator = np.random.default_rng(0)
    groups = [generator.normal(size=150).tolist(), generator.normal(size=150).tolist()]
    start = time.process_time()
    bootstrap_interval(groups, auc_of)
    assert time.process_time() - start < 1
    tracemalloc.start()
    try:
        bootstrap_interval(groups, auc_of, resamples=20_000)
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


def naive_distance(first: list[float], second: list[float]) -> float:
    def share(values: list[float], limit: float) -> float:
        return sum(value <= limit for value in values) / len(values)

    return max(abs(share(first, limit) - share(second, limit)) for limit in first + second)


@settings(deadline=None)
@given(scores, scores)
def test_distance_is_the_largest_gap(first: list[float], second: list[float]) -> None:
    distance, p_value = kolmogorov_smirnov(first, second)
    assert distance == pytest.approx(naive_distance(first, second), abs=1e-12)
    assert 0 < p_value <= 1
    assert kolmogorov_smirnov(second, first) == (distance, pytest.approx(p_value, rel=1e-12))


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 4), (2, 3), (3, 3), (4, 6), (5, 4)])
def test_p_value_is_the_share_of_interleavings(n: int, m: int) -> None:
    """Over every way to share the places 0..n+m-1 out: how many have at least this distance, told in whole numbers."""
    samples = []
    for places in itertools.combinations(range(n + m), n):
        first, second = list(places), [place for place in range(n + m) if place not in places]
        samples.append((round(naive_distance(first, second) * n * m), first, second))
    for gap, first, second in samples:
        expected = sum(other >= gap for other, _, _ in samples) / len(samples)
        assert kolmogorov_smirnov(first, second) == (gap / (n * m), pytest.approx(expected, rel=1e-12))


@pytest.mark.parametrize(("n", "lead"), [(1, 1), (10, 4), (30, 30), (100, 1), (100, 19), (100, 35)])
def test_p_value_of_equal_sizes(n: int, lead: int) -> None:
    """Gnedenko and Korolyuk 1951: P(D >= k / n) = 2 sum over j >= 1 of (-1)^(j-1) C(2n, n - j k) / C(2n, n). The first
    sample has its k last values below the whole second sample, and else both alternate."""
    second = [float(place) for place in range(n)]
    first = [place - lead + 0.5 for place in range(n)]
    terms = [(-1) ** (j - 1) * math.comb(2 * n, n - j * lead) for j in range(1, n // lead + 1)]
    expected = 2 * sum(terms) / math.comb(2 * n, n)
    distance, p_value = kolmogorov_smirnov(first, second)
    assert distance == pytest.approx(lead / n, abs=1e-12)
    assert p_value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("n", [1, 2, 7, 100, 300])
def test_least_distance_has_p_value_one(n: int) -> None:
    """Two samples that alternate: every order has a gap of at least 1 / n. All values tied: no gap at all."""
    distance, p_value = kolmogorov_smirnov(list(range(n)), [place + 0.5 for place in range(n)])
    assert distance == pytest.approx(1 / n)
    assert p_value == pytest.approx(1, abs=1e-12)
    assert kolmogorov_smirnov([0.5] * n, [0.5] * n) == (0, 1)


def test_ties_are_looked_at_from_behind() -> None:
    """First 1 1, second 1 2. At 1 the shares are 1 and 1/2, at 2 both 1; halfway through the tie the gap could be 1.
    A gap of 1/2 is the least that two and two can have: p = 1."""
    assert kolmogorov_smirnov([1, 1], [1, 2]) == (0.5, 1)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=7), st.data())
def test_with_ties_the_p_value_is_conservative(pool: list[int], data: st.DataObject) -> None:
    """No less than the share of all ways to split the tied values that are at least as far apart."""
    n = data.draw(st.integers(1, len(pool) - 1))
    gaps = []
    for places in itertools.combinations(range(len(pool)), n):
        rest = [pool[place] for place in range(len(pool)) if place not in places]
        gaps.append(naive_distance([pool[place] for place in places], rest))
    share = sum(gap > gaps[0] - 1e-9 for gap in gaps) / len(gaps)
    assert kolmogorov_smirnov(pool[:n], pool[n:])[1] >= share - 1e-12


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.3, 0.5])
@pytest.mark.parametrize("m", [50, 90, 100])
def test_limit_is_near_the_exact_value(m: int, shift: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 100 values and somewhat fewer, the largest sizes counted exactly."""
    generator = np.random.default_rng(m)
    first, second = generator.normal(size=100).tolist(), generator.normal(shift, 1, size=m).tolist()
    distance, exact = kolmogorov_smirnov(first, second)
    monkeypatch.setattr(statistics, "EXACT_VALUES", 0)
    same, limit = kolmogorov_smirnov(first, second)
    assert same == distance
    assert limit != exact
    assert limit == pytest.approx(exact, abs=0.05)


def test_the_switch_is_at_ten_thousand_values() -> None:
    """Far apart: the exact value is 2 / C(n + m, n), the limit 2 exp(-2 n m / (n + m)) less its next term."""
    low, high = [0.0] * 10_001, [1.0] * 2
    assert kolmogorov_smirnov(low[:10_000], high) == (1, pytest.approx(2 / math.comb(10_002, 2), rel=1e-12))
    assert kolmogorov_smirnov(low, high) == (
        1,
        pytest.approx(2 * (math.exp(-2 * 20_002 / 10_003) - math.exp(-8 * 20_002 / 10_003))),
    )
    assert least_p_value(10_000, 2) == 2 / math.comb(10_002, 2)
    assert least_p_value(1, 1) == 1


@pytest.mark.parametrize(
    ("n", "gap", "expected"),
    [
        (400, 104, 2.73446e-12),
        (101, 30, 2.46634e-4),
        # of TOFU's published logs, the full model against that retrained without a tenth, by scipy
        (300, 119, 1.834e-21),
        (300, 123, 6.03e-23),
        (300, 104, 2.194e-16),
        (300, 107, 2.431e-17),
        (300, 9, 0.99930),
        (40, 3, 0.99992),
    ],
)
def test_published_p_values(n: int, gap: int, expected: float) -> None:
    """Two samples of n with the gap ``gap`` / n; beyond 10 000 pairs the limit gave 3.6e-12 for the first."""
    first, second = [place + 0.5 - gap for place in range(n)], [float(place) for place in range(n)]
    distance, p_value = kolmogorov_smirnov(first, second)
    assert distance == pytest.approx(gap / n)
    assert p_value == pytest.approx(expected, rel=1e-3, abs=1e-5 if expected > 0.1 else 0)


@pytest.mark.parametrize(("x", "tail"), [(1.2238, 0.1), (1.3581, 0.05), (1.6276, 0.01), (0.8276, 0.5), (0.5712, 0.9)])
def test_kolmogorov_distribution(x: float, tail: float) -> None:
    """The critical values of Smirnov's table (1948)."""
    assert statistics._kolmogorov_tail(x) == pytest.approx(tail, abs=2e-4)


@settings(deadline=None)
@given(st.floats(0.05, 6, allow_subnormal=False))
def test_kolmogorov_tail_is_the_alternating_series(x: float) -> None:
    """Both forms of the series are one function: summed here to its end, whatever that takes."""
    series = 2 * math.fsum((-1) ** (k - 1) * math.exp(-2 * (k * x) ** 2) for k in range(1, 200))
    assert statistics._kolmogorov_tail(x) == pytest.approx(series, abs=1e-13)


@pytest.mark.parametrize(("first", "second"), [([], [1.0]), ([1.0], [])])
def test_no_values_no_test(first: list[float], second: list[float]) -> None:
    with pytest.raises(AssertionError, match="no values"):
        kolmogorov_smirnov(first, second)


score_lists = st.lists(
    st.sampled_from([0.0, 0.25, 1.0]) | st.floats(-1, 1, allow_subnormal=False), min_size=1, max_size=9
)


@settings(deadline=None)
@given(score_lists, st.data())
def test_mean_of_the_highest_over_all_subsets(scores: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(scores)))
    assert leak_at_k(scores, k) == pytest.approx(fmean(map(max, combinations(scores, k))), abs=1e-12)


@settings(deadline=None)
@given(score_lists)
def test_from_the_mean_to_the_highest_and_never_down(scores: list[float]) -> None:
    """Exactly, not just up to rounding; the order of the samples does not matter."""
    values = [leak_at_k(scores, k) for k in range(1, len(scores) + 1)]
    assert values[0] == pytest.approx(fmean(scores), abs=1e-15)
    assert values[-1] == max(scores)
    assert values == sorted(values)
    assert values == [leak_at_k(scores[::-1], k) for k in range(1, len(scores) + 1)]


@settings(deadline=None)
@given(st.integers(1, 200), st.data())
def test_of_zeros_and_ones_it_is_pass_at_k(n: int, data: st.DataObject) -> None:
    """1 - C(n-c, k) / C(n, k), arXiv 2107.03374, as a product of the chances to miss one after the other."""
    leaks, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    missed = math.prod(max(0, n - leaks - draw) / (n - draw) for draw in range(k))
    assert leak_at_k([1.0] * leaks + [0.0] * (n - leaks), k) == pytest.approx(1 - missed, abs=1e-9)


def test_by_hand() -> None:
    """Of 0, .5, 1 the three pairs have the highest .5, 1, 1; equal scores stay what they are at any k."""
    assert leak_at_k([1.0, 0.0, 0.5], 2) == pytest.approx(2.5 / 3)
    assert [leak_at_k([0.1] * 7, k) for k in range(1, 8)] == [0.1] * 7
    assert leak_at_k([0.3], 1) == 0.3


@pytest.mark.parametrize(("count", "k"), [(3, 4), (3, 0), (3, -1), (0, 1)])
def test_k_and_samples(count: int, k: int) -> None:
    with pytest.raises(ValueError, match=f"got k = {k} and {count} samples"):
        leak_at_k([0.5] * count, k)


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_scores_must_be_finite(score: float) -> None:
    with pytest.raises(ValueError, match=f"scores must be finite, got {score}"):
        leak_at_k([0.5, score], 1)
