"""All measurements of one model: generation on forget and retain rows, membership, multiple choice, and the rest."""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from unlearn_pl.data.records import Record
from unlearn_pl.evaluation.choice import answer_choices
from unlearn_pl.evaluation.fitting import Fitting, row_notes, row_obstacles, shared_limit
from unlearn_pl.evaluation.fluency import perplexities
from unlearn_pl.evaluation.inputs import EvaluationInputs, EvaluationOptions
from unlearn_pl.evaluation.membership import document_attacks, document_losses
from unlearn_pl.evaluation.retrained import Retrained
from unlearn_pl.evaluation.summary import Measured, summary
from unlearn_pl.evaluation.truth import answer_logprobs
from unlearn_pl.files import write_json, write_json_lines
from unlearn_pl.inference.batches import Work
from unlearn_pl.inference.generation import Answer, Generation, Prompt, generate
from unlearn_pl.inference.likelihood import Recall
from unlearn_pl.inference.sampling import Sampling, sample_answers
from unlearn_pl.metrics.leak_at_k import leak_at_k
from unlearn_pl.metrics.leakage import document_frequencies
from unlearn_pl.metrics.sample import Sample
from unlearn_pl.metrics.scores import row_score
from unlearn_pl.metrics.table import row_scores

Base = Callable[[], AbstractContextManager[nn.Module]]
"""Lends the model as it was before unlearning."""

KS = (1, 4, 16)
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
    if "fluency" in options.families and base is not None:
        samples = with_perplexities(samples, tokenizer, base, options.generation.batch_size, work)
    if "sampling" in options.families and options.sampling.samples:
        samples = with_leak_at_k(samples, model, tokenizer, options.sampling, work)
    truth = {}
    if "truth" in options.families:
        truth = {
            split: answer_logprobs(model, tokenizer, rows, options.truth.batch_size, work)
            for split, rows in inputs.truth.items()
        }
    samples = with_row_scores(samples, options)
    measured = Measured(samples, attacks, inputs.members, inputs.nonmembers, choice, truth)
    results = summary(measured, inputs, options, retrained)
    results["notes"] = [*left_out, *results["notes"]]
    return Evaluation(results, samples)


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


def _with_text(samples: Sequence[Sample]) -> dict[int, tuple[Sample, str]]:
    """Place among the samples -> sample and its text, of those that have one."""
    return {place: (one, one.generated) for place, one in enumerate(samples) if one.generated is not None}


def _replaced(samples: Sequence[Sample], changed: Mapping[int, Sample]) -> list[Sample]:
    return [changed.get(place, sample) for place, sample in enumerate(samples)]


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


def with_perplexities(
    samples: Sequence[Sample],
    tokenizer: PreTrainedTokenizerBase,
    base: Base,
    batch_size: int,
    work: Work | None = None,
) -> list[Sample]:
    """``samples`` with the ``perplexity`` of their texts under the base model."""
    spoken = _with_text(samples)
    prompts, texts = [one.prompt for one, _ in spoken.values()], [text for _, text in spoken.values()]
    with base() as original:
        found = perplexities(original, tokenizer, prompts, texts, batch_size, work)
    changed = {
        place: replace(one, scores={**one.scores, "perplexity": value})
        for (place, (one, _)), value in zip(spoken.items(), found, strict=True)
    }
    return _replaced(samples, changed)


def with_leak_at_k(
    samples: Sequence[Sample],
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    options: Sampling,
    work: Work | None = None,
) -> list[Sample]:
    """``samples`` with texts drawn at random and, for the k that they reach, ``leak_at_<k>`` of their row scores."""
    spoken = _with_text(samples)
    drawn = sample_answers(model, tokenizer, [one.prompt for one, _ in spoken.values()], options, work)
    changed = {}
    for (place, (one, _)), texts in zip(spoken.items(), drawn, strict=True):
        found = [row_score(one.kind, one.expected, text) for text in texts]
        scores = [score for score in found if score is not None]  # all of a row, or none
        leaks = {f"leak_at_{k}": leak_at_k(scores, k) if scores else None for k in KS if k <= len(texts)}
        changed[place] = replace(one, sampled=tuple(texts), scores={**one.scores, **leaks})
    return _replaced(samples, changed)


def with_row_scores(samples: Sequence[Sample], options: EvaluationOptions) -> list[Sample]:
    """``samples`` with the scores of ``metrics.row_scores``."""
    frequencies = document_frequencies(sample.expected for sample in samples)
    changed = {
        place: replace(one, scores={**one.scores, **row_scores(one, options.families, frequencies, len(samples))})
        for place, (one, _) in _with_text(samples).items()
    }
    return _replaced(samples, changed)


def write_results(
    folder: str | Path, results: dict[str, Any], samples: Iterable[Sample], provenance: dict[str, Any]
) -> None:
    """Write ``results.json`` (the scores, and ``provenance`` under that key) and ``samples.jsonl`` (one row a line).

    The same input gives the same bytes. ``results.json`` comes last, so where it is, the evaluation is complete.
    """
    write_json_lines(Path(folder) / "samples.jsonl", (sample.to_json() for sample in samples))
    write_json(Path(folder) / "results.json", results | {"provenance": provenance})
