"""Greedy generation whose text is that of one row at a time, in a fraction of the time.

Prompt and expected answer of a row are read in one forward, which shows how far greedy decoding follows the answer. A
row that goes on from there is continued from the cache of that forward, together with others (continuous batching, Yu
et al. 2022, Orca, OSDI): as rows end, the next are read and take their places.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase
from transformers.cache_utils import DynamicCache

from unlearn_pl.data.encoding import decode_answer
from unlearn_pl.inference.batches import length_sorted_batches, map_batches
from unlearn_pl.inference.decoding import Stop, Texts, continue_batch, continue_read
from unlearn_pl.inference.engine import Engine
from unlearn_pl.inference.generation import Answer, Generation, Row, is_decided
from unlearn_pl.inference.likelihood import Likelihood, read_batch
from unlearn_pl.inference.lines import ReadRow, row_states

# Rows are computed, and kept by an evaluation that can go on after a kill, in pieces of so many batches' worth: the
# last rows of a piece run in a batch that is nearly empty. But there are so many pieces at least, one a process.
PIECE, PIECES = 4, 8
# Rows that `auto` runs together there.
ON_CPU = 32


@dataclass(frozen=True)
class GreedyDecoding:
    """Greedy texts of ``rows``."""

    engine: Engine
    tokenizer: PreTrainedTokenizerBase
    eos: frozenset[int]
    options: Generation
    rows: Sequence[Row]

    def answers(self) -> list[Answer]:
        """The answer of each row. Under several processes each generates a part and all get everything."""
        most = min(PIECE * self.batch_size, len(self.rows) // PIECES)
        pieces = joined_batches(self.batches(), max(most, self.batch_size) if self.joins else 1)
        batches_of = {piece[0][0]: piece for piece in pieces}

        def compute(piece: Sequence[int]) -> list[dict[str, Any]]:
            return Piece(self, batches_of[piece[0]]).results()

        identity: list[Any] = [self.options.stop_decided, self.options.own_config, sorted(self.eos)]
        identity += [[list(row.prompt), list(row.draft), row.budget, row.exact] for row in self.rows]
        flat = [[index for batch in piece for index in batch] for piece in pieces]
        found = map_batches(flat, compute, "generation, rows", self.engine.work, identity)
        return [self.answer(row, **one) for row, one in zip(self.rows, found, strict=True)]

    @cached_property
    def batch_size(self) -> int:
        """Rows that run together at most."""
        reach = max((len(row.prompt) + row.budget for row in self.rows), default=1)
        size = self.engine.rows_together(self.options.batch_size, ON_CPU, reach)
        told = self.engine.work.progress
        if told is not None and self.options.batch_size == "auto" and self.engine.device.type != "cpu":
            told(f"generation.batch_size auto: {size} rows")
        return size

    def batches(self) -> list[list[int]]:
        """The rows in batches that are read in one forward, those with an expected answer first."""
        found = []
        for drafted in (True, False):
            own = [index for index, row in enumerate(self.rows) if bool(row.draft) == drafted]
            lengths = [len(self.rows[index].prompt) + len(self.rows[index].draft) for index in own]
            sorted_batches = length_sorted_batches(lengths, self.batch_size, self.engine.tokens_per_forward)
            found += [[own[place] for place in batch] for batch in sorted_batches]
        return found

    @cached_property
    def joins(self) -> bool:
        """Whether rows may be continued from the cache that they were read into."""
        return self.engine.trial.joins and not self.alone

    @cached_property
    def alone(self) -> bool:
        """Whether each text must be generated token by token from its prompt: where the model's own ``generate`` is to
        be asked, and of single rows in half precision, where nothing else is exact."""
        single = self.batch_size == 1 and torch.finfo(self.engine.causal.dtype).bits < 32
        return single or self.options.own_config

    def started(self, row: Row, read: Likelihood) -> list[int]:
        """The tokens that greedy decoding is known to give a row; none where it is unsure or broken."""
        fast = self.engine.generates_fast(len(row.prompt) + len(row.draft) + 1)
        if read.unsure or read.broken or self.alone or not fast:
            return []
        tokens = [*row.draft[: read.accepted], read.following]
        ends = [place for place, token in enumerate(tokens) if token in self.eos]
        return tokens[: ends[0] + 1] if ends else tokens[: row.budget]

    @property
    def stop(self) -> Stop | None:
        """What tells of a row whether its score is decided; None if such rows go on."""
        return (lambda index, tokens: self.is_decided(self.rows[index], tokens)) if self.options.stop_decided else None

    def is_decided(self, row: Row, tokens: Sequence[int]) -> bool:
        """Whether a row's text can no longer become what it must be."""
        return row.exact is not None and is_decided(row.exact, decode_answer(self.tokenizer, tokens))

    def answer(self, row: Row, tokens: Sequence[int], read: dict[str, Any] | None) -> Answer:
        """The finished answer of a row."""
        ended = tokens[-1] in self.eos
        cut = not ended and len(tokens) < row.budget
        recall = None if read is None else Likelihood(**read)
        return Answer(decode_answer(self.tokenizer, tokens), len(tokens), ended, cut, recall)


