"""Metrics with a request of their own."""

from contextlib import nullcontext
from typing import Any

import pytest
from samples import sample

from unlearn_pl.evaluation.request import Request, answered
from unlearn_pl.evaluation.summary import summary
from unlearn_pl.metrics.measured import Measured
from unlearn_pl.metrics.metric import Estimate, Metric, was_found, with_scores

FACTS: dict[str, Any] = {"family": "mine", "formula": "f", "better": "higher", "range": "[0, 1]", "source": "own"}
SHARE = Metric(
    name="share",
    **FACTS,
    request=lambda request: [len(row.text) / 10 for row in request.samples],
    value=lambda row, _: row.found["share"],
    applies=was_found("share"),
)
COUNT = Metric(
    name="count",
    **FACTS,
    request=lambda request: len(request.samples),
    statistic=lambda measured: {"count": Estimate(measured.found["count"] / 4, 2)},
)
UNDER_BASE = Metric(
    name="under_base",
    **FACTS,
    needs=("base",),
    request=lambda request: [0.5 for _ in request.samples],
    value=lambda row, _: row.found["under_base"],
    applies=was_found("under_base"),
)
ROWS = [sample(id="a", generated="12345"), sample(id="b"), sample(id="c", generated="1")]
METRICS = (SHARE, COUNT, UNDER_BASE)


def asked(base: Any = None) -> Measured:
    request = Request(language_model=None, samples=[ROWS[0], ROWS[2]], base=base)  # type: ignore[arg-type]
    rows, found = answered(METRICS, ROWS, request)
    return Measured(samples=with_scores(rows, METRICS), found=found)


def test_a_request_of_ones_own_ends_in_the_scores() -> None:
    """A row without a text is not asked about: (5 + 1) / 10 / 2 over the other two. One needs a base model."""
    scores = summary(asked(), METRICS).scores
    assert {name: (entry["value"], entry["n"]) for name, entry in scores.items()} == {
        "forget/share": (pytest.approx(0.3), 2), "count": (0.5, 2),
    }  # fmt: skip
    with_base = summary(asked(lambda: nullcontext(None)), METRICS).scores
    assert list(with_base) == ["forget/share", "count", "forget/under_base"]


def test_answers_belong_to_their_rows() -> None:
    measured = asked()
    assert [dict(row.found) for row in measured.samples] == [{"share": 0.5}, {}, {"share": 0.1}]
    assert [row.id for row in measured.samples] == ["a", "b", "c"]
