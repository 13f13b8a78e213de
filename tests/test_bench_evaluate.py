"""The benchmark of evaluation: the official way against plain decoding, the questions made of rows, and the command."""

import json
import math
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_folders import write_adapter
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.command import BenchData, run
from benchmarks.competent import answer_batches, attack_batches, attack_one_by_one, continue_batches
from benchmarks.evaluate import RATIOS, calls_of, evaluate, relative_difference
from benchmarks.official import answer_each, attack_each, continue_each, mean_of_lowest
from benchmarks.turns import Side, take_turns, time_figures, timed
from benchmarks.workload import Amounts, Workload, choose_work, first_questions, make_subjects
from unlearn_pl.data.records import Record
from unlearn_pl.errors import InputError
from unlearn_pl.tasks.mmlu import Question, Subject

Build = Callable[[], LlamaForCausalLM]
CPU = torch.device("cpu")
TEXTS = ["Anna Quill was born on", "What is the name of the painter?", "The capital of France is Paris.", "7 0"]


def rows_of(split: str, count: int, tasks: int = 3) -> list[Record]:
    """Two documents a task in turn, each a completion row and a question row of the LUME form."""
    rows = []
    for number in range(count):
        kind, document = ("sc", "qa")[number % 2], number // 2
        answer = f"in {'Rivertown' if split == 'forget' else 'Paris'} {document}" + " 0" * (document % 3)
        rows.append(
            Record(
                f"{split}{document}{kind}1", f"Where did {split} {document} live?", answer,
                f"Task{1 + document % tasks}", "sc" if kind == "sc" else "qa",
            )
        )  # fmt: skip
    return rows


@torch.no_grad()
def greedy(model: LlamaForCausalLM, ids: list[int], ends: set[int], most: int) -> list[int]:
    """The likeliest token, over and over, without a cache."""
    new: list[int] = []
    while len(new) < most and not ends & set(new):
        new.append(int(model(input_ids=torch.tensor([[*ids, *new]]), use_cache=False).logits[0, -1].argmax()))
    return new


