"""All measurements of one model: generation on forget and retain rows, membership, multiple choice, and the rest."""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from torch import nn
from transformers import PreTrainedTokenizerBase

from unlearn_pl.data.records import Record
from unlearn_pl.evaluation.choice import answer_choices
from unlearn_pl.evaluation.fitting import Fitting, row_notes, row_obstacles
from unlearn_pl.evaluation.inputs import EvaluationInputs, EvaluationOptions
from unlearn_pl.evaluation.membership import document_attacks, document_losses
from unlearn_pl.evaluation.request import Base, Request, answered
from unlearn_pl.evaluation.retrained import Retrained
from unlearn_pl.evaluation.summary import results_of
from unlearn_pl.evaluation.table import METRICS
from unlearn_pl.evaluation.truth import answer_logprobs
from unlearn_pl.files import write_json, write_json_lines
from unlearn_pl.inference.batches import Work
from unlearn_pl.inference.generation import Answer, Generation, Prompt
from unlearn_pl.inference.likelihood import Likelihood
from unlearn_pl.inference.model import LanguageModel
from unlearn_pl.inference.sampling import Sampling
from unlearn_pl.metrics.measured import Measured
from unlearn_pl.metrics.metric import with_scores
from unlearn_pl.metrics.sample import Role, Sample
from unlearn_pl.metrics.scores import row_score
from unlearn_pl.metrics.table import chosen

Lender = Callable[[], AbstractContextManager[nn.Module]]
"""Lends the model as it was before unlearning."""

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
    base: Lender | None = None,
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
    language_model = LanguageModel(model, tokenizer, work=work)
    before = None if base is None else lending(base, tokenizer, work)
    inputs, left_out = fitting_inputs(language_model, inputs, before)
    obstacles = row_obstacles(language_model, inputs)
    left_out += row_notes(tokenizer, inputs, obstacles)
    for note in left_out:
        warnings.warn(note, stacklevel=2)
    samples = generate_samples(language_model, inputs, options.generation, obstacles)
    attacks = run_attacks(language_model, inputs, options, before)
    choice = None
    if inputs.subjects:
        choice = answer_choices(language_model, inputs.subjects, batch_size=options.choice.batch_size)
    if "sampling" in options.families and options.sampling.samples:
        samples = with_sampled(samples, language_model, options.sampling)
    metrics = chosen(METRICS, options.metrics)
    spoken = [sample for sample in samples if sample.generated is not None]
    batch_size = options.generation.batch_size
    request = Request(language_model=language_model, samples=spoken, base=before, batch_size=batch_size)
    samples, found = answered(metrics, samples, request)
    truth = {}
    if "truth" in options.families:
        truth = {
            split: answer_logprobs(language_model, rows, batch_size=options.truth.batch_size)
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


def lending(base: Lender, tokenizer: PreTrainedTokenizerBase, work: Work | None = None) -> Base:
    """``base`` as one language model, lent again and again."""
    known: list[LanguageModel] = []

    @contextmanager
    def lend() -> Iterator[LanguageModel]:
        with base() as model:
            if not known or known[0].model is not model:
                known[:] = [LanguageModel(model, tokenizer, work=work)]
            yield known[0]

    return lend


def fitting_inputs(
    language_model: LanguageModel, inputs: EvaluationInputs, base: Base | None = None
) -> tuple[EvaluationInputs, list[str]]:
    """``inputs`` without the documents, questions and truth rows that cannot be measured, and notes of these."""
    limits = [language_model.positions]
    if base is not None:
        with base() as original:
            limits.append(original.positions)
    fitting = Fitting(language_model, min((limit for limit in limits if limit is not None), default=None))
    return fitting.inputs(inputs), fitting.notes


def generate_samples(
    language_model: LanguageModel,
    inputs: EvaluationInputs,
    generation: Generation,
    obstacles: Sequence[str | None] | None = None,
) -> list[Sample]:
    """A sample of each row; one with an obstacle (see ``row_obstacles``) has no text."""
    rows = inputs.split_records
    open_rows = [index for index in range(len(rows)) if obstacles is None or obstacles[index] is None]
    answers = language_model.generate([Prompt.of(rows[index][1]) for index in open_rows], generation)
    by_row = dict(zip(open_rows, answers, strict=True))
    return [_sample(split, record, by_row.get(index)) for index, (split, record) in enumerate(rows)]


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


def _plain(recall: Likelihood | None) -> dict[str, Any] | None:
    """``recall`` as JSON can hold it, which has no NaN; what a broken model has no probability of says nothing."""
    if recall is None:
        return None
    plain = asdict(recall) | {"logprob": recall.logprob if math.isfinite(recall.logprob) else None}
    return plain | (dict.fromkeys(UNKNOWN) if math.isnan(recall.logprob) else {})


def run_attacks(
    language_model: LanguageModel, inputs: EvaluationInputs, options: EvaluationOptions, base: Base | None = None
) -> dict[str, list[float]]:
    """Attack -> score of each member, then of each non-member; empty without non-members."""
    if not inputs.nonmembers:
        return {}
    documents, batch_size = inputs.members + inputs.nonmembers, options.membership.batch_size
    reference = None
    attacks = options.attacks(reference=base is not None)
    if base is not None and "reference" in attacks:
        with base() as original:
            reference = document_losses(original, documents, batch_size=batch_size, what="reference, documents")
    share = options.membership.min_k_share
    return document_attacks(language_model, documents, attacks, batch_size=batch_size, reference=reference, share=share)


def with_sampled(samples: Sequence[Sample], language_model: LanguageModel, options: Sampling) -> list[Sample]:
    """``samples`` with texts drawn at random, and what these are scored by."""
    spoken = [sample for sample in samples if sample.generated is not None]
    drawn = iter(language_model.sample([sample.prompt for sample in spoken], options))

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
