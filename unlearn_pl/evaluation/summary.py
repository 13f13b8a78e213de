"""The results of an evaluation: every score with its interval, direction and range."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unlearn_pl.evaluation.inputs import EvaluationOptions
from unlearn_pl.evaluation.retrained import logprobs_as_json
from unlearn_pl.metrics.measured import Measured
from unlearn_pl.metrics.membership import verdicts
from unlearn_pl.metrics.metric import Metric, scores_of
from unlearn_pl.metrics.roc import membership_score
from unlearn_pl.metrics.sample import Sample
from unlearn_pl.metrics.scores import aggregate, grouped, rouge_notes, task_aggregate, terms_of, values_of
from unlearn_pl.tasks.semeval import official_results

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


def results_of(measured: Measured, metrics: Sequence[Metric], options: EvaluationOptions) -> dict[str, Any]:
    """The results of ``evaluate_model``."""
    results = official(measured, options.minimum_mmlu)
    found = summary(measured, metrics)
    rouge = rouge_notes((row.split, row.kind, row.expected) for row in measured.samples)
    return results | {
        "scores": found.scores,
        "verdicts": verdicts(measured) if "membership" in options.families else {},
        "truth": logprobs_as_json(measured.truth),
        "notes": [*rouge, *found.notes],
    }


def official(measured: Measured, minimum_mmlu: float | None) -> dict[str, Any]:
    """The scores of SemEval-2025 Task 4, under short names and under the official ones."""
    groups = grouped(measured.samples)
    values = values_of(groups)
    terms, choice, sides = terms_of(values), measured.choice, measured.sides
    task = task_aggregate(list(terms.values()))
    auc = sides["loss"].auc if "loss" in sides else None
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
        "counts": counts(measured, groups),
        "choice": None if choice is None else {key: value for key, value in choice.items() if key != "right"},
    }
    return results | {"semeval": official_results(results, values)}


def counts(measured: Measured, groups: Mapping[str, Sequence[Sample]]) -> dict[str, int]:
    """What each number was computed from."""
    found = {name: len(group) for name, group in groups.items()}
    found["questions"] = measured.choice["questions"] if measured.choice else 0
    return found | {"member": len(measured.members), "nonmember": len(measured.nonmembers)}
