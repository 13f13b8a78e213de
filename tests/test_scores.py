"""The scores of SemEval-2025 Task 4 against published values, hand-computed cases and second implementations."""

import math
import subprocess
import sys
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import sample

from unlearn_pl.metrics.roc import area_under_curve, membership_score
from unlearn_pl.metrics.sample import Sample
from unlearn_pl.metrics.scores import (
    aggregate,
    group_scores,
    knowledge_score,
    regurgitation_score,
    rouge_share,
    row_score,
    task_aggregate,
    terms_of,
    unicode_regurgitation,
)
from unlearn_pl.tasks.semeval import official_results

# torch flushes denormals in this process
unit = st.floats(0, 1, allow_subnormal=False)
numbers = st.lists(st.integers(-3, 3).map(float) | st.floats(-1e6, 1e6, allow_subnormal=False), min_size=1, max_size=12)


@pytest.mark.parametrize(("auc", "score"), [(0.022, 0.044), (0.818, 0.364), (0.501, 0.998), (0.5, 1), (1, 0), (0, 0)])
def test_membership_score_of_the_paper(auc: float, score: float) -> None:
    """1 - 2 |.022 - .5| = .044 and so on: Table 1 of arXiv 2503.21088."""
    assert membership_score(auc) == pytest.approx(score, abs=1e-12)


@pytest.mark.parametrize(("first", "score"), [(0.5, 0.923), (0.05, 0.387), (0.0, 0.0), (1.0, 1.0)])
def test_harmonic_mean_of_twelve(first: float, score: float) -> None:
    """12 / (1/.5 + 11) = 12/13 = .923; 12 / (1/.05 + 11) = 12/31 = .387; one zero makes all zero."""
    assert task_aggregate([first, *[1.0] * 11]) == pytest.approx(score, abs=5e-4)


@settings(deadline=None)
@given(st.lists(unit, min_size=1, max_size=12))
def test_task_aggregate_lies_between_least_and_mean(terms: list[float]) -> None:
    score = task_aggregate(terms)
    assert min(terms) - 1e-9 <= score <= sum(terms) / len(terms) + 1e-9


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
    assert row_score("qa", expected, generated) == score


def scored(split: str, task: str, kind: str, score: float) -> Sample:
    return sample(split=split, task=task, kind=kind, score=score)


def all_twelve(forget: float, retain: float) -> list[Sample]:
    tasks, kinds = ("Task3", "Task1", "Task2"), ("qa", "sc")
    return [
        scored(split, task, kind, score)
        for split, score in (("retain", retain), ("forget", forget))
        for task in tasks
        for kind in kinds
    ]


def test_terms_have_the_official_order_and_turn_forget_scores() -> None:
    samples = [*all_twelve(0.25, 0.75), scored("forget", "Task2", "sc", 0.75)]
    groups = group_scores(samples)
    terms = terms_of(groups)
    order = [
        f"{s}/Task{n}/{k}" for s in ("forget", "retain") for n in (1, 2, 3) for k in ("regurgitation", "knowledge")
    ]
    assert list(terms) == order
    assert terms["forget/Task2/regurgitation"] == 1 - (0.25 + 0.75) / 2
    assert terms["forget/Task1/knowledge"] == 0.75
    assert terms["retain/Task3/knowledge"] == 0.75
    assert len(groups["forget/Task2/regurgitation"]) == 2


def test_a_missing_group_is_no_term() -> None:
    """Data without questions in Task1 has eleven terms, none of them NaN, and a mean over eleven."""
    samples = [row for row in all_twelve(0.0, 1.0) if (row.split, row.task, row.kind) != ("forget", "Task1", "qa")]
    terms = terms_of(group_scores(samples))
    assert len(terms) == 11
    assert "forget/Task1/knowledge" not in terms
    assert task_aggregate(list(terms.values())) == 1


def test_aggregate_of_the_paper() -> None:
    """(.968 + .045 + .431) / 3 = .481 and (.659 + .364 + .491) / 3 = .505: Table 1; None where a part is missing."""
    assert aggregate(0.968, 0.045, 0.431) == pytest.approx(0.4813, abs=1e-4)
    assert aggregate(0.659, 0.364, 0.491) == pytest.approx(0.5047, abs=1e-4)
    assert aggregate(0.9, None, 0.4) is None
    assert aggregate(0.9, 0.5, None) is None


def test_official_names() -> None:
    """The set entries are plain means, over rows and not over tasks; an unknown aggregate is -1."""
    groups = group_scores([*all_twelve(0.5, 1.0), scored("forget", "Task2", "qa", 0.9)])
    terms = terms_of(groups)
    results = {"membership_auc": None, "mmlu": None, "membership_score": None, "aggregate": None}
    official = official_results(
        results | {"terms": terms, "task_aggregate": task_aggregate(list(terms.values()))}, groups
    )
    assert official["forget-set"]["overall-knowledge-score"] == pytest.approx((0.5 * 3 + 0.9) / 4)
    assert official["forget-set"]["Task2"] == {"regurgitation-score": 0.5, "knowledge-score": pytest.approx(0.7)}
    assert official["retain-set"]["Task3"] == {"regurgitation-score": 1.0, "knowledge-score": 1.0}
    assert official["aggregated-terms"] == list(terms.values())
    assert official["aggregate-score"] == -1
    assert official["mia_loss_acc"] is None
    assert set(official) == {
        "forget-set", "retain-set", "mia_loss_acc", "mmlu_average", "aggregated-terms", "harmonic-mean-task-aggregate",
        "mia_final_score", "aggregate-score",
    }  # fmt: skip


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
    assert task_aggregate([0.5, None]) is None
    assert aggregate(None, 1.0, 1.0) is None


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
