"""Perplexity of generated texts under the model as it was before: a broken model writes what no model would."""

import math
from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedTokenizerBase

from unlearn_pl.evaluation.forward import encode_texts, evaluating
from unlearn_pl.evaluation.network import Network
from unlearn_pl.evaluation.ranks import Work
from unlearn_pl.evaluation.recall import recall_answers


def perplexities(
    base: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    texts: Sequence[str],
    batch_size: int,
    work: Work | None = None,
) -> list[float | None]:
    """exp of the mean NLL of each text's tokens after its prompt under ``base``; None for a text without a token."""
    rows = encode_texts(base, tokenizer, prompts, "perplexity: prompt")
    answers = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
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


def perplexity(logprob: float) -> float:
    """exp(-mean log probability), at most e^600; that too where the model gives none (NaN)."""
    return math.exp(min(-logprob, 600.0) if math.isfinite(logprob) else 600.0)
