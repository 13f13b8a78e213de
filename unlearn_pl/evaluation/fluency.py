"""Perplexity of generated texts under the model as it was before: a broken model writes what no model would."""

import math
from collections.abc import Sequence

from unlearn_pl.evaluation.request import Request
from unlearn_pl.inference.batch_size import BatchSize
from unlearn_pl.inference.model import LanguageModel
from unlearn_pl.metrics.metric import Metric, was_found


def perplexities(
    base: LanguageModel, prompts: Sequence[str], texts: Sequence[str], *, batch_size: BatchSize = 16
) -> list[float | None]:
    """exp of the mean NLL of each text's tokens after its prompt under ``base`` (see ``likelihood_of_generated``);
    None for a text without a token, or a prompt that leaves no room for it."""
    found = base.likelihood_of_generated(prompts, texts, batch_size=batch_size, what="fluency, rows")
    return [None if one is None else perplexity(one.logprob) for one in found]


def perplexity(logprob: float) -> float | None:
    """exp(-mean log probability), at most e^600; None where a broken model gives no probability (NaN)."""
    return None if math.isnan(logprob) else math.exp(min(-logprob, 600.0))


def ask(request: Request) -> list[float | None]:
    """The perplexity of each text under the base model."""
    assert request.base is not None
    prompts, texts = [row.prompt for row in request.samples], [row.text for row in request.samples]
    with request.base() as base:
        return perplexities(base, prompts, texts, batch_size=request.batch_size)


PERPLEXITY = Metric(
    name="perplexity",
    family="fluency",
    formula="exp(NLL of the text after its prompt, base model)",
    better="lower",
    range=">= 1",
    source="own",
    needs=("base",),
    request=ask,
    value=lambda sample, _: sample.found["perplexity"],
    applies=was_found("perplexity"),
)
