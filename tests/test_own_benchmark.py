"""A benchmark of one's own: three sets, its own row score, metric and aggregate, in one file."""

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

import unlearn_pl
from unlearn_pl import Benchmark, EvaluationOptions, InputError, Lume, Record, Results, RowSet, evaluate
from unlearn_pl.__main__ import main
from unlearn_pl.evaluation.inputs import read_inputs
from unlearn_pl.inference.generation import Generation
from unlearn_pl.metrics.leakage import Corpus
from unlearn_pl.metrics.metric import ALWAYS, Estimate, Metric
from unlearn_pl.metrics.sample import Sample
from unlearn_pl.tasks.base import Term
from unlearn_pl.tasks.checked import checked_settings

Build = Callable[[], LlamaForCausalLM]

LONGEST = Metric(
    name="longest",
    family=ALWAYS,
    formula="characters of the longest text",
    better="lower",
    range="> 0",
    source="own",
    statistic=lambda measured: {"longest": Estimate(max(len(row.text) for row in measured.samples), 1)},
)


class Colours(Benchmark):
    """The score of a row is the share of the answer's letters in the text."""

    metrics = (LONGEST,)

    def __init__(self, rows: int = 2):
        self.rows = rows

    def sets(self) -> list[RowSet]:
        def of(name: str) -> list[Record]:
            return [Record(f"{name}{n}", f"{name} {n} is", "black and white") for n in range(self.rows)]

        documents = ["it is black", "it is white", "it is grey"]
        return [
            RowSet("night", "forget", of("night")),
            RowSet("day", "retain", of("day")),
            RowSet("world", "utility", of("world")),
            RowSet("seen", "member", documents=documents),
            RowSet("unseen", "nonmember", documents=[f"{text} too" for text in documents]),
        ]

    def score(self, row: Record, text: str) -> float:
        return sum(letter in text for letter in row.output) / len(row.output)

    def task_aggregate(self, terms: Sequence[Term]) -> float:
        return min(term.value for term in terms if term.value is not None)

    def aggregate(self, task: float | None, membership: float | None, choice: float | None) -> float | None:
        return None if task is None or membership is None else task * membership


OPTIONS = EvaluationOptions(generation=Generation(max_new_tokens=6))


@pytest.fixture(scope="module")
def results(tiny_model: Build, tokenizer: PreTrainedTokenizerFast) -> Results:
    return evaluate(tiny_model(), tokenizer, Colours(), OPTIONS)


def test_terms_and_aggregates_are_its_own(results: Results) -> None:
    scores = {name: [row.score for row in results.samples if row.split == name] for name in ("night", "day", "world")}
    means = {name: sum(values) / 2 for name, values in scores.items()}
    for row in results.samples:
        assert row.score == sum(letter in row.text for letter in "black and white") / 15
    terms = {"night/score": 1 - means["night"], "day/score": means["day"], "world/score": means["world"]}
    assert results.terms == pytest.approx(terms)
    assert results.task_aggregate == pytest.approx(min(terms.values()))
    assert results.membership_score is not None
    assert results.aggregate == pytest.approx(min(terms.values()) * results.membership_score)
    assert results.counts == dict.fromkeys(terms, 2) | {"questions": 0, "member": 3, "nonmember": 3}
    assert "semeval" not in results.to_json()


def test_every_set_has_the_general_metrics_in_the_direction_of_its_role(results: Results) -> None:
    better = {name: results.scores[f"{name}/keyword_leakage"]["better"] for name in ("night", "day", "world")}
    assert better == {"night": "lower", "day": "higher", "world": "higher"}
    assert results.scores["longest"]["value"] == max(len(row.text) for row in results.samples)
    assert Results.from_json(json.loads(json.dumps(results.to_json()))).to_json() == results.to_json()


class Twice(Colours):
    def sets(self) -> list[RowSet]:
        return [*super().sets(), super().sets()[0]]


class NothingToForget(Colours):
    def sets(self) -> list[RowSet]:
        return super().sets()[1:]


