"""What the benchmark of evaluation works on: rows, documents, and multiple choice made out of question rows."""

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from unlearn_pl.data.records import Record, kind_of_id
from unlearn_pl.errors import InputError
from unlearn_pl.tasks.mmlu import LETTERS, Question, Subject


@dataclass(frozen=True)
class Amounts:
    """How much is evaluated."""

    rows: int = 200
    max_new_tokens: int = 256
    questions: int = 60
    shots: int = 5
    documents: int = 40

    def __post_init__(self) -> None:
        for name, least in (("rows", 2), ("max_new_tokens", 1), ("questions", 1), ("shots", 0), ("documents", 1)):
            if getattr(self, name) < least:
                raise InputError(f"must be at least {least}, got {getattr(self, name)}", name)


@dataclass(frozen=True)
class Workload:
    """What both ways evaluate the model on."""

    records: Sequence[Record]
    subjects: Sequence[Subject]
    documents: Sequence[str]

    @property
    def questions(self) -> int:
        """How many questions there are."""
        return sum(len(subject.questions) for subject in self.subjects)


def choose_work(forget: Sequence[Record], retain: Sequence[Record], amounts: Amounts, seed: int) -> Workload:
    """Rows, half of them from each set, questions and documents, by ``seed``; of the last two fewer if there are fewer.

    Raises InputError if a set has too few rows, no question can be made, or there is no completion row (sc).
    """
    order = random.Random(seed)
    half = amounts.rows // 2
    records: list[Record] = []
    for name, rows, count in (("forget", forget, half), ("retain", retain, amounts.rows - half)):
        if len(rows) < count:
            raise InputError(f"{amounts.rows} need {count} rows of data.{name}, which has {len(rows)}", "rows")
        records += order.sample(list(rows), count)
    order.shuffle(records)  # so that each turn has rows of both sets
    documents = [record.document for record in [*forget, *retain] if record.kind == "sc"]
    if not documents:
        raise InputError("made of completion rows (sc), which neither data.forget nor data.retain has", "documents")
    order.shuffle(documents)
    subjects = make_subjects([*forget, *retain], amounts.questions, amounts.shots, seed)
    return Workload(records, subjects, documents[: amounts.documents])


def make_subjects(records: Sequence[Record], questions: int, shots: int, seed: int) -> list[Subject]:
    """Multiple choice out of the question rows (qa): a row's own answer and those of three others of its subject.

    A subject is a task and the last digit of the id, which in LUME says what is asked for; in sets too small for that,
    all question rows. Its first ``shots`` rows, in an order by ``seed``, are the solved ones. At most ``questions``,
    evenly over the subjects. Raises InputError if no subject has four different answers and more rows than ``shots``.
    """
    groups: defaultdict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record.kind == "qa":
            digit = f"_{record.id[-1]}" if kind_of_id(record.id) == "qa" else ""
            groups[f"{record.task}{digit}"].append(record)
    everything = {"all": [record for rows in groups.values() for record in rows]}
    order = random.Random(seed)
    subjects = _subjects(groups, shots, order) or _subjects(everything, shots, order)
    if not subjects:
        raise InputError(
            f"multiple choice needs {len(LETTERS)} different answers and more question rows (qa) than shots; "
            f"the two sets have {len(everything['all'])} rows, got {shots}",
            "shots",
        )
    return first_questions(subjects, questions)


def _subjects(groups: Mapping[str, list[Record]], shots: int, order: random.Random) -> list[Subject]:
    subjects = []
    for name, rows in sorted(groups.items()):
        answers = sorted({row.output.strip() for row in rows})
        if len(answers) >= len(LETTERS) and len(rows) > shots:
            order.shuffle(rows)
            made = [_question(row, answers, order) for row in rows]
            subjects.append(Subject(name, tuple(made[:shots]), tuple(made[shots:])))
    return subjects


def first_questions(subjects: Sequence[Subject], count: int) -> list[Subject]:
    """The first question of each subject, then the second, ..., ``count`` in all; without subjects that have none."""
    turns = sorted((place, slot) for slot, subject in enumerate(subjects) for place in range(len(subject.questions)))
    taken = Counter(slot for _, slot in turns[:count])
    return [replace(subjects[slot], questions=subjects[slot].questions[: taken[slot]]) for slot in sorted(taken)]


def _question(row: Record, answers: Sequence[str], order: random.Random) -> Question:
    own = row.output.strip()
    options = [own, *order.sample([answer for answer in answers if answer != own], len(LETTERS) - 1)]
    order.shuffle(options)
    a, b, c, d = options
    return Question(row.input, (a, b, c, d), LETTERS[options.index(own)])
