"""The results of an evaluation: every score with its interval, direction and range."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from unlearn_pl.errors import InputError, one_line
from unlearn_pl.evaluation.options import EvaluationOptions
from unlearn_pl.evaluation.results import Results
from unlearn_pl.metrics.document import documents_of
from unlearn_pl.metrics.measured import Measured
from unlearn_pl.metrics.membership import verdicts
from unlearn_pl.metrics.metric import Metric, scores_of
from unlearn_pl.metrics.roc import membership_score
from unlearn_pl.metrics.sample import Sample
from unlearn_pl.tasks.base import Benchmark, Term
from unlearn_pl.tasks.checked import aggregate_value, task_value

COMPARED = ("forget_quality", "privacy_to_retrained")
"""What a retrained model is measured for."""


@dataclass(frozen=True)
class Summary:
    """The scores of a model, and what a reader must know of them."""

    scores: dict[str, dict[str, Any]]
    """Name -> value, interval, number of rows, direction, range, as JSON. What was not measured is not there; what was,
    and has no value, is there as None."""
    notes: list[str]
    """Why a value is None, a line each."""


def summary(measured: Measured, metrics: Sequence[Metric]) -> Summary:
    """The scores of all ``metrics`` that can be measured, in their order."""
    measurable = [metric for metric in metrics if metric.measurable(measured)]
    scores = {name: metric.entry(score) for metric, name, score in scores_of(measured, measurable)}
    notes = dict.fromkeys(broken_notes(measured.samples))
    notes |= dict.fromkeys(note for metric in measurable for note in metric.notes(measured))
    if measured.retrained is not None:
        missing = [name for name in COMPARED if name not in scores]
        notes |= {f"no {name}: what it needs was not measured here or of the retrained model": None for name in missing}
    return Summary(scores, list(notes))


def broken_notes(samples: Sequence[Sample]) -> list[str]:
    """What a broken model has no probability for."""
    notes = []
    for split in dict.fromkeys(sample.split for sample in samples):
        recalls = [sample.recall for sample in samples if sample.split == split and sample.recall is not None]
        if broken := sum(recall["probability"] is None for recall in recalls):
            notes.append(
                f"broken model: {broken} of {len(recalls)} rows of the {split} set have no probability (NaN); they are "
                "left out of the memorization scores"
            )
    return notes


def results_of(
    measured: Measured, benchmark: Benchmark, metrics: Sequence[Metric], options: EvaluationOptions
) -> Results:
    """The results of ``evaluate``."""
    terms, sides, choice = benchmark.terms(measured.samples), measured.sides, measured.choice
    task, mmlu = task_value(benchmark, terms), None if choice is None else choice["average"]
    auc = sides["loss"].auc if "loss" in sides else None
    membership = None if auc is None else membership_score(auc)
    found = summary(measured, metrics)
    least = options.minimum_mmlu
    results = Results(
        task_aggregate=task,
        membership_auc=auc,
        membership_score=membership,
        mmlu=mmlu,
        aggregate=aggregate_value(benchmark, task, membership, mmlu),
        eligible=None if mmlu is None or least is None else mmlu > least,
        terms={term.name: term.value for term in terms},
        counts=counts(measured, terms),
        choice=None if choice is None else {key: value for key, value in choice.items() if key != "right"},
        scores=found.scores,
        verdicts=verdicts(measured) if "membership" in options.families else {},
        truth=measured.truth,
        notes=found.notes,
        samples=measured.samples,
        documents=documents_of(measured),
    )
    return replace(results, official=official_keys(benchmark, results, terms))


def official_keys(benchmark: Benchmark, results: Results, terms: Sequence[Term]) -> Mapping[str, Any]:
    """What the benchmark adds to ``results``. Raises InputError unless it is JSON under further names."""
    found, what = benchmark.official(results.headline, terms), f"{type(benchmark).__name__}.official"
    taken = {one.name for one in fields(Results)} | {"provenance"}
    if not isinstance(found, Mapping) or not taken.isdisjoint(found):
        same = sorted(taken.intersection(found)) if isinstance(found, Mapping) else type(found).__name__
        raise InputError(f"{what} must be a dictionary of further keys of the results, got {same}")
    try:
        json.dumps(dict(found), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"{what} must be what JSON can hold: {one_line(error)}") from error
    return found


def counts(measured: Measured, terms: Sequence[Term]) -> dict[str, int]:
    """What each number was computed from."""
    found = {term.name: len(term.samples) for term in terms}
    found["questions"] = measured.choice["questions"] if measured.choice else 0
    return found | {"member": len(measured.members), "nonmember": len(measured.nonmembers)}
