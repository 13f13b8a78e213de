"""The whole synthetic benchmark as files: forget, retain, members, non-members, questions, and the knowledge taught."""

import csv
import io
import random
from dataclasses import dataclass, replace
from pathlib import Path

from unlearn_pl.data.records import joined
from unlearn_pl.errors import InputError
from unlearn_pl.files import new_folder, write_json_lines, write_text
from unlearn_pl.tasks.mmlu import Subject
from unlearn_pl.tasks.synthetic.documents import WRITERS, Document, invent_document
from unlearn_pl.tasks.synthetic.inventor import Inventor
from unlearn_pl.tasks.synthetic.questions import FACTS, MOST_QUESTIONS, SHOTS, invent_subject

MOST_DOCUMENTS = 250


@dataclass(frozen=True)
class Synthetic:
    """Sizes and seed of the synthetic benchmark; everything in it follows from them."""

    seed: int = 42
    """Seed of every name, fact, text and question."""
    documents_per_task: int = 8
    """Documents of each of the three tasks in the forget set, and as many in the retain set (1 to 250)."""
    nonmembers_per_task: int = 8
    """Documents of each task that no model is taught, for the membership attack (1 to 250)."""
    questions: int = 12
    """Multiple-choice test questions a subject (1 to 40); five more of each serve as examples."""
    times_taught: int = 1
    """How often the knowledge texts answer each multiple-choice question, each time after other examples (1 to 20). A
    model that is to answer after examples it was not taught with needs about ten."""


@dataclass(frozen=True)
class Invented:
    """The synthetic benchmark in memory. ``knowledge`` holds few-shot prompts with answers, to be taught as text."""

    forget: tuple[Document, ...]
    retain: tuple[Document, ...]
    nonmembers: tuple[Document, ...]
    subjects: tuple[Subject, ...]
    knowledge: tuple[str, ...]


def write_benchmark(folder: str | Path, options: Synthetic, overwrite: bool = False) -> None:
    """Write the benchmark to ``folder``, all of it or nothing.

    ``forget.jsonl`` and ``retain.jsonl`` have LUME rows; ``membership/{member,nonmember}.jsonl`` and
    ``knowledge.jsonl`` a field ``document``; ``mmlu/dev/<subject>_dev.csv`` and ``mmlu/test/<subject>_test.csv`` the
    columns question, A, B, C, D, letter, without a heading. Members are the forget documents of all three tasks: the
    official file has those of Task 3 alone, which here would be too few for a useful area under the curve.

    Raises InputError if a size is out of range, or ``folder`` holds files and ``overwrite`` is off.
    """
    benchmark = invent_benchmark(options)
    with new_folder(folder, overwrite) as target:
        for name, documents in (("forget", benchmark.forget), ("retain", benchmark.retain)):
            write_json_lines(target / f"{name}.jsonl", (row for document in documents for row in document.rows()))
        for name, documents in (("member", benchmark.forget), ("nonmember", benchmark.nonmembers)):
            write_json_lines(
                target / "membership" / f"{name}.jsonl", ({"document": document.text} for document in documents)
            )
        for subject in benchmark.subjects:
            for part, questions in (("dev", subject.shots), ("test", subject.questions)):
                table = io.StringIO()
                csv.writer(table, lineterminator="\n").writerows(
                    [one.text, *one.options, one.answer] for one in questions
                )
                write_text(target / "mmlu" / part / f"{subject.name}_{part}.csv", table.getvalue())
        write_json_lines(target / "knowledge.jsonl", ({"document": text} for text in benchmark.knowledge))


def invent_benchmark(options: Synthetic) -> Invented:
    """The benchmark of ``options``. Raises InputError if a size is out of range."""
    check_sizes(options)
    inventor = Inventor(options.seed)
    sizes = (options.documents_per_task, options.documents_per_task, options.nonmembers_per_task)
    forget, retain, nonmembers = (
        tuple(invent_document(task, inventor) for task in WRITERS for _ in range(size)) for size in sizes
    )
    source = random.Random(f"synthetic questions {options.seed}")
    subjects = tuple(invent_subject(name, options.questions, source) for name in FACTS)
    knowledge = tuple(text for subject in subjects for text in teach(subject, options.times_taught, source))
    return Invented(forget, retain, nonmembers, subjects, knowledge)


def tokenizer_texts(options: Synthetic) -> list[str]:
    """Texts to train a tokenizer on: the knowledge of ``options``, and the documents and questions of another world.

    Trained on the benchmark itself, a tokenizer would know the names of its members as whole words and spell those of
    others: the membership attack would then measure the tokenizer.
    """
    world = invent_benchmark(Synthetic(seed=options.seed + 1, documents_per_task=50, nonmembers_per_task=1))
    texts = [document.text for document in (*world.forget, *world.retain)]
    texts += [joined(question, answer) for document in world.forget for question, answer in document.questions]
    return texts + list(invent_benchmark(options).knowledge)


def teach(subject: Subject, times: int, source: random.Random) -> list[str]:
    """Few-shot prompts in which every question, solved ones too, is answered ``times`` times.

    The questions, shuffled, are dealt to prompts of six (the last may be shorter), so that each prompt teaches its
    questions after zero, one, ..., five examples; the examples change, since a model would learn the answer by them.
    """
    texts = []
    for _ in range(times):
        questions = source.sample((*subject.shots, *subject.questions), len(subject.shots) + len(subject.questions))
        for start in range(0, len(questions), SHOTS + 1):
            *examples, asked = questions[start : start + SHOTS + 1]
            prompt = replace(subject, shots=tuple(examples)).prompt(asked, len(examples))
            texts.append(f"{prompt} {asked.answer}")
    return texts


def check_sizes(options: Synthetic) -> None:
    limits = {
        "documents_per_task": MOST_DOCUMENTS,
        "nonmembers_per_task": MOST_DOCUMENTS,
        "questions": MOST_QUESTIONS,
        "times_taught": 20,
    }
    for name, most in limits.items():
        if not 1 <= getattr(options, name) <= most:
            raise InputError(f"must be from 1 to {most}, got {getattr(options, name)}", name)
