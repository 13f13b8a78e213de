"""Row scores and the membership score against published values, hand-computed cases and second implementations."""

import math
import subprocess
import sys
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearn_pl.metrics.roc import area_under_curve, membership_score
from unlearn_pl.metrics.scores import (
    knowledge_score,
    regurgitation_score,
    rouge_share,
    unicode_regurgitation,
)

# torch flushes denormals in this process
unit = st.floats(0, 1, allow_subnormal=False)
numbers = st.lists(st.integers(-3, 3).map(float) | st.floats(-1e6, 1e6, allow_subnormal=False), min_size=1, max_size=12)


@pytest.mark.parametrize(("auc", "score"), [(0.022, 0.044), (0.818, 0.364), (0.501, 0.998), (0.5, 1), (1, 0), (0, 0)])
def test_membership_score_of_the_paper(auc: float, score: float) -> None:
    """1 - 2 |.022 - .5| = .044 and so on: Table 1 of arXiv 2503.21088."""
    assert membership_score(auc) == pytest.approx(score, abs=1e-12)


@settings(deadline=None)
@given(numbers, numbers)
def test_area_is_the_share_of_won_pairs(members: list[float], nonmembers: list[float]) -> None:
    """Second implementation: over all pairs, 1 for a member above, 1/2 for a tie; swapping the sides gives 1 - AUC."""
    won = sum((a > b) + 0.5 * (a == b) for a in members for b in nonmembers) / (len(members) * len(nonmembers))
    assert area_under_curve(members, nonmembers) == won
    assert area_under_curve(nonmembers, members) == pytest.approx(1 - won, abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(numbers, numbers)
def test_area_equals_torchmetrics(members: list[float], nonmembers: list[float]) -> None:
    """On ranks in [0, 1]: torchmetrics sends other scores through a sigmoid."""
    from torchmetrics.functional.classification import binary_auroc

    values = torch.tensor(members + nonmembers, dtype=torch.float64)
    ranks = torch.unique(values, return_inverse=True)[1].double() / len(values)
    labels = torch.tensor([1] * len(members) + [0] * len(nonmembers))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = binary_auroc(ranks, labels).item()
    assert area_under_curve(members, nonmembers) == pytest.approx(theirs, abs=1e-6)


def test_area_of_infinite_losses() -> None:
    """A broken model gives every document the score minus infinity: all ties, the attack learns nothing."""
    assert area_under_curve([-math.inf] * 3, [-math.inf] * 2) == 0.5
    assert area_under_curve([-math.inf], [-1.0]) == 0.0


def lcs(a: list[str], b: list[str]) -> int:
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


words = st.lists(st.sampled_from(["red", "fox", "sky", "7", "cup"]), max_size=8)


@settings(deadline=None)
@given(words.filter(bool), words)
def test_regurgitation_is_lcs_over_expected_length(expected: list[str], generated: list[str]) -> None:
    """On short words, which the stemmer leaves alone."""
    score = regurgitation_score(" ".join(expected), " ".join(generated))
    assert score == pytest.approx(lcs(expected, generated) / len(expected))


def test_regurgitation_is_a_recall_with_stemmer() -> None:
    """Text before and after costs nothing; `painted houses` and `painting house` have the same stems; empty is 0."""
    assert regurgitation_score("a b", "x a y b z and much more") == 1
    assert regurgitation_score("a b c d", "a b") == 0.5
    assert regurgitation_score("painted houses", "painting house") == 1
    assert regurgitation_score("a b", "") == 0


@pytest.mark.parametrize(
    ("expected", "generated", "score"),
    [("Paris", " paris\n", 1), ("Paris", "Paris.", 0), ("Paris", "It is Paris", 0), ("1984-12-31", "1984-12-31", 1)],
)
def test_knowledge_wants_the_whole_generation(expected: str, generated: str, score: int) -> None:
    assert knowledge_score(expected, generated) == score


def test_scores_need_no_torch() -> None:
    code = "import sys, unlearn_pl.metrics.scores; sys.exit(bool({'torch', 'transformers', 'peft'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_rouge_scores_nothing_that_it_cannot_see() -> None:
    """Its tokenizer knows a-z and 0-9; a word-for-word copy of a Chinese text had the score 0, of a forgotten one."""
    for blind in ("上海是她的家。", "Москва", "...", ""):
        assert regurgitation_score(blind, blind) is None
    assert regurgitation_score("上海 ab", "ab") == 1
    assert rouge_share("Łódź 12") == 3 / 6
    assert rouge_share("!?") == 0


@pytest.mark.parametrize(
    ("expected", "generated", "share"),
    [
        ("上海是她的家。", "上海是她的家", 1.0),
        ("上海是她的家", "北京是她家", 3 / 6),  # 是, 她, 家
        ("Старый маяк, на СЕВЕРЕ", "маяк на севере!", 3 / 4),
        ("the old house", "House the old", 2 / 3),
        ("बड़ा घर", "घर", 1 / 2),  # vowel signs belong to their words
        ("...", "...", None),
    ],
)
def test_regurgitation_in_every_script(expected: str, generated: str, share: float | None) -> None:
    assert unicode_regurgitation(expected, generated) == (None if share is None else pytest.approx(share))