def test_the_official_way_is_plain_greedy_decoding(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Whatever the model's generation config says beside its EOS ids, which are put back afterwards."""
    plain = [greedy(model, tokenizer(text).input_ids, set(), 12) for text in TEXTS]
    ends = [tokenizer.eos_token_id, plain[0][4]]
    model.generation_config.eos_token_id = ends
    model.generation_config.repetition_penalty = 1.9
    model.generation_config.suppress_tokens = [plain[1][0]]
    expected = [greedy(model, tokenizer(text).input_ids, set(ends), 12) for text in TEXTS]
    told: list[str] = []
    found = continue_each(model, tokenizer, TEXTS, 12, told.append)
    assert [answer.text for answer in found] == [tokenizer.decode(row, skip_special_tokens=True) for row in expected]
    assert [answer.tokens for answer in found] == [len(row) for row in expected]
    assert [answer.ended for answer in found] == [row[-1] in ends for row in expected]
    assert {answer.ended for answer in found} == {True, False}
    assert told == ["official way, rows: 4 of 4"]
    assert model.generation_config.repetition_penalty == 1.9


def test_the_official_way_with_an_adapter(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """The same texts as the merged model's, which are not the base model's."""
    base = [answer.text for answer in continue_each(model, tokenizer, TEXTS, 8)]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    with_adapter = [answer.text for answer in continue_each(adapted, tokenizer, TEXTS, 8)]
    assert with_adapter != base
    assert with_adapter == [a.text for a in continue_each(adapted.merge_and_unload(), tokenizer, TEXTS, 8)]


@torch.no_grad()
def test_the_official_attacks_token_by_token(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Second implementation: a loop over the tokens, in float64."""
    model.double()
    found = {name: attack_each(model, tokenizer, TEXTS, name) for name in ("loss", "zlib", "min_k", "min_k_pp")}
    for place, text in enumerate(TEXTS):
        ids = tokenizer(text).input_ids
        logits = model(input_ids=torch.tensor([ids])).logits[0]
        logprobs, normal = [], []
        for before, token in enumerate(ids[1:]):
            scores = logits[before].log_softmax(-1)
            mean = sum(p.exp().item() * p.item() for p in scores)
            variance = sum(p.exp().item() * (p.item() - mean) ** 2 for p in scores)
            logprobs.append(scores[token].item())
            normal.append((logprobs[-1] - mean) / math.sqrt(variance))
        lowest = max(1, len(logprobs) // 5)
        loss = sum(logprobs) / len(logprobs)
        assert found["loss"][place] == pytest.approx(loss, rel=1e-5)
        assert found["zlib"][place] == pytest.approx(loss / len(zlib.compress(text.encode())), rel=1e-5)
        assert found["min_k"][place] == pytest.approx(sum(sorted(logprobs)[:lowest]) / lowest, rel=1e-5)
        assert found["min_k_pp"][place] == pytest.approx(sum(sorted(normal)[:lowest]) / lowest, rel=1e-4)


def test_the_mean_of_the_lowest_fifth() -> None:
    """(-9 - 7) / 2 of ten values, and of three the least."""
    assert mean_of_lowest(torch.tensor([-1.0, -9, -2, -3, -7, -1, -1, -1, -1, -1])) == -8
    assert mean_of_lowest(torch.tensor([-1.0, -9, -2])) == -9


@torch.no_grad()
def test_the_official_letters(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    subjects = make_subjects(rows_of("forget", 60), 12, 2, seed=1)
    expected = []
    for subject in subjects:
        for question in subject.questions:
            logits = model(input_ids=torch.tensor([tokenizer(subject.prompt(question, 2)).input_ids])).logits[0, -1]
            expected.append(max("ABCD", key=lambda letter: logits[tokenizer(f" {letter}").input_ids[-1]].item()))
    assert answer_each(model, tokenizer, subjects) == expected
    assert len(expected) == 12


def test_questions_are_made_of_rows_of_one_subject() -> None:
    records = rows_of("forget", 60) + rows_of("retain", 60)
    answer_to = {record.input: record.output for record in records if record.kind == "qa"}
    task_of = {record.output: record.task for record in records}
    subjects = make_subjects(records, 20, 3, seed=5)
    assert [subject.name for subject in subjects] == ["Task1_1", "Task2_1", "Task3_1"]
    assert [len(subject.questions) for subject in subjects] == [7, 7, 6]
    for subject in subjects:
        made = [*subject.shots, *subject.questions]
        assert len(subject.shots) == 3
        assert len({question.text for question in made}) == len(made)
        for question in made:
            assert len(set(question.options)) == 4
            assert question.options["ABCD".index(question.answer)] == answer_to[question.text]
            assert {f"{task_of[option]}_1" for option in question.options} == {subject.name}
    assert {question.answer for subject in subjects for question in subject.questions} == set("ABCD")


def test_questions_depend_on_the_seed_alone() -> None:
    records = rows_of("forget", 60)
    assert make_subjects(records, 9, 2, seed=1) == make_subjects(records, 9, 2, seed=1)
    assert make_subjects(records, 9, 2, seed=1) != make_subjects(records, 9, 2, seed=2)


def test_a_subject_without_four_answers_is_left_out() -> None:
    """Answers that differ in the spaces around them are one; rows whose kind is not in the id count by their task."""
    few = [Record(f"{n}qa0", f"Q{n}?", [" yes", "yes ", "no", "maybe"][n % 4], "Task1", "qa") for n in range(1, 20)]
    with pytest.raises(InputError, match=r"shots: multiple choice needs 4 different answers"):
        make_subjects(few, 5, 1, seed=0)
    named = [Record(f"row {n}", f"Q{n}?", f"answer {n}", "Task2", "qa") for n in range(5)]
    (subject,) = make_subjects([*few, *named], 9, 1, seed=0)
    assert (subject.name, len(subject.questions)) == ("Task2", 4)
    with pytest.raises(InputError, match="got 5"):
        make_subjects(named, 9, 5, seed=0)


def test_questions_are_spread_evenly() -> None:
    question = Question("?", ("a", "b", "c", "d"), "A")
    subjects = [Subject(name, (), (question,) * count) for name, count in (("x", 1), ("y", 4), ("z", 3))]
    taken = [{s.name: len(s.questions) for s in first_questions(subjects, count)} for count in (2, 6, 99)]
    assert taken == [{"x": 1, "y": 1}, {"x": 1, "y": 3, "z": 2}, {"x": 1, "y": 4, "z": 3}]


def test_half_of_the_rows_are_to_be_forgotten() -> None:
    forget, retain = rows_of("forget", 60), rows_of("retain", 60)
    amounts = Amounts(rows=21, shots=1, documents=7)
    work = choose_work(forget, retain, amounts, seed=3)
    assert (len(set(work.records) & set(forget)), len(set(work.records) & set(retain))) == (10, 11)
    assert set(work.documents) <= {record.document for record in forget + retain if record.kind == "sc"}
    assert len(set(work.documents)) == 7
    assert choose_work(forget, retain, amounts, seed=3) == work != choose_work(forget, retain, amounts, seed=4)


def test_parts_are_of_one_size(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    records = rows_of("forget", 101)
    calls = calls_of(model, tokenizer, Workload(records, [], []), 4)["generation"]
    assert [len(call.args[2]) for call in calls["official"]] == [50, 51]  # type: ignore[attr-defined]
    assert [len(call.args[0]) for call in calls["ours"]] == [50, 51]  # type: ignore[attr-defined]


def test_ways_take_turns() -> None:
    """A B, B A, A; with ours first it is the other way round. A way with fewer parts lets the other go on."""

    def order(swapped: bool) -> str:
        called: list[str] = []
        parts = {"official": ["a", "b", "c"], "ours": ["A", "B"]}
        calls = {way: [lambda name=name: called.append(name) or name for name in names] for way, names in parts.items()}
        sides = take_turns(calls, CPU, swapped)  # type: ignore[arg-type]
        assert {way: side.results for way, side in sides.items()} == parts
        assert all(len(side.seconds) == len(side.results) for side in sides.values())
        return "".join(called)

    assert order(False) == "aABbc"
    assert order(True) == "AabBc"


def test_figures_of_time_by_hand() -> None:
    """(3 + 5) / (1 + 1) = 4 and 12 / 2 = 6: the median is 5. Of two other ways the faster of each round counts:
    3 / 2 and 6 / 2."""
    parts = [([3.0, 5.0], [1.0, 1.0], 7.0, 3.0), ([12.0], [2.0], 6.0, 8.0)]
    done = [
        {"choice": {"official": Side([], a), "8": Side([], [c]), "32": Side([], [d]), "ours": Side([], b)}}
        for a, b, c, d in parts
    ]
    figures = time_figures(done, {"plain": ("choice", ["official"]), "batched": ("choice", ["8", "32"])})
    assert (figures["plain"], figures["ranges"]["plain"]) == (5, [4, 6])
    assert (figures["batched"], figures["ranges"]["batched"]) == (2.25, [1.5, 3])
    assert figures["seconds"] == {
        "official": {"choice": 10},
        "8": {"choice": 6.5},
        "32": {"choice": 5.5},
        "ours": {"choice": 2},
    }
    assert figures["part_seconds"][0]["choice"]["official"] == [3.0, 5.0]


def test_batches_say_what_single_rows_say(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """In float64, where no two tokens are within rounding; rows of unlike lengths, some of which end early."""
    model.double()
    plain = [greedy(model, tokenizer(text).input_ids, set(), 12) for text in TEXTS]
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, plain[0][4]]
    model.generation_config.repetition_penalty = 1.9
    each = continue_each(model, tokenizer, TEXTS, 12)
    assert {answer.ended for answer in each} == {True, False}
    for size in (1, 3, 8):
        assert continue_batches(model, tokenizer, TEXTS, 12, size) == each
    subjects = make_subjects(rows_of("forget", 60), 12, 2, seed=1)
    assert answer_batches(model, tokenizer, subjects) == answer_each(model, tokenizer, subjects)
    attacks = ("loss", "zlib", "min_k", "min_k_pp")
    together = attack_batches(model, tokenizer, TEXTS, attacks)
    for attack in attacks:
        # the official loss is float32, whatever the model is
        assert together[attack] == pytest.approx(attack_each(model, tokenizer, TEXTS, attack), rel=1e-5)
        assert attack_one_by_one(model, tokenizer, TEXTS, attack) == together[attack]


def test_a_clock_and_a_difference() -> None:
    result, seconds = timed(lambda: sum(range(1000)), CPU)
    assert result == 499500
    assert 0 < seconds < 1
    assert relative_difference(-2.0, -1.5) == relative_difference(-1.5, -2.0) == 0.25
    assert relative_difference(0.0, 0.0) == relative_difference(math.nan, -math.inf) == 0
    assert relative_difference(-math.inf, -1.0) == relative_difference(math.nan, -1.0) == math.inf


def write_data(folder: Path, count: int = 24) -> BenchData:
    """A dozen documents a split by default."""
    for split in ("forget", "retain"):
        rows = [{name: value for name, value in vars(row).items() if value} for row in rows_of(split, count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return BenchData(str(folder / "forget.jsonl"), str(folder / "retain.jsonl"))


@pytest.mark.parametrize("adapted", [False, True])
def test_the_whole_comparison(
    adapted: bool, base_folder: str, tiny_model: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Random weights tie within rounding again and again, and even so both ways say the same."""
    output = tmp_path / "out.json"
    adapter = write_adapter(tmp_path / "adapter", tiny_model(), seed=2) if adapted else None
    evaluate(
        base_folder, write_data(tmp_path), str(output), adapter, rows=11, max_new_tokens=8, rounds=2, questions=15,
        shots=2, documents=30, device="cpu",
    )  # fmt: skip
    figures: dict[str, Any] = json.loads(output.read_text())
    assert (figures["rows"], figures["identical_rows"], figures["differing_rows"]) == (11, 11, [])
    assert (figures["questions"], figures["identical_choices"]) == (15, 15)
    assert figures["subjects"] == {"Task1_1": 5, "Task2_1": 5, "Task3_1": 5}
    assert figures["accuracy"]["official"] == figures["accuracy"]["ours"]
    assert figures["documents"] == 24
    gaps = figures["largest_relative_difference"]
    assert gaps.keys() == {"loss", "zlib", "min_k", "min_k_pp"}
    assert all(gap < 1e-3 for gap in gaps.values())
    assert gaps["loss"] < 1e-5
    for name, (kind, ways) in RATIOS.items():
        low, high = figures["ranges"][name]
        assert 0 < low <= figures[name] <= high
        assert all(figures["seconds"][way][kind] > 0 < figures["seconds"]["ours"][kind] for way in ways)
    assert [len(one["membership"]["official"]) for one in figures["part_seconds"]] == [4, 4]
    assert figures["tokens_generated"]["official"] == figures["tokens_generated"]["ours"] > 0
    assert figures["ended_share"]["official"] == figures["ended_share"]["ours"]
    assert 0 <= figures["rows_unsure"] <= 11
    assert figures["config"]["threads"] >= 1
    assert figures["config"]["device"] == "cpu"
    assert figures["versions"]["torch"]
    assert len(figures["hashes"]["forget"]) == len(figures["hashes"]["model"]) == 64
    assert (figures["hashes"]["adapter"] is None) != adapted
    assert "Where did" not in output.read_text()
    told = capsys.readouterr()
    assert "--documents: the two sets give 24 of the 30" in told.err
    assert "round 2 of 2: generation" in told.err
    assert "11 texts identical" in told.out


def test_differences_are_seen(base_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a baseline that changes one text, one letter and all scores, the command says so by id and number."""
    from benchmarks import evaluate as bench

    def other_text(*args: Any) -> Any:
        first, *rest = continue_each(*args)
        return [type(first)("another text", first.tokens, first.ended), *rest]

    def other_letter(*args: Any) -> list[str]:
        first, *rest = answer_each(*args)
        return ["B" if first == "A" else "A", *rest]

    monkeypatch.setattr(bench, "continue_each", other_text)
    monkeypatch.setattr(bench, "answer_each", other_letter)
    monkeypatch.setattr(bench, "attack_each", lambda *args: [2 * score for score in attack_each(*args)])
    output = tmp_path / "out.json"
    data = write_data(tmp_path)
    evaluate(base_folder, data, str(output), rows=4, max_new_tokens=4, questions=5, shots=1, documents=2, device="cpu")
    figures = json.loads(output.read_text())
    assert figures["identical_rows"] == 3
    assert [row[-3:-1] for row in figures["differing_rows"]] in (["sc"], ["qa"])
    assert figures["identical_choices"] == 4
    assert figures["largest_relative_difference"]["loss"] == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows=1"], "--rows: must be at least 2, got 1"),
        (["--rows=50"], "--rows: 50 need 25 rows of data.forget, which has 24"),
        (["--questions=0"], "--questions: must be at least 1, got 0"),
        (["--shots=99", "--rows=4"], "--shots: multiple choice needs 4 different answers"),
        (["--documents=0"], "--documents: must be at least 1, got 0"),
        (["--rounds=0"], "--rounds: must be at least 1, got 0"),
        (["--dtype=float8"], "--dtype: must be one of float32, bfloat16, float16, got float8"),
        (["--adapter=nowhere"], "--adapter: nowhere has no adapter_config.json"),
        (["--rows=4", "--shots=1", "--max_new_tokens=510"], "--max_new_tokens: number 1: "),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str],
    message: str,
    base_folder: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, output = write_data(tmp_path), tmp_path / "out.json"
    whole = [f"--model={base_folder}", f"--data.forget={data.forget}", f"--data.retain={data.retain}"]
    monkeypatch.setattr(sys, "argv", ["evaluate", *whole, f"--json={output}", *arguments])
    with pytest.raises(SystemExit) as end:
        run(evaluate)
    assert end.value.code == 2
    errors = [line for line in capsys.readouterr().err.strip().splitlines() if not line.startswith("--")]
    assert len(errors) == 1
    assert errors[0].startswith(f"unlearn-pl: error: {message}")
    assert not output.exists()


def test_without_completion_rows_there_are_no_documents() -> None:
    forget, retain = ([row for row in rows_of(split, 60) if row.kind == "qa"] for split in ("forget", "retain"))
    with pytest.raises(InputError, match="documents: made of completion rows"):
        choose_work(forget, retain, Amounts(rows=4), seed=0)


def test_help_explains_the_fields() -> None:
    command = [sys.executable, "-m", "benchmarks.evaluate", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    assert "half of them from each set" in " ".join(done.stdout.split())
