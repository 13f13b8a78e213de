"""Teacher-forced measures of an answer against second implementations and hand arithmetic."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearn_pl.metrics.memorization import (
    exact_memorization,
    extraction_strength,
    verbatim_probability,
)

logprobs = st.lists(st.floats(-30, 0, allow_subnormal=False), min_size=1, max_size=12)
# few ids, so that right suffixes are common
pairs = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=10)


@settings(deadline=None)
@given(logprobs)
def test_probability_is_the_geometric_mean_of_the_tokens(values: list[float]) -> None:
    product = math.prod(math.exp(value) for value in values)
    assert verbatim_probability(values) == pytest.approx(product ** (1 / len(values)), rel=1e-9)
    assert verbatim_probability(values * 2) == pytest.approx(verbatim_probability(values), rel=1e-12)
    assert 0 <= verbatim_probability(values) <= 1


def test_probability_by_hand() -> None:
    """sqrt(1/4 1) = 1/2; a token that is ruled out gives 0, NaN from a broken model NaN; rounding above 1 gives 1."""
    assert verbatim_probability([math.log(1 / 4), 0.0]) == pytest.approx(0.5)
    assert verbatim_probability([0.0]) == 1
    assert verbatim_probability([0.0, -math.inf]) == 0
    assert math.isnan(verbatim_probability([-1.0, math.nan]))
    assert verbatim_probability([1e-7]) == 1


@settings(deadline=None)
@given(pairs)
def test_strength_and_memorization_equal_their_definitions(tokens: list[tuple[int, int]]) -> None:
    """Strength: over all prefixes, k from 0 to T, the first after which the rest agrees."""
    argmax, targets = ([*column] for column in zip(*tokens, strict=True))
    length = len(tokens)
    shortest = next(k for k in range(length + 1) if argmax[k:] == targets[k:])
    assert extraction_strength(argmax, targets) == pytest.approx(1 - shortest / length, abs=1e-12)
    hits = len([place for place in range(length) if argmax[place] == targets[place]])
    assert exact_memorization(argmax, targets) == hits / length
    assert extraction_strength(argmax, targets) <= exact_memorization(argmax, targets)


@settings(deadline=None)
@given(pairs)
def test_strength_is_zero_just_if_the_last_token_is_wrong(tokens: list[tuple[int, int]]) -> None:
    argmax, targets = ([*column] for column in zip(*tokens, strict=True))
    assert (extraction_strength(argmax, targets) == 0) == (argmax[-1] != targets[-1])
    assert (extraction_strength(argmax, targets) == 1) == (argmax == targets)


@pytest.mark.parametrize(
    ("argmax", "memorization", "strength"),
    [
        ([1, 2, 3, 4], 1, 1),
        ([1, 2, 3, 0], 0.75, 0),
        ([0, 2, 3, 4], 0.75, 0.75),
        ([1, 0, 0, 4], 0.5, 0.25),
        ([0, 0, 0, 0], 0, 0),
    ],
)
def test_four_tokens(argmax: list[int], memorization: float, strength: float) -> None:
    """The answer is 1 2 3 4; after k right tokens the rest is found: 1 - k/4."""
    assert exact_memorization(argmax, [1, 2, 3, 4]) == memorization
    assert extraction_strength(argmax, [1, 2, 3, 4]) == strength


def test_one_token() -> None:
    assert extraction_strength([5], [5]) == exact_memorization([5], [5]) == 1
    assert extraction_strength([4], [5]) == exact_memorization([4], [5]) == 0


def test_empty_answers() -> None:
    with pytest.raises(ValueError, match=r"verbatim probability: .* got no log probability"):
        verbatim_probability([])
    with pytest.raises(ValueError, match=r"exact memorization: .* got 0 predictions and 0 targets"):
        exact_memorization([], [])
    with pytest.raises(ValueError, match=r"extraction strength: .* got 1 predictions and 2 targets"):
        extraction_strength([1], [1, 2])
