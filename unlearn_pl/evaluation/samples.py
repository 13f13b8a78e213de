"""What a model answers to a benchmark's rows, as samples."""

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from unlearn_pl.data.records import Record
from unlearn_pl.errors import InputError
from unlearn_pl.evaluation.inputs import EvaluationInputs
from unlearn_pl.inference.generation import Answer, Generation, Prompt
from unlearn_pl.inference.likelihood import Likelihood
from unlearn_pl.inference.model import LanguageModel
from unlearn_pl.inference.sampling import Sampling
from unlearn_pl.metrics.sample import Sample
from unlearn_pl.tasks.base import Benchmark, RowSet
from unlearn_pl.tasks.checked import row_score

UNKNOWN = ("probability", "exact_memorization", "extraction_strength")
"""What says nothing of a row whose probability is NaN."""


def prompt_of(benchmark: Benchmark, row: Record) -> Prompt:
    """A row as the model is asked it. Raises InputError if the benchmark gives no texts."""
    prompt, answer = benchmark.prompt(row), benchmark.answer(row)
    for name, text in (("prompt", prompt), ("answer", answer)):
        if not isinstance(text, str):
            raise InputError(f"{type(benchmark).__name__}.{name} of row {row.id!r:.60} must be text, got {text!r:.60}")
    return Prompt(prompt, answer, benchmark.is_exact(row))


def generate_samples(
    language_model: LanguageModel,
    inputs: EvaluationInputs,
    generation: Generation,
    obstacles: Sequence[str | None] | None = None,
) -> list[Sample]:
    """A sample of each row; one with an obstacle (see ``row_obstacles``) has no text."""
    rows, benchmark = inputs.rows, inputs.benchmark
    open_rows = [index for index in range(len(rows)) if obstacles is None or obstacles[index] is None]
    prompts = [prompt_of(benchmark, rows[index][1]) for index in open_rows]
    answers = dict(zip(open_rows, language_model.generate(prompts, generation), strict=True))
    return [_sample(benchmark, *row, answers.get(index)) for index, row in enumerate(rows)]


def _sample(benchmark: Benchmark, of: RowSet, record: Record, answer: Answer | None) -> Sample:
    row = Sample(
        id=record.id,
        document=record.document_id,
        split=of.name,
        role=of.role,
        task=record.task,
        kind=record.kind,
        prompt=benchmark.prompt(record),
        expected=benchmark.answer(record),
        completion=benchmark.is_completion(record),
    )
    if answer is None:
        return row
    return replace(
        row,
        generated=answer.text,
        score=row_score(benchmark, record, answer.text),
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


def with_sampled(
    samples: Sequence[Sample], language_model: LanguageModel, inputs: EvaluationInputs, options: Sampling
) -> list[Sample]:
    """``samples`` (of all ``inputs.rows``) with texts drawn at random, and what these are scored by."""
    spoken = [sample for sample in samples if sample.generated is not None]
    drawn = iter(language_model.sample([sample.prompt for sample in spoken], options))

    def with_texts(sample: Sample, record: Record, texts: Sequence[str]) -> Sample:
        scores = tuple(row_score(inputs.benchmark, record, text) for text in texts)
        return replace(sample, sampled=tuple(texts), sampled_scores=scores)

    return [
        sample if sample.generated is None else with_texts(sample, record, next(drawn))
        for sample, (_, record) in zip(samples, inputs.rows, strict=True)
    ]
