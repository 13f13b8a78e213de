"""What a benchmark is: sets of rows with roles, how a row is asked and scored, and what the scores amount to.

A benchmark of one's own is one file with a subclass of `Benchmark`; `sets` and `score` are all that it must have.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, ClassVar

from unlearn_pl.data.records import Record
from unlearn_pl.errors import InputError, check_choices
from unlearn_pl.metrics.intervals import Interval
from unlearn_pl.metrics.metric import Estimate, Metric
from unlearn_pl.metrics.sample import Role, Sample


@dataclass(frozen=True)
class RowSet:
    """Rows of one role. ``name`` opens the names of all their scores (``forget/verbatim_probability``)."""

    name: str
    role: Role
    rows: Sequence[Record] = ()
    """What the model is asked."""
    documents: Sequence[str] = ()
    """Whole texts, of a set of members or non-members: a membership attack reads them, nobody asks them anything."""

    def __post_init__(self) -> None:
        check_choices(self)


@dataclass(frozen=True)
class Term:
    """Rows whose mean score is one term of the task aggregate."""

    name: str
    role: Role
    samples: Sequence[Sample]
    """Only those that have a score."""

    @property
    def scores(self) -> list[float]:
        """The score of each sample."""
        return [sample.score for sample in self.samples if sample.score is not None]

    @property
    def units(self) -> list[tuple[str, str, str]]:
        """The document that each is of."""
        return [sample.unit for sample in self.samples]

    @property
    def value(self) -> float | None:
        """Higher is better: 1 - mean where rows are to be forgotten, else the mean; None without a score."""
        if not self.samples:
            return None
        mean = fmean(self.scores)
        return 1 - mean if self.role == "forget" else mean


class Benchmark(ABC):
    """Rows, and what an answer to them is worth. Row scores are in [0, 1] and say how far the model gave the answer."""

    source: ClassVar[str] = "own"
    """Where its scores come from: a paper, say."""
    formulas: ClassVar[Mapping[str, str]] = {
        "terms": "mean row score of each set",
        "task_aggregate": "mean of the terms (forget: 1 - mean)",
        "aggregate": "the task aggregate",
    }
    """What its own scores are, for the table of metrics."""
    metrics: ClassVar[tuple[Metric, ...]] = ()
    """Further metrics that only this benchmark has, of the family ``ALWAYS`` or one of those that there are."""

    @abstractmethod
    def sets(self) -> Sequence[RowSet]:
        """Its sets, read and checked; this is called once an evaluation. Raises InputError."""

    @abstractmethod
    def score(self, row: Record, text: str) -> float | None:
        """How far ``text`` is the answer of ``row``, in [0, 1]; None where that says nothing."""

    def prompt(self, row: Record) -> str:
        """What the model is given to continue."""
        return row.input

    def answer(self, row: Record) -> str:
        """What should come, without the blank before it."""
        return row.output

    def is_exact(self, row: Record) -> bool:
        """Whether a text scores only if it is the whole answer: generation may then stop early."""
        return False

    def is_completion(self, row: Record) -> bool:
        """Whether the answer is a text whose words count (ROUGE), and not one fact."""
        return True

    def members(self, sets: Sequence[RowSet], tasks: Sequence[str] | None = None) -> list[str]:
        """The documents of the members of a membership attack, where none are given: those of its member sets.

        ``tasks`` chooses among the tasks of the rows that documents are rebuilt from, where a benchmark does that.
        """
        if tasks is not None:
            raise InputError(f"{type(self).__name__} does not rebuild members by task", "membership.tasks")
        if not (found := documents_of(sets, "member")):
            raise InputError(f"needed, as {type(self).__name__} has no set of members", "membership.member")
        return found

    def sources(self) -> dict[str, str]:
        """Name of a set -> the file or other source it was read from, of those that have one."""
        return {}

    def settings(self) -> dict[str, Any]:
        """What it was made with, as the provenance of results holds it."""
        return {"benchmark": f"{type(self).__module__}.{type(self).__qualname__}"}

    def notes(self, rows: Sequence[tuple[RowSet, Record]]) -> list[str]:
        """What its scores cannot see of these rows, a line each."""
        return []

    def term_of(self, sample: Sample) -> str:
        """Name of the term that a row's score counts in; the terms of a set begin with its name."""
        return f"{sample.split}/score"

    def terms(self, samples: Sequence[Sample]) -> list[Term]:
        """The terms of the task aggregate, in order of their first rows."""
        found: dict[tuple[str, Role], list[Sample]] = {}
        for sample in samples:
            group = found.setdefault((self.term_of(sample), sample.role), [])
            group += [] if sample.score is None else [sample]
        return [Term(name, role, group) for (name, role), group in found.items()]

    def unscored(self, rows: Sequence[tuple[RowSet, Record]]) -> list[str]:
        """The terms of which no row can have a score, whatever the model says, and why, a line each."""
        return []

    def task_aggregate(self, terms: Sequence[Term]) -> float | None:
        """One number of all terms, higher is better; their mean, None as soon as one says nothing."""
        known = [term.value for term in terms if term.value is not None]
        return fmean(known) if known and len(known) == len(terms) else None

    def task_interval(self, terms: Sequence[Term], resamples: int) -> Interval:
        """95 % interval of the task aggregate, where there is one."""
        return None

    def aggregate(self, task: float | None, membership: float | None, choice: float | None) -> float | None:
        """One number of the task aggregate, the membership score and the accuracy in multiple choice; here the first.

        Those that were not measured are None.
        """
        return task

    def aggregate_interval(self, parts: Sequence[Estimate]) -> Interval:
        """95 % interval of the aggregate from the estimates of its three parts, where there is one."""
        return parts[0].interval

    def official(self, results: Mapping[str, float | None], terms: Sequence[Term]) -> dict[str, Any]:
        """Further keys of `results.json`: the scores under the names that the benchmark's own script gives them.

        ``results`` has the five scores of `metrics/headline.py`.
        """
        return {}


def documents_of(sets: Sequence[RowSet], role: Role) -> list[str]:
    """The documents of all sets of a role."""
    return [text for one in sets if one.role == role for text in one.documents]
