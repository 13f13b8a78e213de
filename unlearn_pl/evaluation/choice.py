"""Multiple choice: k-shot prompts, answered by the letter with the highest logit; the mean over all questions."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from unlearn_pl.data.encoding import start_ids
from unlearn_pl.errors import InputError
from unlearn_pl.inference.batches import Work
from unlearn_pl.inference.model import Network
from unlearn_pl.inference.next_token import choose_letters
from unlearn_pl.inference.rows import evaluating, position_limit
from unlearn_pl.tasks.mmlu import LETTERS, Question, Subject


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


def answer_choices(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    subjects: Sequence[Subject],
    choice: Choice,
    work: Work | None = None,
) -> dict[str, Any]:
    """Accuracies in [0, 1]: ``average`` over all questions (the official one), ``macro`` over subjects, ``subjects``
    each; ``questions``, how many there were, ``shortened``, how many did not fit with all their shots and were asked
    with fewer, and ``right``, the outcome of each question in order. An outcome is None where a broken model has no
    finite logits; with one of these the accuracies that it would count in are None too.
    """
    letters = letter_ids(tokenizer)
    asked = [(subject, question) for subject in subjects for question in subject.questions]
    fitted = [fitting_prompt(model, tokenizer, subject, question) for subject, question in asked]
    with evaluating(model):
        chosen = choose_letters(Network(model), [row for row, _ in fitted], letters, choice.batch_size, work)
    outcomes = [
        None if letter is None else letter == question.answer
        for letter, (_, question) in zip(chosen, asked, strict=True)
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
    ids = [tokenizer.encode(f" {letter}", add_special_tokens=False)[-1] for letter in LETTERS]
    if len(set(ids)) < len(LETTERS):
        raise InputError(
            f"this tokenizer does not tell the letters A, B, C, D apart (last tokens {ids})", "choice.folder"
        )
    return ids


def fitting_prompt(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, subject: Subject, question: Question
) -> tuple[list[int], int]:
    """Token ids of the prompt and its number of shots: all, or as many as the model's positions hold.

    Raises InputError if not even the bare question fits.
    """
    positions = position_limit(model)
    for shots in range(len(subject.shots), -1, -1):
        row = start_ids(subject.prompt(question, shots), tokenizer)
        if positions is None or len(row) <= positions:
            return row, shots
    raise InputError(
        f"the model has {positions} positions, a question of {subject.name} has {len(row)} tokens: "
        f"{question.text!r:.60}",
        "choice.folder",
    )
