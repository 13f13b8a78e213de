"""The Kolmogorov-Smirnov test against loops, closed forms and published values."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearn_pl.metrics import kolmogorov
from unlearn_pl.metrics.kolmogorov import kolmogorov_smirnov, least_p_value

finite = st.integers(-3, 3).map(float) | st.floats(-1e6, 1e6, allow_subnormal=False)
scores = st.lists(finite | st.sampled_from([-math.inf, math.inf]), min_size=1, max_size=9)


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
    monkeypatch.setattr(kolmogorov, "EXACT_VALUES", 0)
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
    assert kolmogorov._kolmogorov_tail(x) == pytest.approx(tail, abs=2e-4)


@settings(deadline=None)
@given(st.floats(0.05, 6, allow_subnormal=False))
def test_kolmogorov_tail_is_the_alternating_series(x: float) -> None:
    """Both forms of the series are one function: summed here to its end, whatever that takes."""
    series = 2 * math.fsum((-1) ** (k - 1) * math.exp(-2 * (k * x) ** 2) for k in range(1, 200))
    assert kolmogorov._kolmogorov_tail(x) == pytest.approx(series, abs=1e-13)


@pytest.mark.parametrize(("first", "second"), [([], [1.0]), ([1.0], [])])
def test_no_values_no_test(first: list[float], second: list[float]) -> None:
    with pytest.raises(AssertionError, match="no values"):
        kolmogorov_smirnov(first, second)
