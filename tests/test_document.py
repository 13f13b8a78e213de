"""Documents of the membership attacks, one a line: from these alone the AUCs of the results come out again."""

import json
import math
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from samples import sample

from unlearn_pl.evaluation.options import EvaluationOptions
from unlearn_pl.evaluation.results import read_results, write_results
from unlearn_pl.evaluation.summary import results_of
from unlearn_pl.evaluation.table import METRICS
from unlearn_pl.metrics.document import documents_of
from unlearn_pl.metrics.measured import Measured
from unlearn_pl.tasks.lume import Lume

MEMBERS = [f"the member number {number}" for number in range(5)]
NONMEMBERS = [f"somebody else's {number}" for number in range(3)]
SAMPLES = [sample(generated="", score=0.5, tokens=1, ended=True)]
LOSS = [-1.0, -2.5, -0.25, -3.0, -2.0, -2.75, -2.25, -1.5]
ZLIB = [-0.5, -0.25, -0.75, -0.125, -1.0, -0.5, -2.0, -0.375]


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "documents.jsonl").read_text(encoding="utf-8").splitlines()]


def auc(rows: list[dict[str, Any]], attack: str) -> float:
    """Pairs in the right order, a tie counting one half."""
    sides = [[row["attacks"][attack] for row in rows if row["side"] == side] for side in ("member", "nonmember")]
    pairs = list(product(*sides))
    return sum((member > other) + (member == other) / 2 for member, other in pairs) / len(pairs)


def test_the_aucs_of_the_results_follow_from_the_lines(tmp_path: Path) -> None:
    attacks = {"loss": LOSS, "zlib": ZLIB}
    measured = Measured(samples=SAMPLES, attacks=attacks, members=MEMBERS, nonmembers=NONMEMBERS)
    results = results_of(measured, Lume([], []), METRICS, EvaluationOptions())
    write_results(tmp_path, results, {})
    rows = lines(tmp_path)

    assert [(row["side"], row["number"]) for row in rows] == [
        *(("member", number) for number in range(5)),
        *(("nonmember", number) for number in range(3)),
    ]
    assert [row["logprob"] for row in rows] == LOSS
    for attack, scores in (("loss", LOSS), ("zlib", ZLIB)):
        assert [row["attacks"][attack] for row in rows] == scores
        assert auc(rows, attack) == results.scores[f"membership/{attack}/auc"]["value"]
        for half in ("calibration", "holdout"):
            part = [row for row in rows if row["half"] == half]
            assert auc(part, attack) == results.scores[f"membership/{attack}/auc_{half}"]["value"]
    assert not any(text in (tmp_path / "documents.jsonl").read_text() for text in ("number 0", "somebody"))
    assert "documents" not in json.loads((tmp_path / "results.json").read_text())
    assert read_results(tmp_path).documents == ()


def test_what_is_not_finite_is_none() -> None:
    measured = Measured(attacks={"loss": [-math.inf, -1.0]}, members=["a"], nonmembers=["b"])
    assert [document.logprob for document in documents_of(measured)] == [None, -1.0]
    assert [dict(document.attacks) for document in documents_of(measured)] == [{"loss": None}, {"loss": -1.0}]


@pytest.mark.parametrize("members", [[], MEMBERS])
def test_without_an_attack_there_are_no_lines(members: list[str], tmp_path: Path) -> None:
    """An older file is not left for one of this evaluation."""
    (tmp_path / "documents.jsonl").write_text('{"side": "member"}\n')
    results = results_of(Measured(samples=SAMPLES, members=members), Lume([], []), METRICS, EvaluationOptions())
    write_results(tmp_path, results, {})
    assert lines(tmp_path) == []
