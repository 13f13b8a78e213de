"""What a row of the table does with a measurement."""

from typing import Any

import pytest
from samples import sample

from unlearn_pl.metrics.measured import Measured
from unlearn_pl.metrics.metric import OPPOSITE, Estimate, Metric, mean_score, scores_of, with_scores
from unlearn_pl.metrics.truth_ratio import AnswerLogprobs

FACTS: dict[str, Any] = {"family": "mine", "formula": "f", "better": OPPOSITE, "range": "[0, 1]", "source": "own"}
FIRST = Metric(name="first", **FACTS, value=lambda row, _: len(row.text) / 10)
SECOND = Metric(name="second", **FACTS, value=lambda row, _: None, applies=lambda row: row.kind == "qa")
WHOLE = Metric(
    name="whole",
    **FACTS,
    statistic=lambda measured: {"whole/b": Estimate(0.5), "whole/a": Estimate(None, role="retain")},
)


def measured_by(*metrics: Metric) -> Measured:
    rows = [
        sample(id=f"{split}{kind}", document=kind, split=split, kind=kind, generated=text)
        for split in ("forget", "retain")
        for kind, text in (("sc", "12"), ("qa", "1234"))
    ]
    return Measured(samples=with_scores(rows, metrics), resamples=50)


def test_order_of_scores() -> None:
    """Neighbouring row metrics set by set, then the next of the table; a metric may give several scores."""
    metrics = (FIRST, SECOND, WHOLE, FIRST)
    names = [name for _, name, _ in scores_of(measured_by(*metrics), metrics)]
    of_rows = ["forget/first", "forget/second", "retain/first", "retain/second"]
    assert names == [*of_rows, "whole/b", "whole/a", "forget/first", "retain/first"]


def test_entries() -> None:
    """The mean of .2 and .4; a metric that says nothing of the one row it applies to; the direction by role."""
    found = {
        name: metric.entry(score) for metric, name, score in scores_of(measured_by(FIRST, SECOND), (FIRST, SECOND))
    }
    first = found["forget/first"]
    assert first == {"value": pytest.approx(0.3), "low": 0.2, "high": 0.4, "n": 2, "better": "lower", "range": "[0, 1]"}
    assert found["retain/first"]["better"] == "higher"
    assert (found["forget/second"]["value"], found["forget/second"]["n"]) == (None, 0)
    assert not list(scores_of(Measured(samples=[sample(generated="x")]), (FIRST,))), "nobody scored the row"


def test_what_a_metric_needs() -> None:
    truth = {"forget": [AnswerLogprobs((-1.0,), (-2.0,))]}
    needy = Metric(name="needy", **FACTS, needs=("likelihood", "truth"), statistic=lambda measured: {})
    assert not needy.measurable(Measured())
    assert needy.measurable(Measured(truth=truth)), "likelihoods are those of rows"
    documents = Metric(name="documents", **FACTS, needs=("documents", "retrained"), statistic=lambda measured: {})
    assert not documents.measurable(Measured(attacks={"loss": [1.0, 0.0]}))


def test_a_mean_of_nothing_is_undefined() -> None:
    assert mean_score([], [], 10, role="forget") == Estimate(None, role="forget")
    assert mean_score([0.5], ["a"], 10).interval is None
