"""Multiple choice: prompt, files, and answers against one question at a time."""

import csv
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from unlearn_pl.errors import InputError
from unlearn_pl.evaluation.choice import Choice, answer_choices, letter_ids
from unlearn_pl.inference.model import LanguageModel
from unlearn_pl.tasks.mmlu import Question, Subject, read_subjects

Build = Callable[[], LlamaForCausalLM]


def question(number: int) -> list[str]:
    return [f"Which, of these, is {number}?", *(f"{number + shift}" for shift in range(4)), "ABCD"[number % 4]]


def write_csv(path: Path, rows: list[list[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(rows)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two subjects, with seven and two questions, and two solved ones each."""
    for name, start, count in (("old_towns", 10, 7), ("numbers", 50, 2)):
        write_csv(tmp_path / "dev" / f"{name}_dev.csv", [question(number) for number in range(start - 2, start)])
        write_csv(tmp_path / "test" / f"{name}_test.csv", [question(number) for number in range(start, start + count)])
    return tmp_path


def test_prompt_is_that_of_the_paper(folder: Path) -> None:
    """Two spaces after `about`: the original code puts one before every word of the subject."""
    numbers, towns = read_subjects(str(folder), shots=1)
    assert towns.prompt(towns.questions[0], shots=1) == (
        "The following are multiple choice questions (with answers) about  old towns.\n\n"
        "Which, of these, is 8?\nA. 8\nB. 9\nC. 10\nD. 11\nAnswer: A\n\n"
        "Which, of these, is 10?\nA. 10\nB. 11\nC. 12\nD. 13\nAnswer:"
    )
    assert numbers.prompt(numbers.questions[0], shots=0).startswith("The following are multiple choice questions")
    assert [len(numbers.questions), len(towns.questions)] == [2, 7]


def test_limit_is_per_subject(folder: Path) -> None:
    assert [len(subject.questions) for subject in read_subjects(str(folder), shots=0, limit=3)] == [2, 3]


def test_no_folder_no_subjects() -> None:
    assert read_subjects(None) == []


@torch.no_grad()
def one_by_one(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, subject: Subject) -> list[bool]:
    right = []
    for asked in subject.questions:
        ids = tokenizer(subject.prompt(asked, len(subject.shots)), return_tensors="pt").input_ids
        logits = model(input_ids=ids).logits[0, -1]
        best = max("ABCD", key=lambda letter: logits[tokenizer(f" {letter}").input_ids[-1]].item())
        right.append(best == asked.answer)
    return right


@pytest.mark.parametrize("batch_size", [1, 4])
def test_answers_one_by_one(
    folder: Path, tiny_model: Build, tokenizer: PreTrainedTokenizerFast, batch_size: int
) -> None:
    """The average counts questions (seven and two), the macro average subjects."""
    model = tiny_model()
    choice = Choice(str(folder), shots=2, batch_size=batch_size)
    subjects = read_subjects(choice.folder, choice.shots, choice.limit)
    right = {subject.name: one_by_one(model, tokenizer, subject) for subject in subjects}
    rates = {name: sum(values) / len(values) for name, values in right.items()}
    found = answer_choices(LanguageModel(model, tokenizer), subjects, batch_size=choice.batch_size)
    assert found["subjects"] == pytest.approx(rates)
    assert found["average"] == pytest.approx(sum(map(sum, right.values())) / 9)
    assert found["macro"] == pytest.approx(sum(rates.values()) / 2)
    assert found["questions"] == 9
    assert found["shortened"] == 0


def test_the_letter_with_the_highest_logit_wins(
    folder: Path, tiny_model: Build, tokenizer: PreTrainedTokenizerFast
) -> None:
    """The head rows of the other letters are minus that of C: the answer is C where its logit is above 0, else A."""
    model = tiny_model()
    a, b, c, d = letter_ids(tokenizer)
    with torch.no_grad():
        model.lm_head.weight[[a, b, d]] = -model.lm_head.weight[c]
    subjects = read_subjects(str(folder), shots=0)
    answers = {}
    for subject in subjects:
        for asked in subject.questions:
            ids = tokenizer(subject.prompt(asked, 0), return_tensors="pt").input_ids
            answers[asked] = "C" if model(input_ids=ids).logits[0, -1, c] > 0 else "A"
    marked = [
        Subject(s.name, s.shots, tuple(Question(q.text, q.options, answers[q]) for q in s.questions)) for s in subjects
    ]
    assert answer_choices(LanguageModel(model, tokenizer), marked)["average"] == 1


def test_fewer_shots_where_not_all_fit(folder: Path, tiny_model: Build, tokenizer: PreTrainedTokenizerFast) -> None:
    """Positions for the question and one shot only: asked with one shot, and counted."""
    model = tiny_model()
    choice = Choice(str(folder), shots=2, limit=1)
    subjects = read_subjects(choice.folder, choice.shots, choice.limit)
    sizes = [[len(tokenizer(s.prompt(s.questions[0], n)).input_ids) for n in range(3)] for s in subjects]
    model.config.max_position_embeddings = max(size[1] for size in sizes)
    assert model.config.max_position_embeddings < min(size[2] for size in sizes)
    assert answer_choices(LanguageModel(model, tokenizer), subjects, batch_size=choice.batch_size)["shortened"] == 2
    model.config.max_position_embeddings = sizes[0][0] - 1
    with pytest.raises(InputError, match=r"^choice.folder: the model has \d+ positions, a question of numbers has"):
        answer_choices(LanguageModel(model, tokenizer), subjects, batch_size=choice.batch_size)


def test_letters_must_differ(tokenizer: PreTrainedTokenizerFast) -> None:
    class Blind:
        def __call__(self, text: str, **options: bool) -> dict[str, list[int]]:
            return {"input_ids": [3]}

    with pytest.raises(InputError, match="does not tell the letters"):
        letter_ids(Blind())  # type: ignore[arg-type]
    assert [tokenizer.decode([token]).strip() for token in letter_ids(tokenizer)] == list("ABCD")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"q,1,2,3,4,A\nq,1,2,3,A\n", "row 2: six columns are needed (question, four options, letter), got 5"),
        (b"q,1,2,3,4,E\n", "row 1: the last column must be one of A, B, C, D, got 'E'"),
        (b"q,1,2,3,4,A\nq,1, ,3,4,A\n", "row 2: column 3 is empty"),
        (b"", "is empty"),
        (b"caf\xe9,1,2,3,4,A\n", "is not UTF-8"),
        (b'q,1,2,3,4,A\n"q,1,2,3,4,A\n', "row 2: not CSV"),
    ],
)
def test_bad_rows_name_file_and_row(folder: Path, content: bytes, message: str) -> None:
    path = folder / "test" / "numbers_test.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        read_subjects(str(folder), shots=1)
    assert str(caught.value).startswith(f"folder: {path}")


def test_bad_folders(folder: Path) -> None:
    with pytest.raises(InputError, match=r"^folder: .* must hold test/<subject>_test.csv files, found none"):
        read_subjects(str(folder / "nowhere"))
    with pytest.raises(InputError, match=r"^shots: .*numbers_dev.csv has only 2 questions, got 5"):
        read_subjects(str(folder))
    (folder / "dev" / "numbers_dev.csv").unlink()
    with pytest.raises(InputError, match=r"^folder: cannot read .*numbers_dev.csv: No such file"):
        read_subjects(str(folder), shots=1)


@pytest.mark.parametrize("options", [{"shots": -1}, {"limit": 0}, {"batch_size": 0}])
def test_options_are_checked(options: dict[str, int]) -> None:
    with pytest.raises(InputError, match=rf"^choice.{next(iter(options))}: must be at least"):
        Choice(**options)  # type: ignore[arg-type]
