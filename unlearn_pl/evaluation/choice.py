"""Multiple choice in the MMLU layout: k-shot prompts, answered by the letter with the highest logit.

Hendrycks et al. 2021 (arXiv 2009.03300). The prompt is that of their code, which the official evaluation uses through
open-instruct: five shots, and the mean over all questions.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from transformers import PreTrainedTokenizerBase

from unlearn_pl.data.encoding import token_ids
from unlearn_pl.data.records import BLANK
from unlearn_pl.errors import InputError
from unlearn_pl.inference.model import LanguageModel

LETTERS = "ABCD"
FOLDER = "choice.folder"


@dataclass(frozen=True)
class Choice:
    """Multiple-choice questions, which show what the model still knows beside the two sets."""

    folder: str | None = None
    """Folder with `test/<subject>_test.csv` and, for the shots, `dev/<subject>_dev.csv`: no header, six columns
    (question, four options, letter). Without it there is no accuracy and no aggregate."""
    shots: int = 5
    """Solved questions of the same subject before each question; at least 0."""
    limit: int | None = None
    """Only the first questions of each subject; at least 1. All without it."""
    batch_size: int = 16
    """Questions answered together; at least 1."""

    def __post_init__(self) -> None:
        for name, least in (("shots", 0), ("limit", 1), ("batch_size", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"must be at least {least}, got {value}", f"choice.{name}")


@dataclass(frozen=True)
class Question:
    """A question with four options; ``answer`` is the letter of the right one."""

    text: str
    options: tuple[str, str, str, str]
    answer: str

    def block(self, solved: bool) -> str:
        """The question as a prompt shows it, with its answer and an empty line if ``solved``."""
        options = "".join(f"\n{letter}. {option}" for letter, option in zip(LETTERS, self.options, strict=True))
        return f"{self.text}{options}\nAnswer:" + (f" {self.answer}\n\n" if solved else "")


@dataclass(frozen=True)
class Subject:
    """The questions of one subject and the solved ones that go before each of them."""

    name: str
    shots: tuple[Question, ...]
    questions: tuple[Question, ...]

    def prompt(self, question: Question, shots: int) -> str:
        """The prompt with the first ``shots`` solved questions; it ends in ``Answer:``."""
        # The two spaces after "about" are those of the original code.
        head = f"The following are multiple choice questions (with answers) about  {self.name.replace('_', ' ')}.\n\n"
        return head + "".join(shot.block(solved=True) for shot in self.shots[:shots]) + question.block(solved=False)


def read_subjects(choice: Choice) -> list[Subject]:
    """The subjects in a folder of the MMLU layout, in order of their names; none if no folder is given.

    Raises InputError if there is no subject, a row is malformed, or a subject has too few questions for the shots.
    """
    if choice.folder is None:
        return []
    folder = Path(choice.folder).expanduser()
    files = sorted((folder / "test").glob("*_test.csv"))
    if not files:
        raise InputError(f"{folder} must hold test/<subject>_test.csv files, found none", FOLDER)
    subjects = []
    for path in files:
        name = path.name.removesuffix("_test.csv")
        shots: list[Question] = []
        if choice.shots:
            solved = folder / "dev" / f"{name}_dev.csv"
            shots = read_questions(solved)[: choice.shots]
            if len(shots) < choice.shots:
                raise InputError(f"{solved} has only {len(shots)} questions, got {choice.shots}", "choice.shots")
        subjects.append(Subject(name, tuple(shots), tuple(read_questions(path)[: choice.limit])))
    return subjects


def read_questions(path: Path) -> list[Question]:
    """The rows of one CSV file. Raises InputError, with file and row, if one is not five texts and a letter."""
    questions = []
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            for number, row in enumerate(csv.reader(stream, strict=True), start=1):
                questions.append(_question(row, f"{path}, row {number}"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}", FOLDER) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: {error}", FOLDER) from error
    except csv.Error as error:
        raise InputError(f"{path}, row {len(questions) + 1}: not CSV: {error}", FOLDER) from error
    if not questions:
        raise InputError(f"{path} is empty", FOLDER)
    return questions


def _question(row: list[str], where: str) -> Question:
    if len(row) != 6:
        raise InputError(f"{where}: six columns are needed (question, four options, letter), got {len(row)}", FOLDER)
    if empty := [number for number, cell in enumerate(row, start=1) if not cell.strip()]:
        raise InputError(f"{where}: column {empty[0]} is empty", FOLDER)
    if row[5].strip() not in tuple(LETTERS):
        raise InputError(f"{where}: the last column must be one of A, B, C, D, got {row[5]!r:.40}", FOLDER)
    return Question(row[0], (row[1], row[2], row[3], row[4]), row[5].strip())


def answer_choices(
    language_model: LanguageModel, subjects: Sequence[Subject], *, batch_size: int = Choice.batch_size
) -> dict[str, Any]:
    """Accuracies in [0, 1]: ``average`` over all questions (the official one), ``macro`` over subjects, ``subjects``
    each; ``questions``, how many there were, ``shortened``, how many did not fit with all their shots and were asked
    with fewer, and ``right``, the outcome of each question in order. An outcome is None where a broken model has no
    finite logits; with one of these the accuracies that it would count in are None too.
    """
    asked = [(subject, question) for subject in subjects for question in subject.questions]
    fitted = [fitting_prompt(language_model, subject, question) for subject, question in asked]
    letters = letter_ids(language_model.tokenizer)
    chosen = language_model.next_token([prompt for prompt, _ in fitted], letters, batch_size=batch_size)
    outcomes = [
        None if place is None else LETTERS[place] == question.answer
        for place, (_, question) in zip(chosen, asked, strict=True)
    ]
    right: dict[str, list[bool | None]] = {subject.name: [] for subject in subjects}
    for (subject, _), outcome in zip(asked, outcomes, strict=True):
        right[subject.name].append(outcome)
    by_subject = {name: accuracy(values) for name, values in right.items()}
    return {
        "average": accuracy(outcomes),
        "macro": accuracy(list(by_subject.values())),
        "subjects": by_subject,
        "questions": len(asked),
        "shortened": sum(used < len(subject.shots) for (_, used), (subject, _) in zip(fitted, asked, strict=True)),
        "right": outcomes,
    }


def accuracy(outcomes: Sequence[float | None]) -> float | None:
    """Their mean; None if one is None, since nothing is known of it."""
    known = [float(outcome) for outcome in outcomes if outcome is not None]
    return fmean(known) if len(known) == len(outcomes) else None


def letter_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The last token of " A", " B", " C", " D". Raises InputError if they are not four different tokens."""
    ids = [token_ids(BLANK + letter, tokenizer)[-1] for letter in LETTERS]
    if len(set(ids)) < len(LETTERS):
        raise InputError(f"this tokenizer does not tell the letters A, B, C, D apart (last tokens {ids})", FOLDER)
    return ids


def fitting_prompt(language_model: LanguageModel, subject: Subject, question: Question) -> tuple[str, int]:
    """The prompt and its number of shots: all, or as many as the model's positions hold.

    Raises InputError if not even the bare question fits.
    """
    tokens = 0
    for shots in range(len(subject.shots), -1, -1):
        prompt = subject.prompt(question, shots)
        tokens = language_model.length(prompt)
        if language_model.fits(tokens):
            return prompt, shots
    limit = language_model.positions
    raise InputError(
        f"the model has {limit} positions, a question of {subject.name} has {tokens} tokens: {question.text!r:.60}",
        FOLDER,
    )
