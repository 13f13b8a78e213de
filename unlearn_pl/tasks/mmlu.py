"""Multiple-choice questions in the MMLU layout: the files, and the prompt with solved questions before each.

Hendrycks et al. 2021 (arXiv 2009.03300). The prompt is that of their code, which the official evaluation of LUME uses
through open-instruct.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

from unlearn_pl.errors import InputError

LETTERS = "ABCD"


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


def read_subjects(folder: str | None, shots: int = 5, limit: int | None = None) -> list[Subject]:
    """The subjects in a folder of the MMLU layout, in order of their names; none if no folder is given.

    ``shots`` is the number of solved questions before each question, ``limit`` keeps the first questions of a subject.
    Raises InputError if there is no subject, a row is malformed, or a subject has too few questions for the shots.
    """
    if folder is None:
        return []
    place = Path(folder).expanduser()
    files = sorted((place / "test").glob("*_test.csv"))
    if not files:
        raise InputError(f"{place} must hold test/<subject>_test.csv files, found none", "folder")
    subjects = []
    for path in files:
        name = path.name.removesuffix("_test.csv")
        solved = _read_shots(place / "dev" / f"{name}_dev.csv", shots) if shots else []
        subjects.append(Subject(name, tuple(solved), tuple(read_questions(path)[:limit])))
    return subjects


def _read_shots(path: Path, count: int) -> list[Question]:
    found = read_questions(path)[:count]
    if len(found) < count:
        raise InputError(f"{path} has only {len(found)} questions, got {count}", "shots")
    return found


def read_questions(path: Path) -> list[Question]:
    """The rows of one CSV file. Raises InputError, with file and row, if one is not five texts and a letter."""
    questions = []
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            for number, row in enumerate(csv.reader(stream, strict=True), start=1):
                questions.append(_question(row, f"{path}, row {number}"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}", "folder") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: {error}", "folder") from error
    except csv.Error as error:
        raise InputError(f"{path}, row {len(questions) + 1}: not CSV: {error}", "folder") from error
    if not questions:
        raise InputError(f"{path} is empty", "folder")
    return questions


def _question(row: list[str], where: str) -> Question:
    if len(row) != 6:
        raise InputError(f"{where}: six columns are needed (question, four options, letter), got {len(row)}", "folder")
    if empty := [number for number, cell in enumerate(row, start=1) if not cell.strip()]:
        raise InputError(f"{where}: column {empty[0]} is empty", "folder")
    if row[5].strip() not in tuple(LETTERS):
        raise InputError(f"{where}: the last column must be one of A, B, C, D, got {row[5]!r:.40}", "folder")
    return Question(row[0], (row[1], row[2], row[3], row[4]), row[5].strip())
