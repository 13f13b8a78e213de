"""What an evaluation reads, checked before a model is loaded."""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

from unlearn_pl.data.readers import read_documents
from unlearn_pl.data.records import Record
from unlearn_pl.errors import InputError, within
from unlearn_pl.evaluation.membership import Membership
from unlearn_pl.evaluation.options import EvaluationOptions
from unlearn_pl.evaluation.truth import TruthRow, read_truth_rows
from unlearn_pl.hashing import source_hash
from unlearn_pl.tasks.base import Benchmark, RowSet, documents_of
from unlearn_pl.tasks.checked import checked_sets
from unlearn_pl.tasks.lume import Lume
from unlearn_pl.tasks.mmlu import Subject, read_subjects


@dataclass(frozen=True)
class EvaluationData:
    """The rows that the model had to forget and those it had to keep, in the form of LUME."""

    forget: str | None = None
    """Forget set: a file, or whatever else `fit` reads its data from."""
    retain: str | None = None
    """Retain set, likewise."""
    documents_per_task: int | None = None
    """Only the first documents of each task in each set, with all their rows; at least 1. All without it."""
    columns: dict[str, str] | None = None
    """Field of a row -> column of the source, where they differ: `{input: question, output: answer}`."""

    def benchmark(self) -> Lume:
        """The benchmark of these rows. Raises InputError if one of the two sets is missing."""
        if self.forget is None or self.retain is None:
            name = "forget" if self.forget is None else "retain"
            raise InputError("needed, like the other set: rows to be forgotten, and rows to be kept", name)
        return Lume(self.forget, self.retain, documents_per_task=self.documents_per_task, columns=self.columns)


@dataclass(frozen=True, kw_only=True)
class EvaluationInputs:
    """Everything an evaluation reads, read and checked before a model is loaded."""

    benchmark: Benchmark
    sets: Sequence[RowSet]
    """The benchmark's sets."""
    members: Sequence[str] = ()
    """Empty, like ``nonmembers``, if there is no attack."""
    nonmembers: Sequence[str] = ()
    subjects: Sequence[Subject] = ()
    truth: Mapping[str, Sequence[TruthRow]] = field(default_factory=dict)
    """Name of a set -> rows; only sets that have some."""

    @property
    def rows(self) -> list[tuple[RowSet, Record]]:
        """(set, row) of every row that the model is asked, in the order of the sets."""
        return [(one, row) for one in self.sets for row in one.rows]


def read_inputs(data: Benchmark | EvaluationData, options: EvaluationOptions) -> EvaluationInputs:
    """Read and check all that the options name. Raises InputError, with file and row, on what cannot be used."""
    with within("data") if isinstance(data, EvaluationData) else nullcontext():
        benchmark = data.benchmark() if isinstance(data, EvaluationData) else data
        if not isinstance(benchmark, Benchmark):
            got = f"the class {data.__name__}" if isinstance(data, type) else type(data).__name__
            raise InputError(f"must be a benchmark such as Lume(forget, retain), got {got}", "data")
        sets = checked_sets(benchmark)
    inputs = EvaluationInputs(benchmark=benchmark, sets=sets)
    for note in benchmark.notes(inputs.rows):
        warnings.warn(f"scores: {note}", stacklevel=2)
    members, nonmembers = read_sides(benchmark, sets, options.membership)
    options.check_documents(nonmembers)
    with within("choice"):
        subjects = read_subjects(options.choice.folder, options.choice.shots, options.choice.limit)
    return EvaluationInputs(
        benchmark=benchmark,
        sets=sets,
        members=members,
        nonmembers=nonmembers,
        subjects=subjects,
        truth=read_truth_rows(options.truth),
    )


def read_sides(benchmark: Benchmark, sets: Sequence[RowSet], wanted: Membership) -> tuple[Sequence[str], Sequence[str]]:
    """Members and non-members of the membership attacks: as the options name them, or else as the benchmark has them.

    Both are empty without non-members. Raises InputError on what cannot be used.
    """
    if wanted.nonmember is not None:
        nonmembers: Sequence[str] = read_documents(wanted.nonmember, "membership.nonmember")
    else:
        nonmembers = documents_of(sets, "nonmember")
    if not nonmembers:
        if wanted.member is not None or wanted.tasks is not None:
            raise InputError("needed with membership.member or membership.tasks, got none", "membership.nonmember")
        return [], []
    if wanted.member is not None:
        members: Sequence[str] = read_documents(wanted.member, "membership.member")
    else:
        members = benchmark.members(sets, wanted.tasks)
    if both := set(members) & set(nonmembers):
        first = next(text for text in members if text in both)
        raise InputError(
            f"{len(both)} documents are members as well, which no attack can tell apart; the first is {first!r:.80}",
            "membership.nonmember",
        )
    return members, nonmembers


def source_hashes(inputs: EvaluationInputs, options: EvaluationOptions) -> dict[str, str | None]:
    """SHA-256 of each source: of its file or folder, or of what was read if it is neither; None if there is none."""
    named = inputs.benchmark.sources()
    sources: dict[str, tuple[str | None, Sequence[Any]]] = {
        one.name: (named.get(one.name, ""), [*map(asdict, one.rows), *one.documents]) for one in inputs.sets
    }
    sources |= {
        "member": (options.membership.member, inputs.members),
        "nonmember": (options.membership.nonmember, inputs.nonmembers),
        "choice": (options.choice.folder, []),
        **{
            f"truth_{split}": (path, [])
            for split, path in (("forget", options.truth.forget), ("retain", options.truth.retain))
            if path
        },
    }
    return {name: None if source is None else source_hash(source, read) for name, (source, read) in sources.items()}
