"""Weights that the data give to parts of an answer: from spans of its characters to its tokens."""

import json
from collections.abc import Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any

from unlearn_pl.errors import InputError

if TYPE_CHECKING:  # rows are read where nobody waits for transformers
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int, float]
# What a tokenizer decodes the bytes of half a character to.
HALF = "\ufffd"


def read_spans(value: Any, answer: str, where: str) -> tuple[Span, ...]:
    """The field ``answer_weights`` of a row: ``[[start, end, weight], ...]`` over the characters of ``answer``, or the
    same as JSON text (a cell of a CSV file). ``where`` opens every message.

    Raises InputError if it is something else, or a span is empty or not within the answer.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise InputError(f"{where}: field 'answer_weights' is not JSON: {value!r:.60}") from None
    if not isinstance(value, list | tuple):
        raise InputError(f"{where}: field 'answer_weights' must be [[start, end, weight], ...], got {value!r:.60}")
    return tuple(read_span(span, answer, where) for span in value)


def read_span(value: Any, answer: str, where: str) -> Span:
    """One span. Raises InputError as ``read_spans`` does."""
    numbers = list(value) if isinstance(value, list | tuple) else []
    if len(numbers) != 3 or not all(type(n) in (int, float) and isfinite(n) for n in numbers):
        raise InputError(f"{where}: a span of 'answer_weights' must be [start, end, weight], got {value!r:.60}")
    start, end, weight = numbers
    if int(start) != start or int(end) != end or not 0 <= start < end <= len(answer):
        places = f"0 <= start < end <= {len(answer)}, the length of the answer"
        raise InputError(f"{where}: a span of 'answer_weights' must have {places}, got {value!r:.60}")
    return int(start), int(end), float(weight)


def token_weights(
    ids: Sequence[int], answer: str, spans: Sequence[Span], tokenizer: "PreTrainedTokenizerBase"
) -> tuple[float, ...]:
    """The weight of each token of an answer: that of the last span that shares a character with it, else 0.

    ``ids`` are the tokens of the answer, with or without the joiner before it, cut at the end or ended by EOS (which
    is no character, so its weight is 0). Where each stands is read off by decoding: token i ends where the text of
    ``ids[:i + 1]`` does, and one that ends within a character belongs to it.
    """
    texts = [
        tokenizer.decode(list(ids[:count]), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for count in range(len(ids) + 1)
    ]
    # the joiner is no character of the answer; some tokenizers drop it when they decode
    ahead = (len(texts[-1]) - len(texts[-1].lstrip())) - (len(answer) - len(answer.lstrip()))
    ends = [len(text.rstrip(HALF)) - ahead for text in texts]
    weights = []
    for token, start, end in zip(ids, ends, ends[1:], strict=False):
        stop = max(end, start + 1)
        covering = [weight for first, last, weight in spans if first < stop and start < last]
        weights.append(0.0 if token in tokenizer.all_special_ids or not covering else covering[-1])
    return tuple(weights)
