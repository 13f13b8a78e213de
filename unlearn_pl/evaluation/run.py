"""All measurements of one model: generation on forget and retain rows, membership, multiple choice, and the rest."""

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from torch import nn
from transformers import PreTrainedTokenizerBase

from unlearn_pl.data.records import Record
from unlearn_pl.evaluation.choice import answer_choices
from unlearn_pl.evaluation.fitting import Fitting, row_notes, row_obstacles, shared_limit
from unlearn_pl.evaluation.inputs import EvaluationInputs, EvaluationOptions
from unlearn_pl.evaluation.membership import document_attacks, document_losses
from unlearn_pl.evaluation.request import Base, Request, answered
from unlearn_pl.evaluation.retrained import Retrained
from unlearn_pl.evaluation.summary import results_of
from unlearn_pl.evaluation.table import METRICS
from unlearn_pl.evaluation.truth import answer_logprobs
from unlearn_pl.files import write_json, write_json_lines
from unlearn_pl.inference.batches import Work
from unlearn_pl.inference.generation import Answer, Generation, Prompt, generate
from unlearn_pl.inference.likelihood import Recall
from unlearn_pl.inference.sampling import Sampling, sample_answers
from unlearn_pl.metrics.measured import Measured
from unlearn_pl.metrics.metric import with_scores
from unlearn_pl.metrics.sample import Role, Sample
from unlearn_pl.metrics.scores import row_score
from unlearn_pl.metrics.table import chosen

UNKNOWN = ("probability", "exact_memorization", "extraction_strength")
"""What says nothing of a row whose probability is NaN."""


@dataclass(frozen=True)
class Evaluation:
    """``results`` holds the scores by name, ``samples`` one entry a row, in the order of the data."""

    results: dict[str, Any]
    samples: list[Sample]


def evaluate_model(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    inputs: EvaluationInputs,
    options: EvaluationOptions | None = None,
    work: Work | None = None,
    base: Base | None = None,
    retrained: Retrained | None = None,
) -> Evaluation:
    """Measure ``model`` on ``inputs`` (see ``read_inputs``); its train or eval mode is as before afterwards.

    Keys of the results: ``task_aggregate, membership_auc, membership_score, mmlu, aggregate`` in [0, 1] (None if not
    measured), ``eligible`` (None if not judged), ``terms``, ``counts`` (what each number was computed from), ``choice``
    (accuracy by subject, or None), ``scores`` (every metric with interval, direction and range), ``truth`` (log
    probabilities of right and wrong answers), ``notes`` (what was left out, and why) and ``semeval`` (the official key
    names). ``base`` is needed for perplexity and the reference attack, ``retrained`` for
    forget quality.

    What cannot be measured (a row, document or question beyond the model's positions, say) is found before all else,
    left out with a warning and told in the results' ``notes``; the scores of such a row are None.

    Under several processes all must call this; each does a part and all return the same.
    """
    options = options or EvaluationOptions()
    inputs, left_out = fitting_inputs(model, tokenizer, inputs, base)
    obstacles = row_obstacles(model, tokenizer, inputs)
    left_out += row_notes(tokenizer, inputs, obstacles)
    for note in left_out:
        warnings.warn(note, stacklevel=2)
    samples = generate_samples(model, tokenizer, inputs, options.generation, work, obstacles)
    attacks = run_attacks(model, tokenizer, inputs, options, work, base)
    choice = answer_choices(model, tokenizer, inputs.subjects, options.choice, work) if inputs.subjects else None
    if "sampling" in options.families and options.sampling.samples:
        samples = with_sampled(samples, model, tokenizer, options.sampling, work)
    metrics = chosen(METRICS, options.metrics)
    spoken = [sample for sample in samples if sample.generated is not None]
    request = Request(
        model=model, tokenizer=tokenizer, samples=spoken, base=base, batch_size=options.generation.batch_size, work=work
    )
    samples, found = answered(metrics, samples, request)
    truth = {}
    if "truth" in options.families:
        truth = {
            split: answer_logprobs(model, tokenizer, rows, options.truth.batch_size, work)
            for split, rows in inputs.truth.items()
        }
    measured = Measured(
        samples=with_scores(samples, metrics),
        attacks=attacks,
        members=inputs.members,
        nonmembers=inputs.nonmembers,
        choice=choice,
        truth=truth,
        definition=options.truth.definition,
        retrained=retrained,
        found=found,
        resamples=options.resamples,
    )
    results = results_of(measured, metrics, options)
    results["notes"] = [*left_out, *results["notes"]]
    return Evaluation(results, list(measured.samples))


