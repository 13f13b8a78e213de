"""Multiple choice: k-shot prompts, answered by the letter with the highest logit; the mean over all questions."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from transformers import PreTrainedTokenizerBase

from unlearn_pl.data.encoding import token_ids
from unlearn_pl.data.records import BLANK
from unlearn_pl.errors import InputError
from unlearn_pl.inference.batch_size import BatchSize, check_batch_size
from unlearn_pl.inference.model import LanguageModel
from unlearn_pl.tasks.mmlu import LETTERS, Question, Subject

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
    batch_size: BatchSize = "auto"
    """Questions answered together; at least 1, or auto: 16 on a CPU, and on a GPU as many as one forward is fast with.
    """

    def __post_init__(self) -> None:
        check_batch_size(self.batch_size, "choice.batch_size")
        for name, least in (("shots", 0), ("limit", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"must be at least {least}, got {value}", f"choice.{name}")


def answer_choices(
    language_model: LanguageModel, subjects: Sequence[Subject], *, batch_size: BatchSize = Choice.batch_size
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
