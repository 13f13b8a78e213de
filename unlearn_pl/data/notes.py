"""What a user should know of encoded rows: that some were cut, hold unknown characters, or are never seen."""

from collections.abc import Iterator, Sequence

from transformers import PreTrainedTokenizerBase

from unlearn_pl.data.batch import Pairs
from unlearn_pl.data.encoding import Encoded, holds_unknown, is_unknown
from unlearn_pl.data.splits import SIDES


def notes(pairs: Pairs, n_unseen: int, max_length: int, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """One line for each that applies; ``n_unseen`` is the number of retain rows that no epoch visits."""
    sides, total = [pairs.splits[side] for side in SIDES], pairs.n_retain
    cut = [sum(row.truncated for row in rows) for rows in sides]
    if any(cut):
        counts = f"{cut[0]} of {len(pairs)} forget rows and {cut[1]} of {total} retain rows"
        yield f"max_length {max_length}: {counts} were longer and have been cut"
    yield from unknown_notes([row for rows in sides for row in rows], tokenizer)
    if n_unseen:
        reason = f"there are {len(pairs)} forget rows; pairing shuffled sees all"
        yield f"pairing paired: {n_unseen} of {total} retain rows are never seen, since {reason}"


def unknown_notes(rows: Sequence[Encoded], tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """How many rows hold what the tokenizer has no token for, if any does."""
    partly = sum(holds_unknown(row.input_ids, tokenizer) for row in rows)
    wholly = sum(is_unknown(row.input_ids[row.answer_start :], tokenizer) for row in rows)
    if partly:
        counts = f"{partly} of {len(rows)} rows hold characters that it does not know, in {wholly} of them"
        yield f"tokenizer: {counts} the answer is nothing else: they train on the unknown token"
