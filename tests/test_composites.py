"""The aggregates of other benchmarks against arithmetic by hand and formulas written out again."""

import itertools
import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearn_pl.evaluation.composites import (
    attack_score,
    attack_score_to_retrained,
    forget_quality,
    harmonic,
    memorization,
    model_utility,
    privacy,
    truth_ratio_closeness,
    truth_ratio_utility,
    utility,
)
from unlearn_pl.evaluation.statistics import kolmogorov_smirnov

unit = st.sampled_from([0.0, 0.5, 1.0]) | st.floats(0, 1, allow_subnormal=False)
ratios = st.lists(
    st.sampled_from([0.0, 1.0, math.inf]) | st.floats(0, 1e6, allow_subnormal=False), min_size=1, max_size=9
)


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
    assert privacy(a, b, c, d) == pytest.approx(inverse_mean([a, b, c, d]), rel=1e-9)
    assert utility(a, b) == pytest.approx(inverse_mean([a, b]), rel=1e-9)
    turned = memorization(1 - a, 1 - b, 1 - c, 1 - d)
    assert turned == pytest.approx(inverse_mean([a, b, c, d]), rel=1e-6, abs=1e-9)


def test_open_unlearning_by_hand() -> None:
    """Memorization 4 / (1/.8 + 1/.5 + 1/1 + 1/.25) = 4 / 8.25; privacy 4 / (1 + 2 + 4 + 1) = 1/2; utility 2 / (2 + 4)
    = 1/3. A text that can be extracted whole makes memorization 0."""
    assert memorization(0.2, 0.5, 0.0, 0.75) == pytest.approx(4 / 8.25)
    assert memorization(1.0, 0.5, 0.0, 0.75) == 0
    assert privacy(1.0, 0.5, 0.25, 1.0) == pytest.approx(0.5)
    assert utility(0.5, 0.25) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("composite", "number"),
    [(memorization, 4), (privacy, 4), (utility, 2), (attack_score, 1), (attack_score_to_retrained, 2)],
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


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["retain", "authors", "facts"]), st.tuples(part, part, part), min_size=1))
def test_model_utility(sets: dict[str, tuple[float, float, float]]) -> None:
    numbers = [number for parts in sets.values() for number in parts]
    assert model_utility({**sets}) == pytest.approx(inverse_mean(numbers), rel=1e-9)
    for place in range(3):
        missing = (*[0.5] * place, None, *[0.5] * (2 - place))
        assert model_utility({**sets, "another": missing}) is None


def test_model_utility_by_hand() -> None:
    """Eight ones and a half: 9 / (8 + 2) = .9; one zero makes zero."""
    sets = {"retain": (1.0, 1.0, 1.0), "real authors": (1.0, 0.5, 1.0), "world facts": (1.0, 1.0, 1.0)}
    assert model_utility({**sets}) == pytest.approx(0.9)
    assert model_utility({**sets, "world facts": (1.0, 1.0, 0.0)}) == 0
    with pytest.raises(AssertionError, match="no parts"):
        model_utility({})


def test_forget_quality() -> None:
    """Three against three without overlap: 2 of the C(6, 3) = 20 orders are as far apart. The same ratios: 1."""
    assert forget_quality([0.1, 0.2, 0.3], [0.7, 0.8, math.inf]) == pytest.approx(0.1)
    assert forget_quality([0.1, 0.2], [0.1, 0.2]) == 1
    first, second = [place / 7 for place in range(9)], [place / 5 for place in range(8)]
    assert forget_quality(first, second) == kolmogorov_smirnov(first, second)[1]
    assert forget_quality(None, [0.1]) is None
    assert forget_quality([0.1], None) is None
    with pytest.raises(AssertionError):
        forget_quality([], [0.1])


@settings(deadline=None)
@given(ratios)
def test_truth_ratios(values: list[float]) -> None:
    """Loops that name each case: below 1, and from 1 on."""
    useful = close = 0.0
    for ratio in values:
        if ratio < 1:
            useful += 1 - ratio
            close += ratio
        else:
            close += 1 / ratio
    assert truth_ratio_utility(values) == pytest.approx(useful / len(values), abs=1e-12)
    assert truth_ratio_closeness(values) == pytest.approx(close / len(values), abs=1e-12)


def test_truth_ratios_by_hand() -> None:
    """Ratios 0, 1/2, 1, 2, infinite: utility (1 + 1/2) / 5 = .3, closeness (0 + 1/2 + 1 + 1/2 + 0) / 5 = .4."""
    values = [0.0, 0.5, 1.0, 2.0, math.inf]
    assert truth_ratio_utility(values) == pytest.approx(0.3)
    assert truth_ratio_closeness(values) == pytest.approx(0.4)


@pytest.mark.parametrize("score", [truth_ratio_utility, truth_ratio_closeness])
def test_truth_ratios_that_are_none(score: Callable[..., float | None]) -> None:
    assert score(None) is None
    for wrong in ([], [-0.1], [0.5, math.nan]):
        with pytest.raises(AssertionError):
            score(wrong)
