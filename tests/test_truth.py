"""Truth ratios against the loss of transformers, and the files that they are read from."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from unlearn_pl.errors import InputError
from unlearn_pl.evaluation.truth import Truth, TruthRow, answer_logprobs, read_truth_rows
from unlearn_pl.inference.model import LanguageModel

Build = Callable[[], LlamaForCausalLM]

ROW = {"question": "Who paints?", "paraphrased_answer": "Anna does", "perturbed_answer": ["Bo does", "Ida does"]}
ROWS = [
    TruthRow("Who paints?", ("Anna does",), ("Bo does", "The lighthouse keeper does")),
    TruthRow("Wo ist der Fluß? 東京?", ("in Paris", "bei 東京", "there"), ("7",)),
    TruthRow("A", ("B",), ("B",)),
]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_rows_are_read(tmp_path: Path) -> None:
    """A single answer is a list of one; other fields are ignored; splits without a file have no rows."""
    single = ROW | {"perturbed_answer": "Bo does", "answer": "Anna"}
    several = ROW | {"paraphrased_answer": ["Anna", "Анна"]}
    path = write_lines(tmp_path / "f.jsonl", [ROW, single, several])
    first = TruthRow("Who paints?", ("Anna does",), ("Bo does", "Ida does"), eos=True)
    rows = [first, TruthRow("Who paints?", ("Anna does",), ("Bo does",), eos=True)]
    rows.append(TruthRow("Who paints?", ("Anna", "Анна"), ("Bo does", "Ida does"), eos=True))
    assert not read_truth_rows(Truth(forget=path, eos=False))["forget"][0].eos
    assert read_truth_rows(Truth(forget=path)) == {"forget": rows}
    assert read_truth_rows(Truth(retain=path, forget=path)) == {"forget": rows, "retain": rows}
    assert read_truth_rows(Truth()) == {}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({key: value for key, value in ROW.items() if key != "question"}, "field 'question' is missing"),
        ({key: value for key, value in ROW.items() if key != "paraphrased_answer"}, "'paraphrased_answer' is missing"),
        (ROW | {"perturbed_answer": None}, "field 'perturbed_answer' must be text, got null"),
        (ROW | {"perturbed_answer": []}, "field 'perturbed_answer' must be text, got list"),
        (ROW | {"perturbed_answer": ["Bo", " "]}, "field 'perturbed_answer' is empty"),
        (ROW | {"paraphrased_answer": ""}, "field 'paraphrased_answer' is empty"),
        (ROW | {"paraphrased_answer": ["Anna", 7]}, "field 'paraphrased_answer' must be text, got int 7"),
        (ROW | {"question": "\n"}, "field 'question' is empty"),
        (ROW | {"question": ["Who?"]}, "field 'question' must be text, got list"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = write_lines(tmp_path / "f.jsonl", [ROW, row])
    for split in ("forget", "retain"):
        with pytest.raises(InputError, match=rf"^truth.{split}: .*f.jsonl, line 2: .*{message}"):
            read_truth_rows(Truth(**{split: path}))


def test_a_file_that_is_empty_or_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^truth.retain: .*e.jsonl is empty; it must hold at least one question"):
        read_truth_rows(Truth(retain=write_lines(tmp_path / "e.jsonl", [])))
    with pytest.raises(InputError, match=r"^truth.forget: .*gone.jsonl does not exist"):
        read_truth_rows(Truth(forget=str(tmp_path / "gone.jsonl")))
    with pytest.raises(InputError, match=r"^truth.batch_size: must be at least 1, got 0"):
        Truth(batch_size=0)


def normalized_probability(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, question: str, answer: str
) -> float:
    """P(answer | question)^(1/T) as exp(-loss) of transformers, in float64."""
    ids = tokenizer(f"{question} {answer}", return_tensors="pt").input_ids
    asked = len(tokenizer(question).input_ids)
    assert tokenizer(question).input_ids == ids[0, :asked].tolist(), "question and answer share a token"
    labels = ids.clone()
    labels[:, :asked] = -100
    with torch.no_grad():
        return math.exp(-model(ids, labels=labels).loss.item())


def ratios_of(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: list[TruthRow], size: int = 4):  # type: ignore[no-untyped-def]
    return [row.ratio("arithmetic") for row in answer_logprobs(LanguageModel(model, tokenizer), rows, batch_size=size)]


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_ratios_are_those_of_the_loss(tiny_model: Build, tokenizer: PreTrainedTokenizerFast, batch_size: int) -> None:
    """Mean probability of the wrong answers over that of the right ones; 1 where both are the same."""
    double = tiny_model().double()
    expected = []
    for row in ROWS:
        wrong, right = (
            [normalized_probability(double, tokenizer, row.question, answer) for answer in answers]
            for answers in (row.perturbed, row.paraphrased)
        )
        expected.append(sum(wrong) / len(wrong) / (sum(right) / len(right)))
    found = ratios_of(tiny_model(), tokenizer, ROWS, batch_size)
    assert found == pytest.approx(expected, rel=1e-5)
    assert found[2] == pytest.approx(1, rel=1e-5)
    assert ratios_of(tiny_model(), tokenizer, ROWS[::-1], batch_size) == pytest.approx(expected[::-1], rel=1e-5)


def test_the_end_token_counts_as_in_tofu(tiny_model: Build, tokenizer: PreTrainedTokenizerFast) -> None:
    """The labels of TOFU hold it: the mean is over one token more, the end token."""
    model, row = tiny_model(), TruthRow("Who paints?", ("Anna does",), ("Bo does",), eos=True)
    found = answer_logprobs(LanguageModel(model, tokenizer), [row])[0]
    for answer, value in (("Anna does", found.paraphrased[0]), ("Bo does", found.perturbed[0])):
        likely = normalized_probability(tiny_model().double(), tokenizer, row.question, f"{answer}<|end|>")
        assert value == pytest.approx(math.log(likely), rel=1e-5)


def test_a_broken_model_has_broken_rows(tiny_model: Build, tokenizer: PreTrainedTokenizerFast) -> None:
    """Only the row with the broken word."""
    model = tiny_model()
    (token,) = tokenizer("7").input_ids
    with torch.no_grad():
        model.model.embed_tokens.weight[token] = math.nan
    found = answer_logprobs(LanguageModel(model, tokenizer), [ROWS[0], TruthRow("7", ("Anna",), ("Bo",))])
    assert [row.broken for row in found] == [False, True]


def test_an_answer_without_room_is_refused(tiny_model: Build, tokenizer: PreTrainedTokenizerFast) -> None:
    """512 positions hold a question of 511 tokens and one of answer; no position is made up for a second."""
    question = tokenizer.decode([23] * 511)
    assert len(tokenizer(question).input_ids) == 511
    assert len(tokenizer.encode(" A")) == 1
    assert ratios_of(tiny_model(), tokenizer, [TruthRow(question, ("A",), ("A",))]) == pytest.approx([1])
    with pytest.raises(
        InputError,
        match=r"^truth.continuations: number 2: 51\d tokens, with its prompt, exceed the model's 512 positions",
    ):
        answer_logprobs(LanguageModel(tiny_model(), tokenizer), [TruthRow(question, ("A",), ("lighthouse 7 7",))])
