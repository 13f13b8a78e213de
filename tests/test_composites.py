"""The aggregates of other benchmarks against arithmetic by hand and formulas written out again."""

import itertools
import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearn_pl.metrics.composites import (
    attack_score,
    attack_score_to_retrained,
    harmonic,
    memorization,
    s_mia,
)

unit = st.sampled_from([0.0, 0.5, 1.0]) | st.floats(0, 1, allow_subnormal=False)


def inverse_mean(parts: list[float]) -> float:
    """Harmonic mean as the product of all over the mean product of all but one: no part is divided by."""
    others = [math.prod(parts[:place] + parts[place + 1 :]) for place in range(len(parts))]
    return 0.0 if 0 in parts else math.prod(parts) * len(parts) / math.fsum(others)


# well above the least float, so that the products of inverse_mean stay above it too
part = st.just(0.0) | st.floats(1e-6, 1)


@settings(deadline=None)
@given(st.lists(part, min_size=1, max_size=9))
def test_harmonic_mean(parts: list[float]) -> None:
    score = harmonic(parts)
    assert score == pytest.approx(inverse_mean(parts), rel=1e-9)
    assert isinstance(score, float)
    assert harmonic([*parts, None]) is None


def test_harmonic_by_hand() -> None:
    """2 / (1 + 3) = 1/2; one zero makes zero; no parts are an error, not a score."""
    assert harmonic([1, 1 / 3]) == pytest.approx(0.5)
    assert harmonic([1, 0, 1]) == 0
    assert harmonic([None]) is None
    assert harmonic([None, 0]) is None
    with pytest.raises(AssertionError, match="no parts"):
        harmonic([])


@settings(deadline=None)
@given(part, part, part, part)
def test_open_unlearning_scores(a: float, b: float, c: float, d: float) -> None:
    turned = memorization(1 - a, 1 - b, 1 - c, 1 - d)
    assert turned == pytest.approx(inverse_mean([a, b, c, d]), rel=1e-6, abs=1e-9)


def test_open_unlearning_by_hand() -> None:
    """4 / (1/.8 + 1/.5 + 1/1 + 1/.25) = 4 / 8.25; a text that can be extracted whole makes 0. Strength, exactness and
    probability of .1 with a ratio R of wrong to right answers: right / (right + wrong) is 1 / (1 + R), so an
    over-forgotten model (R = 100) is near 1, and not near 0 as with min(R, 1/R)."""
    for ratio, score in ((1, 0.75), (10, 0.902), (100, 0.921)):
        assert memorization(0.1, 0.1, 0.1, 1 / (1 + ratio)) == pytest.approx(score, abs=1e-3)
    assert memorization(0.2, 0.5, 0.0, 0.75) == pytest.approx(4 / 8.25)
    assert memorization(1.0, 0.5, 0.0, 0.75) == 0


@pytest.mark.parametrize(
    ("composite", "number"),
    [(memorization, 4), (attack_score, 1), (attack_score_to_retrained, 2), (s_mia, 2)],
)
def test_none_unless_all_parts_exist(composite: Callable[..., float | None], number: int) -> None:
    """Every choice of missing parts, the zeros among the others included."""
    for parts in itertools.product([None, 0.0, 0.5], repeat=number):
        assert (composite(*parts) is None) == (None in parts)


@settings(deadline=None)
@given(unit)
def test_attack_score(auc: float) -> None:
    """Twice the distance to the nearer of 0 and 1; the same as against a retrained model where the attack guesses."""
    assert attack_score(auc) == pytest.approx(2 * min(auc, 1 - auc), abs=1e-12)
    assert attack_score_to_retrained(auc, 0.5) == pytest.approx(attack_score(auc), abs=1e-12)


@settings(deadline=None)
@given(unit, unit)
def test_attack_score_to_retrained_lies_between_its_ends(auc: float, retrained: float) -> None:
    """1 at the retrained model's AUC, 0 at the end farther from it, straight between."""
    farther = max([0.0, 1.0], key=lambda end: abs(end - retrained))
    score = attack_score_to_retrained(auc, retrained)
    assert score is not None
    assert 0 <= score <= 1
    assert 1 - score == pytest.approx(abs(auc - retrained) / abs(farther - retrained), abs=1e-12)
    assert attack_score_to_retrained(retrained, retrained) == 1
    assert attack_score_to_retrained(farther, retrained) == pytest.approx(0, abs=1e-12)


def test_attack_score_to_retrained_by_hand() -> None:
    """1 - |.4 - .6| / .6 = 2/3 and 1 - |.9 - .2| / .8 = 1/8."""
    assert attack_score_to_retrained(0.4, 0.6) == pytest.approx(2 / 3)
    assert attack_score_to_retrained(0.9, 0.2) == pytest.approx(1 / 8)


def test_s_mia_by_hand() -> None:
    """The formula of UDS: 1 - |.5 - .4| / .4 = 3/4 (our own gives 5/6), and 0 where the distance exceeds AUC_r."""
    assert s_mia(0.5, 0.4) == pytest.approx(0.75)
    assert attack_score_to_retrained(0.5, 0.4) == pytest.approx(1 - 0.1 / 0.6)
    assert s_mia(0.9, 0.4) == 0
    assert s_mia(0.0, 0.0) == 1
    assert s_mia(0.1, 0.0) == 0
