"""The ROC side of a membership attack against counting over all pairs and over all thresholds."""

import hashlib
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearn_pl.evaluation.roc import area_under_curve, halves, membership_score, true_positive_rate, verdict

few = st.integers(-3, 3).map(float) | st.sampled_from([-math.inf, math.inf])
scores = st.lists(few | st.floats(-1e6, 1e6, allow_subnormal=False), min_size=1, max_size=12)
# quotients of small numbers: limits that the rates of small samples meet exactly
rates = st.tuples(st.integers(0, 12), st.integers(1, 12)).map(lambda pair: min(1.0, pair[0] / pair[1]))


def best_of_all_thresholds(members: list[float], nonmembers: list[float], limit: float) -> float:
    best = 0.0  # of a threshold above all scores
    for threshold in {*members, *nonmembers}:
        accused = sum(score >= threshold for score in nonmembers) / len(nonmembers)
        if accused <= limit:
            best = max(best, sum(score >= threshold for score in members) / len(members))
    return best


@settings(deadline=None)
@given(scores, scores)
def test_area_is_the_share_of_won_pairs(members: list[float], nonmembers: list[float]) -> None:
    won = sum((a > b) + 0.5 * (a == b) for a in members for b in nonmembers) / (len(members) * len(nonmembers))
    assert area_under_curve(members, nonmembers) == won
    assert membership_score(won) == pytest.approx(2 * min(won, 1 - won), abs=1e-12)


@settings(deadline=None)
@given(scores, scores, rates)
def test_true_positive_rate_is_the_best_of_all_thresholds(
    members: list[float], nonmembers: list[float], rate: float
) -> None:
    assert true_positive_rate(members, nonmembers, rate) == best_of_all_thresholds(members, nonmembers, rate)


@settings(deadline=None)
@given(scores, scores, rates)
def test_only_the_order_counts(members: list[float], nonmembers: list[float], rate: float) -> None:
    """The place of a score among the sorted ones, cubed, is a strictly increasing map of it."""
    places = {score: float(place**3) for place, score in enumerate(sorted({*members, *nonmembers}))}
    mapped = [places[score] for score in members], [places[score] for score in nonmembers]
    assert true_positive_rate(*mapped, rate) == true_positive_rate(members, nonmembers, rate)
    assert area_under_curve(*mapped) == area_under_curve(members, nonmembers)


@settings(deadline=None)
@given(scores, scores, rates, rates)
def test_a_looser_limit_catches_no_fewer(
    members: list[float], nonmembers: list[float], one: float, other: float
) -> None:
    low, high = sorted([one, other])
    assert true_positive_rate(members, nonmembers, low) <= true_positive_rate(members, nonmembers, high)
    assert true_positive_rate(members, nonmembers, 1.0) == 1


@pytest.mark.parametrize(
    ("rate", "caught"),
    [(0.0, 0.25), (0.19, 0.25), (0.2, 0.25), (0.39, 0.25), (0.4, 0.75), (0.99, 0.75), (1.0, 1.0)],
)
def test_ties_are_flagged_together(rate: float, caught: float) -> None:
    """Non-members 4 4 3 2 2, members 5 4 4 1. Above 4 is one member of four; from 4 on are three, at the price of two
    non-members of five at once; the last member lies below every non-member."""
    assert true_positive_rate([5, 4, 4, 1], [4, 4, 3, 2, 2], rate) == caught


def test_a_limit_that_is_met_exactly() -> None:
    """29 of 100 non-members are 29 %, though .29 * 100 is 28.999999999999996 in floats."""
    assert true_positive_rate([71], list(range(100)), 0.29) == 1
    assert true_positive_rate([71], list(range(100)), 0.28) == 0
    assert true_positive_rate([99.5, 50], list(range(100)), 0.01) == 0.5


def test_infinite_scores() -> None:
    """All tied: no threshold parts them. Members at infinity stand out unless a non-member is there too."""
    assert true_positive_rate([-math.inf] * 3, [-math.inf] * 2, 0.5) == 0
    assert true_positive_rate([math.inf, 0], [1, 2], 0) == 0.5
    assert true_positive_rate([math.inf, 0], [math.inf, 2], 0) == 0
    assert true_positive_rate([math.inf, 0], [math.inf, -math.inf], 0.5) == 1


@pytest.mark.parametrize(("members", "nonmembers", "rate"), [([], [1], 0.1), ([1], [], 0.1), ([1], [1], 1.5)])
def test_true_positive_rate_refuses(members: list[float], nonmembers: list[float], rate: float) -> None:
    with pytest.raises(AssertionError):
        true_positive_rate(members, nonmembers, rate)


@pytest.mark.parametrize(
    ("auc", "low", "high", "said"),
    [
        (0.8, 0.7, 0.9, "leaks: members stand out"),
        (0.2, 0.1, 0.3, "leaks: members stand out by being too unlikely"),
        (0.55, 0.45, 0.65, "no leak shown"),
        (0.6, 0.5, 0.7, "no leak shown"),
        (0.4, 0.3, 0.5, "no leak shown"),
        (1.0, 1.0, 1.0, "leaks: members stand out"),
        (0.0, 0.0, 0.0, "leaks: members stand out by being too unlikely"),
        (0.5, 0.5, 0.5, "no leak shown"),
        (0.49, 0.51, 0.6, "no leak shown"),
        (0.51, 0.4, 0.49, "no leak shown"),
    ],
)
def test_verdict(auc: float, low: float, high: float, said: str) -> None:
    """An end at 1/2 is not beyond it; an AUC on the other side than its interval shows nothing."""
    assert verdict(auc, low, high) == said


def test_verdict_refuses_a_reversed_interval() -> None:
    with pytest.raises(AssertionError):
        verdict(0.5, 0.6, 0.4)


@settings(deadline=None)
@given(st.lists(st.text(max_size=5) | st.sampled_from(["", "Я", "東京", "\ud800"]), max_size=20))
def test_halves_go_by_the_first_bit_of_the_hash(texts: list[str]) -> None:
    """The first bit is set if the first of the 64 hexadecimal digits is 8 or more."""
    calibration, holdout = halves(texts)
    high = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[0] in "89abcdef" for text in texts]
    assert holdout == [index for index, bit in enumerate(high) if bit]
    assert calibration == [index for index, bit in enumerate(high) if not bit]


def test_halves_of_published_hashes() -> None:
    """SHA-256 of "abc" begins with ba and that of the empty text with e3 (FIPS 180-4): both are held out, wherever
    they stand; that of "a" begins with ca, that of "b" with 3e."""
    assert halves(["abc", "b", "", "a", "abc"]) == ([1], [0, 2, 3, 4])
    assert halves([]) == ([], [])


def test_halves_are_nearly_equal() -> None:
    """Of 1000 texts, 500 are expected in each, with a standard deviation of sqrt(1000) / 2 = 16. Among them are hashes
    with a first byte just below and above the middle; the first bit is the highest of a number of 256 bits."""
    texts = [f"document {number}" for number in range(1000)]
    calibration, holdout = halves(texts)
    assert holdout == [
        index for index, text in enumerate(texts) if int(hashlib.sha256(text.encode()).hexdigest(), 16) >> 255
    ]
    assert len(calibration) + len(holdout) == 1000
    assert {hashlib.sha256(text.encode()).digest()[0] for text in texts} >= {126, 127, 128, 129}
    assert abs(len(calibration) - 500) < 80
