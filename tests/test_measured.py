"""A measurement of sets whose names are not their roles."""

import math

import pytest
from samples import sample

from unlearn_pl.metrics.composites import memorization_of
from unlearn_pl.metrics.measured import Measured, RetrainedScores
from unlearn_pl.metrics.truth import forget_quality, truth_ratio, truth_utility
from unlearn_pl.metrics.truth_ratio import AnswerLogprobs


def ratio(value: float) -> AnswerLogprobs:
    """A right answer of probability 1/8, and a wrong one with that ratio to it."""
    return AnswerLogprobs((math.log(1 / 8),), (math.log(value / 8),))


ROWS = [
    sample(split="forget10", role="forget", scores={"exact_memorization": 0.25, "extraction_strength": 0.25},
           recall={"extraction_strength": 0.25, "length": 2}),
    sample(split="retain90", role="retain", scores={"exact_memorization": 0.5}),
    sample(split="world", role="utility", scores={"exact_memorization": 1.0}),
    sample(split="authors", role="utility", scores={"exact_memorization": 0.5, "length": None}),
]  # fmt: skip
MEASURED = Measured(samples=ROWS, truth={"forget10": [ratio(0.5)], "world": [ratio(0.25)]})


def test_sets_by_role() -> None:
    assert MEASURED.roles == {"forget10": "forget", "retain90": "retain", "world": "utility", "authors": "utility"}
    assert MEASURED.rows("utility") == ROWS[2:]
    assert MEASURED.mean("utility", "exact_memorization") == 0.75
    assert MEASURED.mean("utility", "length") is MEASURED.mean("utility", "perplexity") is None
    assert Measured(truth={"forget": [ratio(1)]}).truth_rows("forget") == [ratio(1)], "a set without rows is its role"


def test_truth_by_role() -> None:
    """1 - 1/4 of what had to stay; nobody asks how useful answers about the forget set are."""
    assert list(truth_ratio(MEASURED)) == ["forget10/truth_ratio", "world/truth_ratio"]
    assert {name: score.value for name, score in truth_utility(MEASURED).items()} == {
        "world/truth_utility": pytest.approx(0.75)
    }
    other = RetrainedScores({"forget10": [ratio(0.5)] * 5}, {})
    rows = Measured(samples=ROWS, truth={"forget10": [ratio(0.5)] * 5}, retrained=other)
    assert forget_quality(rows)["forget_quality"].value == 1


def test_memorization_of_the_forget_set() -> None:
    """4 / (1/.5 + 1/.75 + 1/(7/8) + 1/(1/3)): a strength of 1/T = 1/2 at least, an answer right by 1 / (1 + 1/2)."""
    assert memorization_of(MEASURED) == pytest.approx(4 / (2 + 4 / 3 + 8 / 7 + 3))