def test_sets_are_checked() -> None:
    with pytest.raises(InputError, match="Twice has 2 sets called 'night'; they must differ"):
        read_inputs(Twice(), OPTIONS)
    with pytest.raises(InputError, match="NothingToForget has no row to be forgotten"):
        read_inputs(NothingToForget(), OPTIONS)


class NoSets(Colours):
    def sets(self) -> list[RowSet]:
        return None  # type: ignore[return-value]


class NoText(Colours):
    def prompt(self, row: Record) -> str:
        return None  # type: ignore[return-value]


class Official(Colours):
    def __init__(self, **found: Any):
        super().__init__(1)
        self.found = found

    def official(self, results: Mapping[str, float | None], terms: Sequence[Term]) -> dict[str, Any]:
        return self.found


class Metrics(Colours):
    def __init__(self, **changes: Any):
        super().__init__(1)
        self.metrics = (replace(LONGEST, **changes),)  # type: ignore[misc]


def broken(row: Sample, corpus: Corpus) -> float:
    return float("nan")


@pytest.mark.parametrize(
    ("benchmark", "message"),
    [
        (NoSets(), "NoSets.sets must be a list of RowSet, got None"),
        (NoText(), "NoText.prompt of row 'night0' must be text, got None"),
        (Official(scores={}), r"Official.official must be .* further keys of the results, got \['scores'\]"),
        (Official(own=float("nan")), "Official.official must be what JSON can hold"),
        (Metrics(family="mine"), "the metric longest of Metrics must be of the family always or .* got 'mine'"),
        (Metrics(name="keyword_leakage"), "the metric keyword_leakage of Metrics has the name of another metric"),
        (Metrics(statistic=None, value=broken), "the metric longest of row 'night0' must be a finite number"),
    ],
)
def test_what_else_a_benchmark_gives_is_checked(
    benchmark: Benchmark, message: str, tiny_model: Build, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Not written as a number, and not told by a traceback out of the last line of an evaluation."""
    with pytest.raises(InputError, match=f"^{message}"):
        evaluate(tiny_model(), tokenizer, benchmark, OPTIONS)


def test_lume_in_memory_is_lume_of_files(tmp_path: Path, tiny_model: Build, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = {
        split: [Record(f"{split}{end}", f"{split} {end}?", "a black cat", "Task1", end[:2]) for end in ("sc1", "qa0")]
        for split in ("forget", "retain")
    }
    for split, records in rows.items():
        lines = [
            json.dumps({"id": row.id, "input": row.input, "output": row.output, "task": row.task}) for row in records
        ]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    model = tiny_model()
    memory = evaluate(model, tokenizer, Lume(rows["forget"], rows["retain"]), OPTIONS)
    files = Lume(tmp_path / "forget.jsonl", str(tmp_path / "retain.jsonl"))
    assert evaluate(model, tokenizer, files, OPTIONS).to_json() == memory.to_json()


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """``unlearn-pl evaluate`` where this file can be imported."""
    places = [str(Path(__file__).parent), str(Path(unlearn_pl.__file__).parents[1])]
    return subprocess.run(
        [sys.executable, "-m", "unlearn_pl", "evaluate", *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(places)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_takes_one_file(base_folder: str, tmp_path: Path) -> None:
    """By import path, with an option of the benchmark's own; its rows are not mixed with those of the command."""
    options = [f"--model={base_folder}", f"--output={tmp_path / 'out'}", "--device=cpu"]
    options += ["--generation.max_new_tokens=6", "--benchmark=test_own_benchmark.Colours", "--benchmark.rows=1"]
    done = command(*options)
    assert done.returncode == 0, done.stderr
    assert "Task Aggregate" in done.stdout
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert list(results["terms"]) == ["night/score", "day/score", "world/score"]
    assert results["counts"]["night/score"] == 1
    assert results["provenance"]["config"]["benchmark"] == "test_own_benchmark.Colours"
    assert set(results["provenance"]["hashes"]) >= {"night", "day", "world", "seen", "unseen"}
    both = command(*options, "--data.forget=f.jsonl", "--data.retain=r.jsonl", "--overwrite")
    assert both.returncode == 2
    assert both.stderr == "unlearn-pl: error: --benchmark: not with data: a benchmark brings its own rows\n"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("own_file.Mine", r"got 'own_file.Mine': No module named 'absent'"),
        ("nowhere.Mine", r"got 'nowhere.Mine': No module named 'nowhere'"),
        ("Mine", r"got 'Mine': Expected a dot import path string: Mine"),
        ("json.JSONDecoder", r"got 'json.JSONDecoder': Import path does not correspond to a subclass of Benchmark"),
        ("unlearn_pl.tasks.lume.Lume", r"^unlearn-pl: error: needed: --benchmark.forget, --benchmark.retain$"),
    ],
)
def test_an_import_that_fails_is_told_with_its_reason(
    given: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own_file.py").write_text("import absent", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("sys.argv", ["unlearn-pl", "evaluate", "--model=m", "--output=o", f"--benchmark={given}"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert re.search(message, capsys.readouterr().err.strip())


def test_without_rows_the_command_says_what_is_needed(
    base_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["unlearn-pl", "evaluate", f"--model={base_folder}", f"--output={tmp_path / 'o'}"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert capsys.readouterr().err.splitlines()[-1].startswith("unlearn-pl: error: --data.forget: needed")


def test_non_members_of_its_own_are_enough_for_the_attacks() -> None:
    asked = replace(OPTIONS, metrics=["membership"])
    assert read_inputs(Colours(), asked).nonmembers

    class WithoutThem(Colours):
        def sets(self) -> list[RowSet]:
            return super().sets()[:3]

    with pytest.raises(InputError, match=r"^metrics: membership needs membership\.nonmember, got None$"):
        read_inputs(WithoutThem(), asked)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "must be a dict, got None"),
        ({"path": Path("x")}, "must be what JSON holds, got PosixPath('x') for 'path'"),
        ({"share": math.nan}, "must be what JSON holds, got nan for 'share'"),
    ],
)
def test_settings_are_what_results_hold(given: Any, message: str) -> None:
    class Told(Colours):
        def settings(self) -> Any:
            return given

    with pytest.raises(InputError, match=f"^Told.settings {re.escape(message)}$"):
        checked_settings(Told())


