"""All measurements of one model: generation on forget and retain rows, membership, multiple choice, their scores."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from unlearn_pl.data.readers import read_documents, read_split
from unlearn_pl.data.records import Record
from unlearn_pl.errors import InputError
from unlearn_pl.evaluation.choice import Choice, Subject, answer_choices, read_subjects
from unlearn_pl.evaluation.generation import Generation, generate_greedy
from unlearn_pl.evaluation.membership import Membership, document_losses, rebuilt_members
from unlearn_pl.evaluation.ranks import Progress
from unlearn_pl.evaluation.scores import (
    aggregate,
    area_under_curve,
    group_scores,
    membership_score,
    row_score,
    task_aggregate,
    terms_of,
)
from unlearn_pl.evaluation.semeval import official_results
from unlearn_pl.files import write_json, write_json_lines


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
    """Documents of the membership attack."""
    choice: Choice = field(default_factory=Choice)
    """Multiple-choice questions."""
    generation: Generation = field(default_factory=Generation)
    """Greedy generation."""
    minimum_mmlu: float | None = None
    """A model is eligible if its multiple-choice accuracy is above this, in [0, 1]; officially 0.371 for the 7B model,
    75 % of what it had before. Not judged without it."""

    def __post_init__(self) -> None:
        if self.minimum_mmlu is not None and not 0 <= self.minimum_mmlu <= 1:
            raise InputError(f"--minimum_mmlu: must be in [0, 1], got {self.minimum_mmlu}")


@dataclass(frozen=True)
class EvaluationInputs:
    """Everything an evaluation reads, read and checked before a model is loaded."""

    forget: list[Record]
    retain: list[Record]
    members: list[str]
    """Empty, like ``nonmembers``, if there is no attack."""
    nonmembers: list[str]
    subjects: list[Subject]

    @property
    def split_records(self) -> list[tuple[str, Record]]:
        """(split, record) of every row, forget before retain."""
        return [("forget", record) for record in self.forget] + [("retain", record) for record in self.retain]


@dataclass(frozen=True)
class Evaluation:
    """``results`` holds the scores by name, ``samples`` one entry a row, in the order of the data."""

    results: dict[str, Any]
    samples: list[dict[str, Any]]


def read_inputs(data: EvaluationData, options: EvaluationOptions) -> EvaluationInputs:
    """Read and check all that the options name. Raises InputError, with file and row, on what cannot be used."""
    forget, retain = read_split(data.forget, data.retain, data.columns, data.documents_per_task)
    wanted = options.membership
    members: list[str] = []
    nonmembers: list[str] = []
    if wanted.nonmember is not None:
        nonmembers = read_documents(wanted.nonmember, "--membership.nonmember")
        if wanted.member is None:
            members = rebuilt_members(forget, wanted.tasks)
        else:
            members = read_documents(wanted.member, "--membership.member")
    elif wanted.member is not None or wanted.tasks is not None:
        raise InputError("--membership.nonmember: needed with --membership.member or --membership.tasks, got none")
    return EvaluationInputs(forget, retain, members, nonmembers, read_subjects(options.choice))


def evaluate_model(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    inputs: EvaluationInputs,
    options: EvaluationOptions | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure ``model`` on ``inputs`` (see ``read_inputs``); its train or eval mode is as before afterwards.

    Keys of the results: ``task_aggregate, membership_auc, membership_score, mmlu, aggregate`` in [0, 1] (None if not
    measured), ``eligible`` (None if not judged), ``terms``, ``counts`` (what each number was computed from), ``choice``
    (accuracy by subject, or None) and ``semeval`` (the official key names). Higher is better but for
    ``membership_auc``, whose best is one half.

    Under several processes all must call this; each does a part and all return the same.
    """
    options = options or EvaluationOptions()
    samples = generate_samples(model, tokenizer, inputs, options.generation, progress)
    groups = group_scores(samples)
    auc = attack(model, tokenizer, inputs, options.membership, progress)
    choice = answer_choices(model, tokenizer, inputs.subjects, options.choice, progress) if inputs.subjects else None
    results = summary(groups, auc, choice, options.minimum_mmlu)
    results["counts"] |= {"member": len(inputs.members), "nonmember": len(inputs.nonmembers)}
    return Evaluation(results, samples)


def generate_samples(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    inputs: EvaluationInputs,
    generation: Generation,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """One entry a row: ``id, split, task, kind, prompt, expected, generated, score``."""
    rows = inputs.split_records
    prompts = [record.input for _, record in rows]
    texts = generate_greedy(model, tokenizer, prompts, generation.max_new_tokens, generation.batch_size, progress)
    return [
        {
            "id": record.id,
            "split": split,
            "task": record.task,
            "kind": record.kind,
            "prompt": record.input,
            "expected": record.output,
            "generated": text,
            "score": row_score(record.kind, record.output, text),
        }
        for (split, record), text in zip(rows, texts, strict=True)
    ]


def attack(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    inputs: EvaluationInputs,
    membership: Membership,
    progress: Progress | None = None,
) -> float | None:
    """AUC of the loss attack (a low loss speaks for membership), None without non-members."""
    if not inputs.nonmembers:
        return None
    documents = inputs.members + inputs.nonmembers
    scores = [-loss for loss in document_losses(model, tokenizer, documents, membership.batch_size, progress)]
    return area_under_curve(scores[: len(inputs.members)], scores[len(inputs.members) :])


def summary(
    groups: dict[str, list[float]], auc: float | None, choice: dict[str, Any] | None, minimum_mmlu: float | None
) -> dict[str, Any]:
    """The results of ``evaluate_model`` from the row scores by term, the AUC and the multiple-choice accuracies."""
    terms = terms_of(groups)
    task = task_aggregate(list(terms.values()))
    membership = None if auc is None else membership_score(auc)
    mmlu = None if choice is None else choice["average"]
    results: dict[str, Any] = {
        "task_aggregate": task,
        "membership_auc": auc,
        "membership_score": membership,
        "mmlu": mmlu,
        "aggregate": aggregate(task, membership, mmlu),
        "eligible": None if mmlu is None or minimum_mmlu is None else mmlu > minimum_mmlu,
        "terms": terms,
        "counts": {name: len(values) for name, values in groups.items()}
        | {"questions": choice["questions"] if choice else 0},
        "choice": choice,
    }
    return results | {"semeval": official_results(results, groups)}


def write_results(
    folder: str | Path, results: dict[str, Any], samples: Iterable[dict[str, Any]], provenance: dict[str, Any]
) -> None:
    """Write ``results.json`` (the scores, and ``provenance`` under that key) and ``samples.jsonl`` (one row a line).

    The same input gives the same bytes. ``results.json`` comes last, so where it is, the evaluation is complete.
    """
    write_json_lines(Path(folder) / "samples.jsonl", samples)
    write_json(Path(folder) / "results.json", results | {"provenance": provenance})
