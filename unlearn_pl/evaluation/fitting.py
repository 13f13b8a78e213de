"""What a model can be measured on, found before anything is measured: the rest is left out and told."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from transformers import PreTrainedTokenizerBase

from unlearn_pl.data.encoding import holds_unknown, token_ids
from unlearn_pl.errors import InputError, within
from unlearn_pl.evaluation.inputs import EvaluationInputs
from unlearn_pl.evaluation.samples import prompt_of
from unlearn_pl.evaluation.truth import TruthRow
from unlearn_pl.inference.model import LanguageModel
from unlearn_pl.tasks.base import RowSet
from unlearn_pl.tasks.mmlu import Question, Subject

Item = TypeVar("Item")


@dataclass
class Fitting:
    """Sorts out what does not fit a model and its tokenizer; ``notes`` say what that was, a line a source."""

    language_model: LanguageModel
    limit: int | None
    """Positions that every model has that reads the documents; None for no limit."""
    notes: list[str] = field(default_factory=list)

    def inputs(self, inputs: EvaluationInputs) -> EvaluationInputs:
        """``inputs`` with the documents, questions and truth rows that can be measured; its rows are all still there.

        Raises InputError if a source has none.
        """
        return replace(
            inputs,
            members=self.kept(inputs.members, self.document, "members: documents"),
            nonmembers=self.kept(inputs.nonmembers, self.document, "non-members: documents"),
            subjects=self.subjects(inputs.subjects),
            truth={
                split: self.kept(rows, self.truth_row, f"truth rows of the {split} set")
                for split, rows in inputs.truth.items()
            },
        )

    def kept(
        self, items: Sequence[Item], obstacle: Callable[[Item], str | None], what: str, least: int = 1
    ) -> list[Item]:
        """The items without an obstacle, with a note of the others. Raises InputError if fewer than ``least`` are left
        of any at all."""
        found = [obstacle(item) for item in items]
        kept = [item for item, reason in zip(items, found, strict=True) if reason is None]
        reasons = [(number, reason) for number, reason in enumerate(found, start=1) if reason is not None]
        if reasons:
            number, reason = reasons[0]
            note = f"{what}: {len(reasons)} of {len(items)} cannot be measured, the first is number {number}: {reason}"
            if len(kept) < least:
                raise InputError(note)
            self.notes.append(f"{note}; left out of the scores")
        return kept

    def subjects(self, subjects: Sequence[Subject]) -> list[Subject]:
        """Subjects with the questions that fit, without shots at least."""
        asked = [(subject, question) for subject in subjects for question in subject.questions]
        kept = set(map(id, self.kept(asked, self.question, "questions")))
        fitting: dict[int, list[Question]] = {id(subject): [] for subject in subjects}
        for pair in asked:
            if id(pair) in kept:
                fitting[id(pair[0])].append(pair[1])
        return [
            replace(subject, questions=tuple(questions)) for subject in subjects if (questions := fitting[id(subject)])
        ]

    def document(self, text: str) -> str | None:
        """Why a document has no loss, None if it has one."""
        tokens = self.language_model.length(text)
        return "a single token has no loss" if tokens < 2 else self.too_long(tokens)

    def question(self, asked: tuple[Subject, Question]) -> str | None:
        """Why a question cannot be asked, None if it can."""
        subject, question = asked
        return None if self.limit is None else self.too_long(self.language_model.length(subject.prompt(question, 0)))

    def truth_row(self, row: TruthRow) -> str | None:
        """Why a row has no truth ratio, None if it has one."""
        with within("truth"):
            pairs = [self.language_model.encode(row.question, answer, eos=row.eos) for answer in row.answers]
        if not all(question and answer for question, answer in pairs):
            return "the tokenizer makes no token of its question or of an answer"
        return self.too_long(max(len(question) + len(answer) for question, answer in pairs))

    def too_long(self, tokens: int) -> str | None:
        """Whether so many tokens exceed the limit, in words."""
        exceeds = self.limit is not None and tokens > self.limit
        return f"{tokens} tokens exceed the model's {self.limit} positions" if exceeds else None


def row_obstacles(language_model: LanguageModel, inputs: EvaluationInputs) -> list[str | None]:
    """For each of ``inputs.rows`` why it cannot be measured, None where it can.

    Raises InputError if none of a set can.
    """
    found = [language_model.obstacle(prompt_of(inputs.benchmark, row)) for _, row in inputs.rows]
    for one, reasons in by_set(inputs, found):
        if one.rows and None not in reasons:
            raise InputError(
                f"none of {len(one.rows)} rows can be measured; {one.rows[0].id!r}: {reasons[0]}", f"data.{one.name}"
            )
    return found


def row_notes(
    tokenizer: PreTrainedTokenizerBase, inputs: EvaluationInputs, obstacles: Sequence[str | None]
) -> list[str]:
    """A line for each set that has rows with an obstacle, or with answers that the tokenizer only knows in part."""
    notes = []
    for one, reasons in by_set(inputs, obstacles):
        stopped = [(row.id, reason) for row, reason in zip(one.rows, reasons, strict=True) if reason is not None]
        if stopped:
            name, reason = stopped[0]
            what = f"{one.name} set: {len(stopped)} of {len(one.rows)} rows cannot be measured, the first is {name!r}"
            notes.append(f"{what}: {reason}; left out of the scores")
    measured = [row for (_, row), obstacle in zip(inputs.rows, obstacles, strict=True) if obstacle is None]
    answers = [(row.id, token_ids(inputs.benchmark.answer(row), tokenizer)) for row in measured]
    if partly := [name for name, answer in answers if holds_unknown(answer, tokenizer)]:
        what = f"{len(partly)} of {len(measured)} answers hold characters that the tokenizer does not know"
        notes.append(f"{what}, the first is that of {partly[0]!r}; no model can write them")
    return notes


def by_set(inputs: EvaluationInputs, values: Sequence[Item]) -> Iterator[tuple[RowSet, list[Item]]]:
    """Each set with its part of ``values``, of which ``inputs.rows`` have one each."""
    rest = iter(values)
    for one in inputs.sets:
        yield one, list(itertools.islice(rest, len(one.rows)))
