"""The ROC side of a membership attack against counting over all pairs and over all thresholds."""

import hashlib
import math
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearn_pl.metrics.roc import area_under_curve, halves, membership_score, true_positive_rate, verdict

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


TEXTS = st.text(max_size=5) | st.sampled_from(["", "Я", "東京", "\ud800"])


def hashed(text: str, seed: int) -> str:
    return hashlib.sha256(f"{seed} {text}".encode("utf-8", "surrogatepass")).hexdigest()


@settings(deadline=None)
@given(st.lists(TEXTS, max_size=20), st.integers(0, 3))
def test_halves_take_one_of_each_two_of_like_length(texts: list[str], seed: int) -> None:
    """By taking away the two shortest different texts until none or one is left."""
    calibration, holdout = halves(texts, seed)
    assert sorted(calibration + holdout) == list(range(len(texts)))
    assert calibration == sorted(calibration)
    chosen, left = set(), sorted(set(texts), key=lambda text: (len(text), hashed(text, seed)))
    while left:
        pair, left = left[:2], left[2:]
        chosen |= {min(pair, key=lambda text: hashed(text, seed))} if len(pair) == 2 else set()
        if len(pair) == 1 and hashed(pair[0], seed)[0] in "01234567":
            chosen.add(pair[0])
    assert {texts[index] for index in calibration} == chosen
    assert not chosen & {texts[index] for index in holdout}


@settings(deadline=None)
@given(st.lists(TEXTS, max_size=20, unique=True), st.randoms(use_true_random=False))
def test_the_order_of_the_texts_does_not_count_and_both_halves_are_as_large(texts: list[str], random: Random) -> None:
    mixed = list(texts)
    random.shuffle(mixed)
    one, other = halves(texts), halves(mixed)
    assert {texts[index] for index in one[0]} == {mixed[index] for index in other[0]}
    assert abs(len(one[0]) - len(one[1])) == len(texts) % 2


def test_two_kinds_of_length_are_in_both_halves_alike_whatever_the_seed() -> None:
    """Eight texts of 5 letters and eight of 50: four of each in either half; the seeds give different halves."""
    texts = [f"{letter}" * length for letter in "abcdefgh" for length in (5, 50)]
    found = [halves(texts, seed)[0] for seed in range(8)]
    for calibration in found:
        assert sum(len(texts[index]) == 5 for index in calibration) == 4
        assert len(calibration) == 8
    assert len({tuple(calibration) for calibration in found}) > 4


def test_few_texts_by_hand() -> None:
    """SHA-256 of "0 a" begins with cf, of "0 b" with 84, so "b" is for calibration and "a" with its copy
    is held out; a text alone goes by its first bit."""
    assert hashed("a", 0)[:2] + hashed("b", 0)[:2] == "cf84"
    assert halves(["b", "a", "a"]) == ([0], [1, 2])
    assert halves([]) == ([], [])
    assert halves(["b"]) == ([], [0])