def fitting_inputs(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, inputs: EvaluationInputs, base: Base | None = None
) -> tuple[EvaluationInputs, list[str]]:
    """``inputs`` without the documents, questions and truth rows that cannot be measured, and notes of these."""
    limit = shared_limit(model)
    if base is not None:
        with base() as original:
            limit = shared_limit(model, original)
    fitting = Fitting(tokenizer, limit)
    return fitting.inputs(inputs), fitting.notes


def generate_samples(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    inputs: EvaluationInputs,
    generation: Generation,
    work: Work | None = None,
    obstacles: Sequence[str | None] | None = None,
) -> list[Sample]:
    """A sample of each row; one with an obstacle (see ``row_obstacles``) has no text."""
    rows = inputs.split_records
    open_rows = [index for index in range(len(rows)) if obstacles is None or obstacles[index] is None]
    prompts = [Prompt.of(rows[index][1]) for index in open_rows]
    answers = dict(zip(open_rows, generate(model, tokenizer, prompts, generation, work), strict=True))
    return [_sample(split, record, answers.get(index)) for index, (split, record) in enumerate(rows)]


def _sample(split: str, record: Record, answer: Answer | None) -> Sample:
    row = Sample(
        id=record.id,
        document=record.document_id,
        split=split,
        role=cast(Role, split),
        completion=record.kind == "sc",
        task=record.task,
        kind=record.kind,
        prompt=record.input,
        expected=record.output,
    )
    if answer is None:
        return row
    return replace(
        row,
        generated=answer.text,
        score=row_score(record.kind, record.output, answer.text),
        tokens=answer.tokens,
        ended=answer.ended,
        cut=answer.cut,
        recall=_plain(answer.recall),
    )


def _plain(recall: Recall | None) -> dict[str, Any] | None:
    """``recall`` as JSON can hold it, which has no NaN; what a broken model has no probability of says nothing."""
    if recall is None:
        return None
    plain = asdict(recall) | {"logprob": recall.logprob if math.isfinite(recall.logprob) else None}
    return plain | (dict.fromkeys(UNKNOWN) if math.isnan(recall.logprob) else {})


def run_attacks(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    inputs: EvaluationInputs,
    options: EvaluationOptions,
    work: Work | None = None,
    base: Base | None = None,
) -> dict[str, list[float]]:
    """Attack -> score of each member, then of each non-member; empty without non-members."""
    if not inputs.nonmembers:
        return {}
    documents, size = inputs.members + inputs.nonmembers, options.membership.batch_size
    reference = None
    attacks = options.attacks(reference=base is not None)
    if base is not None and "reference" in attacks:
        with base() as original:
            reference = document_losses(original, tokenizer, documents, size, work, "reference, documents")
    return document_attacks(
        model, tokenizer, documents, attacks, size, reference, work, share=options.membership.min_k_share
    )


def with_sampled(
    samples: Sequence[Sample],
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    options: Sampling,
    work: Work | None = None,
) -> list[Sample]:
    """``samples`` with texts drawn at random, and what these are scored by."""
    spoken = [sample for sample in samples if sample.generated is not None]
    drawn = iter(sample_answers(model, tokenizer, [sample.prompt for sample in spoken], options, work))

    def with_texts(sample: Sample, texts: Sequence[str]) -> Sample:
        scores = tuple(row_score(sample.kind, sample.expected, text) for text in texts)
        return replace(sample, sampled=tuple(texts), sampled_scores=scores)

    return [sample if sample.generated is None else with_texts(sample, next(drawn)) for sample in samples]


def write_results(
    folder: str | Path, results: dict[str, Any], samples: Iterable[Sample], provenance: dict[str, Any]
) -> None:
    """Write ``results.json`` (the scores, and ``provenance`` under that key) and ``samples.jsonl`` (one row a line).

    The same input gives the same bytes. ``results.json`` comes last, so where it is, the evaluation is complete.
    """
    write_json_lines(Path(folder) / "samples.jsonl", (sample.to_json() for sample in samples))
    write_json(Path(folder) / "results.json", results | {"provenance": provenance})