def test_what_a_benchmark_gives_is_checked(tiny_model: Build, tokenizer: PreTrainedTokenizerFast) -> None:
    def ask(**methods: object) -> Results:
        kind = type("Own", (Colours,), {"metrics": (), **methods})
        return evaluate(tiny_model(), tokenizer, kind(), OPTIONS)

    own = ask(score=lambda *_: np.float32(0.5), task_aggregate=lambda *_: torch.tensor(0.25))
    assert json.loads(json.dumps(own.to_json()))["task_aggregate"] == 0.25
    for value in (2.0, -1, math.nan, "good", True + 1):
        with pytest.raises(InputError, match=r"^Own.score of the row 'night0' must be"):
            ask(score=lambda *_, value=value: value)
    for name in ("task_aggregate", "aggregate"):
        for value in (math.nan, (1, 2), "good"):
            with pytest.raises(InputError, match=rf"^Own.{name} must be a finite number or None, got"):
                ask(**{name: lambda *_, value=value: value})
    for rows, got in (([{"id": "1"}], "dict"), ((row for row in ()), "generator"), ("rows", "str")):
        with pytest.raises(InputError, match=rf"^rows of the set 'night' of Own must be a list of Record, got {got}$"):
            ask(sets=lambda _, rows=rows: [RowSet("night", "forget", rows)])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": "folder"}, "model: must be a model in memory, got str"),
        ({"tokenizer": "folder"}, "tokenizer: must be a tokenizer in memory, got str"),
        ({"data": [Record("1", "a", "b")]}, r"data: must be a benchmark such as Lume\(forget, retain\), got list"),
        ({"data": Colours}, r"data: must be a benchmark such as .*, got the class Colours"),
        ({"options": Generation()}, r"options: must be EvaluationOptions\(...\), got Generation"),
    ],
)
def test_what_evaluate_cannot_take(changed, message, tiny_model: Build, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(InputError, match=f"^{message}$"):
        evaluate(**({"model": tiny_model(), "tokenizer": tokenizer, "data": Colours()} | changed))
