"""Truth ratios against arithmetic by hand and the formulas written out again."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearn_pl.metrics.truth_ratio import DEFINITIONS, AnswerLogprobs, ratio_closeness, ratio_utility

logprobs = st.lists(st.floats(-30, 0, allow_subnormal=False), min_size=1, max_size=12)
ratios = st.lists(
    st.sampled_from([0.0, 1.0, math.inf]) | st.floats(0, 1e6, allow_subnormal=False), min_size=1, max_size=9
)


@settings(deadline=None)
@given(logprobs, logprobs)
def test_ratios_of_both_means(right: list[float], wrong: list[float]) -> None:
    one, other = AnswerLogprobs(tuple(right), tuple(wrong)), AnswerLogprobs(tuple(wrong), tuple(right))
    likely = [[math.exp(value) for value in values] for values in (right, wrong)]
    means = [math.fsum(values) / len(values) for values in likely]
    roots = [math.prod(values) ** (1 / len(values)) for values in likely]
    assert one.ratio("arithmetic") == pytest.approx(means[1] / means[0], rel=1e-9)
    assert one.ratio("geometric") == pytest.approx(roots[1] / roots[0], rel=1e-9)
    assert one.right_share == pytest.approx(roots[0] / (roots[0] + roots[1]), rel=1e-9)
    assert one.probability == pytest.approx(means[0], rel=1e-9)
    for mean in ("arithmetic", "geometric"):
        assert one.ratio(mean) * other.ratio(mean) == pytest.approx(1, rel=1e-9)


def test_one_row_by_hand() -> None:
    """Losses of .5 for the right answer and of 1, 2 and .7 for the wrong ones. Arithmetic: (e^-1 + e^-2 + e^-.7) / 3
    / e^-.5; geometric: e^-(3.7 / 3) / e^-.5."""
    row = AnswerLogprobs((-0.5,), (-1.0, -2.0, -0.7))
    assert row.ratio("arithmetic") == pytest.approx(0.549464, abs=5e-7)
    assert row.ratio("geometric") == pytest.approx(0.480305, abs=5e-7)
    assert ratio_utility([row.ratio("arithmetic")]) == pytest.approx(0.450536, abs=5e-7)
    assert ratio_utility([row.ratio("geometric")]) == pytest.approx(0.519695, abs=5e-7)
    assert row.right_share == pytest.approx(0.675536, abs=5e-7)
    assert DEFINITIONS["tofu_code"] == ("geometric", "arithmetic")


def test_beyond_what_floats_hold() -> None:
    """exp(-2000) is 0 in floats, the ratio of two such numbers is not."""
    assert AnswerLogprobs((-2000.0,), (-2001.0, -2001.0)).ratio("arithmetic") == pytest.approx(math.exp(-1))
    assert AnswerLogprobs((-2000.0,), (-1.0,)).ratio("geometric") == math.inf
    assert AnswerLogprobs((-2000.0,), (-1.0,)).right_share == 0
    assert AnswerLogprobs((-1.0,), (-2000.0,)).ratio("arithmetic") == 0


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_broken_row(value: float) -> None:
    assert AnswerLogprobs((-1.0, value), (-1.0,)).broken
    assert AnswerLogprobs((-1.0,), (value,)).broken
    assert not AnswerLogprobs((-1.0,), (-1.0,)).broken


@settings(deadline=None)
@given(ratios)
def test_utility_and_closeness(values: list[float]) -> None:
    """Loops that name each case: below 1, and from 1 on."""
    useful = close = 0.0
    for ratio in values:
        if ratio < 1:
            useful += 1 - ratio
            close += ratio
        else:
            close += 1 / ratio
    assert ratio_utility(values) == pytest.approx(useful / len(values), abs=1e-12)
    assert ratio_closeness(values) == pytest.approx(close / len(values), abs=1e-12)