class Piece:
    """Some batches of a ``GreedyDecoding``, computed."""

    def __init__(self, decoding: GreedyDecoding, batches: Sequence[Sequence[int]]):
        self.decoding, self.batches = decoding, batches
        self.engine, self.rows, self.options = decoding.engine, decoding.rows, decoding.options
        self.read: dict[int, Likelihood] = {}
        self.texts = Texts({}, [row.budget for row in self.rows], decoding.eos, decoding.stop)

    def results(self) -> list[dict[str, Any]]:
        """Tokens and likelihood of each row, which JSON can hold."""
        if self.decoding.joins:
            continue_read(self.engine, self.reading(), self.decoding.batch_size, self.texts)
        else:  # rows are read by the model's own products, where that is what it takes to be exact
            deque(self.reading(), maxlen=0)
        tokens = self.texts.tokens
        for index in self.texts.unsure:
            tokens[index] = []
        for batch in self.unfinished():
            tokens.update(zip(batch, self.continued(batch), strict=True))
        read = {index: asdict(found) for index, found in self.read.items() if self.rows[index].draft}
        return [{"tokens": tokens[index], "read": read.get(index)} for batch in self.batches for index in batch]

    def reading(self) -> Iterator[ReadRow]:
        """Read the rows, batch by batch; gives those that can be continued from the cache that they were read into."""
        for batch in self.batches:
            rows = [self.rows[index] for index in batch]
            cache = DynamicCache(config=self.engine.causal.config) if self.decoding.joins else None
            if cache is None and not rows[0].draft:
                continue
            read = read_batch(self.engine, [row.prompt for row in rows], [row.draft for row in rows], cache)
            for line, (index, row, found) in enumerate(zip(batch, rows, read, strict=True)):
                self.read[index] = found
                if tokens := self.decoding.started(row, found):
                    self.texts.tokens[index] = tokens
                    if cache is not None and not self.texts.over(index):
                        known = slice(len(row.prompt) + len(tokens) - 1)
                        yield ReadRow(index, tokens[-1], row_states(cache, line, known))

    def unfinished(self) -> list[list[int]]:
        """Batches of the rows that are not over. Where rounding may have chosen a token, the row is one by itself."""
        tokens = self.texts.tokens
        going = [index for batch in self.batches for index in batch]
        going = [index for index in going if not tokens.setdefault(index, []) or not self.texts.over(index)]
        unsure = {index for index, found in self.read.items() if found.unsure} | self.texts.unsure
        together = [index for index in going if index not in unsure]
        lengths = [len(self.rows[index].prompt) + len(tokens[index]) for index in together]
        batches = [[together[n] for n in batch] for batch in length_sorted_batches(lengths, self.decoding.batch_size)]
        return batches + [[index] for index in going if index in unsure]

    def continued(self, batch: Sequence[int]) -> list[list[int]]:
        """All tokens of rows that are not over, from those that they started with."""
        stop = self.decoding.stop
        return continue_batch(
            self.engine,
            [self.rows[index].prompt for index in batch],
            [self.rows[index].budget for index in batch],
            self.decoding.eos,
            started=[self.texts.tokens[index] for index in batch],
            stop=None if stop is None else lambda slot, tokens: stop(batch[slot], tokens),
            own_config=self.options.own_config,
        )


def joined_batches(batches: Sequence[Sequence[int]], rows: int) -> list[list[Sequence[int]]]:
    """Neighbouring batches together, until they have so many rows."""
    pieces: list[list[Sequence[int]]] = []
    for batch in batches:
        if pieces and sum(map(len, pieces[-1])) < rows:
            pieces[-1].append(batch)
        else:
            pieces.append([batch])
    return pieces
