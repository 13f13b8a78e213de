"""Membership attacks against second implementations in plain Python and against hand arithmetic."""

import math
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearn_pl.metrics.attacks import (
    ATTACKS,
    MIN_K_SHARE,
    STD_FLOOR,
    Evidence,
    attack_scores,
    loss_score,
    min_k_pp_score,
    min_k_score,
    reference_score,
    zlib_score,
)

logprobs = st.lists(st.floats(-30, 0, allow_subnormal=False), min_size=1, max_size=30)
Triples = list[tuple[float, float, float]]
triples = st.lists(
    st.tuples(
        st.floats(-30, 0, allow_subnormal=False),
        st.floats(-11, 0, allow_subnormal=False),
        st.sampled_from([0.0, STD_FLOOR / 2, 0.5, 3.0]),
    ),
    min_size=1,
    max_size=30,
)


def evidence(
    logprob: list[float],
    mean: list[float] | None = None,
    std: list[float] | None = None,
    text: str = "a text",
    reference: float | None = None,
) -> Evidence:
    return Evidence(text, np.array(logprob), np.array(mean or []), np.array(std or []), reference)


def mean_of_lowest(values: list[float], percent: int) -> float:
    """Second implementation: take the lowest one after the other, as many as whole numbers say, at least one."""
    left, taken = list(values), []
    for _ in range(max(1, len(values) * percent // 100)):
        taken.append(min(left))
        left.remove(taken[-1])
    return math.fsum(taken) / len(taken)


@settings(deadline=None)
@given(logprobs, st.text(st.characters(exclude_categories=["Cs"])), st.floats(0, 20, allow_subnormal=False))
def test_loss_zlib_and_reference(values: list[float], text: str, reference: float) -> None:
    nll = -math.fsum(values) / len(values)
    document = evidence(values, text=text, reference=reference)
    assert loss_score(document) == pytest.approx(-nll, abs=1e-12)
    assert zlib_score(document) == pytest.approx(-nll / len(zlib.compress(bytes(text, "utf-8"))), abs=1e-12)
    assert reference_score(document) == pytest.approx(reference - nll, abs=1e-12)


@settings(deadline=None)
@given(logprobs, st.sampled_from([1, 20, 40, 50, 100]))
def test_min_k_is_the_mean_of_the_lowest(values: list[float], percent: int) -> None:
    """With all tokens it is the loss attack; the default is 20 %."""
    document = evidence(values)
    assert min_k_score(document, percent / 100) == pytest.approx(mean_of_lowest(values, percent), abs=1e-12)
    assert min_k_score(document) == min_k_score(document, 0.2)
    assert min_k_score(document, 1.0) == pytest.approx(loss_score(document), abs=1e-12)
    assert min(values) - 1e-12 <= min_k_score(document) <= loss_score(document) + 1e-12


@settings(deadline=None)
@given(triples)
def test_min_k_pp_is_the_mean_of_the_lowest_standardised(values: Triples) -> None:
    logprob, mean, std = (list(column) for column in zip(*values, strict=True))
    standardised = [(x - m) / (s if s > STD_FLOOR else STD_FLOOR) for x, m, s in values]
    expected = mean_of_lowest(standardised, 20)
    assert min_k_pp_score(evidence(logprob, mean, std)) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@settings(deadline=None)
@given(triples, st.integers(1, 5))
def test_min_k_pp_does_not_see_the_unit(values: Triples, factor: int) -> None:
    """Log probabilities, means and deviations in another unit give the same score, where no deviation is at the floor;
    with mean 0 and deviation 1 it is Min-K%."""
    logprob, mean, std = ([*column] for column in zip(*[(x, m, s + 1) for x, m, s in values], strict=True))
    scaled = [[factor * x for x in column] for column in (logprob, mean, std)]
    assert min_k_pp_score(evidence(*scaled)) == pytest.approx(min_k_pp_score(evidence(logprob, mean, std)), abs=1e-9)
    zeros, ones = [0.0] * len(values), [1.0] * len(values)
    assert min_k_pp_score(evidence(logprob, zeros, ones)) == pytest.approx(min_k_score(evidence(logprob)), abs=1e-12)


def test_by_hand() -> None:
    """Ten tokens, 20 % of them two: the lowest log p are -6 and -4, mean -5; standardised (-6+2)/4 = -1 and, lowest of
    all, (-3+1)/.5 = -4, mean -2.5. The mean over ten is -2.1."""
    logprob = [-6.0, -4.0, -3.0, -2.0, -2.0, -1.0, -1.0, -1.0, -1.0, 0.0]
    mean = [-2.0, -4.0, -1.0, -2.0, -2.0, -1.0, -1.0, -1.0, -1.0, 0.0]
    std = [4.0, 1.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0]
    document = evidence(logprob, mean, std, text="ab", reference=2.6)
    assert attack_scores("loss", [document]) == [pytest.approx(-2.1)]
    assert attack_scores("zlib", [document]) == [pytest.approx(-2.1 / 10)]  # zlib: 8 bytes around two letters
    assert attack_scores("min_k", [document]) == [pytest.approx(-5)]
    assert attack_scores("min_k_pp", [document]) == [pytest.approx(-2.5)]
    assert attack_scores("reference", [document]) == [pytest.approx(0.5)]


def test_short_documents_have_one_lowest_token() -> None:
    """20 % of 1, 4, 5 and 9 tokens is one token, of 10 two."""
    for length, expected in [(1, -1.0), (4, -4.0), (5, -5.0), (9, -9.0), (10, -9.5)]:
        assert min_k_score(evidence([-float(i) for i in range(1, length + 1)])) == expected


def test_repetitive_text_is_weighed_by_its_zlib_bytes() -> None:
    """The same loss says less of a text that compresses well: a lower score; UTF-8 bytes are counted, not letters."""
    plain, repeated = (evidence([-2.0], text=text) for text in ("The old lighthouse keeper", "a" * 25))
    assert zlib_score(repeated) < zlib_score(plain)
    assert zlib_score(evidence([-2.0], text="Ошибка")) > zlib_score(evidence([-2.0], text="Oshibk"))
    assert zlib_score(evidence([-2.0], text="")) == pytest.approx(-2 / 8)


def test_a_certain_place_adds_nothing_and_rounding_does_not_decide() -> None:
    """Deviation 0 and log p = mean: 0; 1e-6 of rounding: 1e-6 / 1e-3 = .001; a wrong token there: far below."""
    assert min_k_pp_score(evidence([-0.5], [-0.5], [0.0])) == 0
    assert min_k_pp_score(evidence([-10.000001], [-10.0], [0.0])) == pytest.approx(-0.001, rel=1e-3)
    assert min_k_pp_score(evidence([-20.0], [0.0], [0.0])) == pytest.approx(-20 / STD_FLOOR)


@pytest.mark.parametrize("name", list(ATTACKS))
@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_broken_document_is_the_least_likely_member(name: str, value: float) -> None:
    """Also if one of many tokens is broken, which NaN would hide behind the lowest others; the sound one keeps its
    score."""
    broken = evidence([-1.0] * 9 + [value], [-1.0] * 10, [1.0] * 10, reference=2.0)
    sound = evidence([-1.0] * 10, [-1.0] * 10, [1.0] * 10, reference=2.0)
    lowest, score = attack_scores(name, [broken, sound])
    assert lowest == -math.inf
    assert math.isfinite(score)


def test_broken_moments_and_references_too() -> None:
    """-inf - -inf and an infinite reference loss."""
    assert attack_scores("min_k_pp", [evidence([-math.inf], [-math.inf], [1.0])]) == [-math.inf]
    assert attack_scores("min_k_pp", [evidence([-1.0], [-1.0], [math.nan])]) == [-math.inf]
    assert attack_scores("reference", [evidence([-1.0], reference=math.inf)]) == [-math.inf]


def test_the_table_says_what_an_attack_needs() -> None:
    """An attack runs without what it does not name, and refuses to run without what it does."""
    bare = evidence([-1.0, -2.0])
    for name, attack in ATTACKS.items():
        if attack.needs_moments or attack.needs_reference:
            with pytest.raises(ValueError, match=f"{name} needs"):
                attack_scores(name, [bare])
        else:
            assert attack_scores(name, [bare, bare]) == [attack.score(bare)] * 2
    assert [name for name, attack in ATTACKS.items() if attack.needs_moments] == ["min_k_pp"]
    assert [name for name, attack in ATTACKS.items() if attack.needs_reference] == ["reference"]
    assert attack_scores("loss", []) == []


def test_the_share_is_an_option() -> None:
    """Ten tokens, -1 to -10: a fifth are two, mean -9.5; four tenths are four, mean -8.5."""
    assert MIN_K_SHARE == 0.2
    ten = evidence([-float(place) for place in range(1, 11)], [0.0] * 10, [1.0] * 10)
    for name in ("min_k", "min_k_pp"):
        assert attack_scores(name, [ten]) == [pytest.approx(-9.5)]
        assert attack_scores(name, [ten], share=0.4) == [pytest.approx(-8.5)]
    assert attack_scores("loss", [ten], share=0.4) == [pytest.approx(-5.5)]


def test_unknown_attack() -> None:
    with pytest.raises(ValueError, match="must be one of loss, zlib, min_k, min_k_pp, reference, got 'lira'"):
        attack_scores("lira", [])


def test_evidence_is_checked() -> None:
    with pytest.raises(ValueError, match=r"T of at least 2, got shape \(0,\)"):
        evidence([])
    with pytest.raises(ValueError, match="as long as logprob, or both empty"):
        evidence([-1.0, -1.0], [-1.0], [1.0])
    with pytest.raises(ValueError, match="as long as logprob, or both empty"):
        evidence([-1.0], [-1.0], [])
