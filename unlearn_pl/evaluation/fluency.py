"""Perplexity of generated texts under the model as it was before: a broken model writes what no model would."""

import math
import warnings
from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedTokenizerBase

from unlearn_pl.data.encoding import decoded_ids, start_ids
from unlearn_pl.evaluation.request import Request
from unlearn_pl.inference.batches import Work
from unlearn_pl.inference.likelihood import recall_answers
from unlearn_pl.inference.model import Network
from unlearn_pl.inference.rows import evaluating, position_limit
from unlearn_pl.metrics.metric import Metric, was_found


def perplexities(
    base: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    texts: Sequence[str],
    batch_size: int,
    work: Work | None = None,
) -> list[float | None]:
    """exp of the mean NLL of each text's tokens after its prompt under ``base``; None for a text without a token.

    The tokens are those that the tokenizer makes of the text, which may be more than were generated (a byte that is no
    character becomes three). Of a text that exceeds the positions of ``base`` only what fits counts, with a warning;
    None if its prompt leaves no room.
    """
    rows = [start_ids(prompt, tokenizer) for prompt in prompts]
    answers = [decoded_ids(text, tokenizer) for text in texts]
    if (limit := position_limit(base)) is not None:
        room = [max(0, limit - len(row)) for row in rows]
        if long := sum(len(answer) > most for answer, most in zip(answers, room, strict=True)):
            what = f"{long} of {len(texts)} texts exceed the base model's {limit} positions"
            warnings.warn(f"perplexity: {what}; only what fits of them counts", stacklevel=2)
        answers = [answer[:most] for answer, most in zip(answers, room, strict=True)]
    written = [index for index, answer in enumerate(answers) if answer]
    with evaluating(base):
        found = recall_answers(
            Network(base),
            [rows[index] for index in written],
            [answers[index] for index in written],
            batch_size,
            work,
            "fluency, rows",
        )
    values = dict(zip(written, (perplexity(recall.logprob) for recall in found), strict=True))
    return [values.get(index) for index in range(len(texts))]


def perplexity(logprob: float) -> float | None:
    """exp(-mean log probability), at most e^600; None where a broken model gives no probability (NaN)."""
    return None if math.isnan(logprob) else math.exp(min(-logprob, 600.0))


def ask(request: Request) -> list[float | None]:
    """The perplexity of each text under the base model."""
    assert request.base is not None
    prompts, texts = [row.prompt for row in request.samples], [row.text for row in request.samples]
    with request.base() as original:
        return perplexities(original, request.tokenizer, prompts, texts, request.batch_size, request.work)


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
