"""One measured row as a line of ``samples.jsonl``."""

from dataclasses import FrozenInstanceError

import pytest
from samples import sample

RECORD = ["id", "document", "split", "task", "kind", "prompt", "expected"]
KEYS = [*RECORD, "generated", "score", "tokens", "ended", "cut", "recall", "scores"]


def test_keys_of_a_line() -> None:
    """In this order; texts drawn at random only where some were. What is changed there leaves the sample alone."""
    row = sample(generated="x", recall={"probability": 0.5}, scores={"length": 3.0})
    line = row.to_json()
    assert list(line) == KEYS
    assert (line["recall"], line["scores"], line["score"]) == ({"probability": 0.5}, {"length": 3.0}, None)
    line["scores"]["length"] = 4.0
    assert row.scores == {"length": 3.0}
    assert sample(sampled=("a", "b")).to_json()["sampled"] == ["a", "b"]
    assert list(sample(sampled=()).to_json()) == [*KEYS, "sampled"]


def test_a_sample_is_not_changed_in_place() -> None:
    with pytest.raises(FrozenInstanceError):
        sample().score = 1.0  # type: ignore[misc]
