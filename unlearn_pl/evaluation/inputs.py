"""What an evaluation reads, checked before a model is loaded."""

import warnings
from dataclasses import dataclass, field

from unlearn_pl.data.readers import read_documents
from unlearn_pl.data.records import Record
from unlearn_pl.data.sets import read_split
from unlearn_pl.errors import InputError
from unlearn_pl.evaluation.choice import Choice, Subject, read_subjects
from unlearn_pl.evaluation.membership import Membership, rebuilt_members
from unlearn_pl.evaluation.table import FAMILIES, METRICS
from unlearn_pl.evaluation.truth import Truth, TruthRow, read_truth_rows
from unlearn_pl.inference.generation import Generation
from unlearn_pl.inference.sampling import Sampling
from unlearn_pl.metrics.attacks import ATTACKS
from unlearn_pl.metrics.metric import Need
from unlearn_pl.metrics.scores import rouge_notes
from unlearn_pl.metrics.table import shared_needs


@dataclass(frozen=True)
class EvaluationData:
    """The rows that the model had to forget and those it had to keep."""

    forget: str
    """Forget set: a file, or whatever else `fit` reads its data from."""
    retain: str
    """Retain set, likewise."""
    documents_per_task: int | None = None
    """Only the first documents of each task in each set, with all their rows; at least 1. All without it."""
    columns: dict[str, str] | None = None
    """Field of a row -> column of the source, where they differ: `{input: question, output: answer}`."""


@dataclass(frozen=True)
class EvaluationOptions:
    """What is measured beside the forget and retain rows, and how."""

    membership: Membership = field(default_factory=Membership)
    """Documents of the membership attacks."""
    choice: Choice = field(default_factory=Choice)
    """Multiple-choice questions."""
    generation: Generation = field(default_factory=Generation)
    """Greedy generation."""
    minimum_mmlu: float | None = None
    """A model is eligible if its multiple-choice accuracy is above this, in [0, 1]; officially 0.371 for the 7B model,
    75 % of what it had before. Not judged without it."""
    metrics: list[str] | None = None
    """Families of metrics to measure beside the official scores; all that the other options allow without it."""
    sampling: Sampling = field(default_factory=Sampling)
    """Answers drawn at random."""
    truth: Truth = field(default_factory=Truth)
    """Paraphrased and wrong answers."""
    resamples: int = 1000
    """Resamples of the bootstrap behind the intervals; at least 1."""

    def __post_init__(self) -> None:
        if self.minimum_mmlu is not None and not 0 <= self.minimum_mmlu <= 1:
            raise InputError(f"--minimum_mmlu: must be in [0, 1], got {self.minimum_mmlu}")
        if self.resamples < 1:
            raise InputError(f"--resamples: must be at least 1, got {self.resamples}")
        self._check_metrics()

    def _check_metrics(self) -> None:
        """A family that is asked for by name must be able to be measured. Raises InputError."""
        if unknown := sorted(set(self.metrics or ()) - set(FAMILIES)):
            raise InputError(f"must be among {', '.join(FAMILIES)}, got {', '.join(unknown)}", "metrics")
        given: dict[Need, tuple[str, object]] = {
            "documents": ("membership.nonmember", self.membership.nonmember),
            "sampling": ("sampling.samples", self.sampling.samples),
            "truth": ("truth.forget or truth.retain", self.truth.forget or self.truth.retain),
        }
        for family in self.metrics or ():
            for need in shared_needs(METRICS, family):
                name, value = given.get(need, ("", True))
                if not value:
                    raise InputError(f"{family} needs {name}, got {value}", "metrics")

    @property
    def families(self) -> tuple[str, ...]:
        """The wanted families of metrics."""
        return tuple(family for family in FAMILIES if self.metrics is None or family in self.metrics)

    def attacks(self, reference: bool) -> list[str]:
        """Names of the attacks to run, the official one first; with a reference model those that need one too."""
        if "membership" not in self.families:
            return ["loss"]
        return [name for name, attack in ATTACKS.items() if reference or not attack.needs_reference]


@dataclass(frozen=True)
class EvaluationInputs:
    """Everything an evaluation reads, read and checked before a model is loaded."""

    forget: list[Record]
    retain: list[Record]
    members: list[str]
    """Empty, like ``nonmembers``, if there is no attack."""
    nonmembers: list[str]
    subjects: list[Subject]
    truth: dict[str, list[TruthRow]] = field(default_factory=dict)
    """Split -> rows; only splits that have some."""

    @property
    def split_records(self) -> list[tuple[str, Record]]:
        """(split, record) of every row, forget before retain."""
        return [("forget", record) for record in self.forget] + [("retain", record) for record in self.retain]


def read_inputs(data: EvaluationData, options: EvaluationOptions) -> EvaluationInputs:
    """Read and check all that the options name. Raises InputError, with file and row, on what cannot be used."""
    forget, retain = read_split(data.forget, data.retain, data.columns, data.documents_per_task)
    check_groups(forget, "forget")
    check_groups(retain, "retain")
    rows = [(split, r.kind, r.output) for split, records in (("forget", forget), ("retain", retain)) for r in records]
    for note in rouge_notes(rows):
        warnings.warn(f"rouge: {note}", stacklevel=2)
    wanted = options.membership
    members: list[str] = []
    nonmembers: list[str] = []
    if wanted.nonmember is not None:
        nonmembers = read_documents(wanted.nonmember, "membership.nonmember")
        if wanted.member is None:
            members = rebuilt_members(forget, wanted.tasks)
        else:
            members = read_documents(wanted.member, "membership.member")
        if both := set(members) & set(nonmembers):
            first = next(text for text in members if text in both)
            raise InputError(
                f"--membership.nonmember: {len(both)} documents are members as well, which no attack can tell apart; "
                f"the first is {first!r:.80}"
            )
    elif wanted.member is not None or wanted.tasks is not None:
        raise InputError("--membership.nonmember: needed with --membership.member or --membership.tasks, got none")
    return EvaluationInputs(
        forget, retain, members, nonmembers, read_subjects(options.choice), read_truth_rows(options.truth)
    )


def check_groups(records: list[Record], name: str) -> None:
    """Raise InputError unless every row has a task and a kind that it can be scored by."""
    for number, record in enumerate(records, start=1):
        if not record.task:
            raise InputError(
                f"row {number}: no task: give a field 'task', or columns.task; got id {record.id!r:.80}", name
            )
        if record.kind not in ("sc", "qa"):
            raise InputError(
                f"row {number}: no kind: give a field 'kind' (sc or qa), an id like 12sc1, or columns.kind (=qa stands "
                f"for all rows); got id {record.id!r:.80}, kind {record.kind!r:.60}",
                name,
            )
