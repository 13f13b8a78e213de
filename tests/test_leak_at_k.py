"""leak@k against all subsets, and against the formula of pass@k."""

import math
from itertools import combinations
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearn_pl.metrics.leak_at_k import leak_at_k

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
