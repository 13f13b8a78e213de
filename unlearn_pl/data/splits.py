"""The splits that a loss term may read: the rows of a set, and the same inputs with other answers."""

from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from unlearn_pl.data.encoding import Encoded, Encoding, encode_record
from unlearn_pl.data.records import Record, Split
from unlearn_pl.data.spans import token_weights
from unlearn_pl.errors import InputError

SIDES: tuple[Split, Split] = ("forget", "retain")
# By set: the split of its inputs with the answers of the field ``alternate``.
ALTERNATES: dict[Split, Split] = {"forget": "alternate", "retain": "retain_alternate"}


def side_of(split: Split) -> Split:
    """The set that a split's inputs are from; another's split is itself."""
    return next((side for side, other in ALTERNATES.items() if other == split), split)


def encode_splits(
    side: Split, records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, encoding: Encoding
) -> dict[Split, list[Encoded]]:
    """The splits of one set (``forget`` or ``retain``): its rows and, if each has an alternate answer, those.

    Raises InputError if a row is left without prompt or answer.
    """
    splits = {side: [encode_weighted(record, tokenizer, encoding, side) for record in records]}
    if all(record.alternate is not None for record in records):
        splits[ALTERNATES[side]] = [encode_alternate(record, tokenizer, encoding, side) for record in records]
    return splits


def encode_weighted(record: Record, tokenizer: PreTrainedTokenizerBase, encoding: Encoding, side: Split) -> Encoded:
    """A row with the weights of its answer's tokens, where the data give any."""
    row = encode_record(record, tokenizer, encoding, forget=side == "forget")
    if not record.answer_weights:
        return row
    answer = row.input_ids[row.answer_start :]
    return replace(row, token_weights=token_weights(answer, record.output, record.answer_weights, tokenizer))


def encode_alternate(record: Record, tokenizer: PreTrainedTokenizerBase, encoding: Encoding, side: Split) -> Encoded:
    """A row's input with its alternate answer, which always ends with EOS: it is there to be learned."""
    assert record.alternate is not None
    try:
        return encode_record(replace(record, output=record.alternate), tokenizer, encoding, forget=False)
    except InputError as error:
        raise InputError(f"the alternate answer of {error.reason}", side) from error
