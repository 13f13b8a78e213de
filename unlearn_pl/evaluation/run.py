"""All measurements of one model: what it answers, membership, multiple choice, and the rest."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from torch import nn
from transformers import PreTrainedTokenizerBase

from unlearn_pl.errors import InputError
from unlearn_pl.evaluation.choice import answer_choices
from unlearn_pl.evaluation.fitting import Fitting, row_notes, row_obstacles
from unlearn_pl.evaluation.inputs import EvaluationData, EvaluationInputs, read_inputs
from unlearn_pl.evaluation.membership import document_attacks, document_losses
from unlearn_pl.evaluation.options import EvaluationOptions
from unlearn_pl.evaluation.request import Base, Request, answered
from unlearn_pl.evaluation.results import Results
from unlearn_pl.evaluation.retrained import Retrained
from unlearn_pl.evaluation.samples import generate_samples, with_sampled
from unlearn_pl.evaluation.summary import results_of
from unlearn_pl.evaluation.table import metrics_of
from unlearn_pl.evaluation.truth import answer_logprobs
from unlearn_pl.inference.batches import Work
from unlearn_pl.inference.model import LanguageModel
from unlearn_pl.metrics.measured import Measured
from unlearn_pl.metrics.metric import Metric, with_scores
from unlearn_pl.metrics.sample import Sample
from unlearn_pl.metrics.table import chosen
from unlearn_pl.models.lora import without_adapter
from unlearn_pl.tasks.base import Benchmark


def evaluate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    data: Benchmark | EvaluationData | EvaluationInputs,
    options: EvaluationOptions | None = None,
    *,
    reference: nn.Module | None = None,
    retrained: Retrained | None = None,
    work: Work | None = None,
) -> Results:
    """Measure ``model``, with or without an adapter on it; its train or eval mode is as before afterwards.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        data: The benchmark (``Lume(forget, retain)``, or one of your own), or what ``read_inputs`` has read of one.
        options: What is measured beside the benchmark's rows, and how.
        reference: The model as it was before unlearning, for perplexity and the reference attack; with an adapter on
            it, it is taken without.
        retrained: What ``read_retrained`` gives: the results of a model that never saw what had to be forgotten.
        work: Who is told how far it is, and where finished batches are kept.

    What cannot be measured (a row, document or question beyond the model's positions, say) is found before all else,
    left out with a warning and told in the results' ``notes``; the scores of such a row are None. Raises InputError on
    data that cannot be used.

    Under several processes all must call this; each does a part and all return the same.
    """
    options = options or EvaluationOptions()
    if not isinstance(options, EvaluationOptions):
        raise InputError(f"must be EvaluationOptions(...), got {type(options).__name__}", "options")
    language_model = LanguageModel(model, tokenizer, work=work)
    inputs = data if isinstance(data, EvaluationInputs) else read_inputs(data, options)
    base = None if reference is None else lending(reference, tokenizer, work)
    inputs, left_out = fitting_inputs(language_model, inputs, base)
    obstacles = row_obstacles(language_model, inputs)
    left_out += row_notes(tokenizer, inputs, obstacles)
    for note in left_out:
        warnings.warn(note, stacklevel=2)
    metrics = chosen(metrics_of(inputs.benchmark), options.metrics)
    samples = generate_samples(language_model, inputs, options.generation, obstacles)
    measured = measure(language_model, samples, inputs, options, metrics=metrics, base=base)
    results = results_of(replace(measured, retrained=retrained), inputs.benchmark, metrics, options)
    notes = [*left_out, *inputs.benchmark.notes(inputs.rows), *results.notes]
    return replace(results, notes=notes)


def measure(
    language_model: LanguageModel,
    samples: Sequence[Sample],
    inputs: EvaluationInputs,
    options: EvaluationOptions,
    *,
    metrics: Sequence[Metric],
    base: Base | None = None,
) -> Measured:
    """All that is asked of the model beside its answers, which are ``samples``."""
    attacks = run_attacks(language_model, inputs, options, base)
    choice = None
    if inputs.subjects:
        choice = answer_choices(language_model, inputs.subjects, batch_size=options.choice.batch_size)
    if "sampling" in options.families and options.sampling.samples:
        samples = with_sampled(samples, language_model, inputs, options.sampling)
    spoken = [sample for sample in samples if sample.generated is not None]
    batch_size = options.generation.batch_size
    request = Request(language_model=language_model, samples=spoken, base=base, batch_size=batch_size)
    samples, found = answered(metrics, samples, request)
    truth = inputs.truth if "truth" in options.families else {}
    return Measured(
        samples=with_scores(samples, metrics),
        attacks=attacks,
        members=inputs.members,
        nonmembers=inputs.nonmembers,
        choice=choice,
        truth={
            name: answer_logprobs(language_model, rows, batch_size=options.truth.batch_size)
            for name, rows in truth.items()
        },
        definition=options.truth.definition,
        found=found,
        resamples=options.resamples,
    )


def lending(model: nn.Module, tokenizer: PreTrainedTokenizerBase, work: Work | None = None) -> Base:
    """What lends ``model`` as a language model, its adapter off if it has one."""
    language_model = LanguageModel(model, tokenizer, work=work)

    @contextmanager
    def lend() -> Iterator[LanguageModel]:
        with without_adapter(model):
            yield language_model

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


def run_attacks(
    language_model: LanguageModel, inputs: EvaluationInputs, options: EvaluationOptions, base: Base | None = None
) -> dict[str, list[float]]:
    """Attack -> score of each member, then of each non-member; empty without non-members."""
    if not inputs.nonmembers:
        return {}
    documents, batch_size = [*inputs.members, *inputs.nonmembers], options.membership.batch_size
    reference = None
    attacks = options.attacks(reference=base is not None)
    if base is not None and "reference" in attacks:
        with base() as original:
            reference = document_losses(original, documents, batch_size=batch_size, what="reference, documents")
    share = options.membership.min_k_share
    return document_attacks(language_model, documents, attacks, batch_size=batch_size, reference=reference, share=share)
