"""Greedy generation whose text is that of one row at a time, in a fraction of the time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from unlearn_pl.data.encoding import decode_answer
from unlearn_pl.errors import InputError
from unlearn_pl.inference.batches import length_sorted_batches, map_batches
from unlearn_pl.inference.decoding import continue_batch
from unlearn_pl.inference.engine import Engine
from unlearn_pl.inference.likelihood import Likelihood, read_answers

# Half of a character that takes several tokens.
UNFINISHED = "\ufffd"


@dataclass(frozen=True)
class Generation:
    """How answers are generated: greedily, from the bare prompt, without a chat template."""

    max_new_tokens: int = 256
    """A row that has not ended by then, or by the end of the model's positions, is cut; at least 1. The official value
    is 256."""
    batch_size: int = 32
    """Rows that are generated together; at least 1. In float32 it changes the speed and never the text. In half
    precision ties between tokens are common and only 1 gives exactly the text of one row at a time."""
    stop_decided: bool = False
    """Stop rows that only the whole answer scores (LUME's questions) as soon as their text can no longer become the
    expected answer: their knowledge score is
    then known to be 0. Such samples say `cut: true`; what else is measured on their text sees only this much of it."""
    own_config: bool = False
    """Let all of the model's generation config act on the text, as in the official script: repetition penalty,
    suppressed and forced tokens, beams and so on. Rows then go one at a time through transformers' own `generate`.
    Without it only the EOS ids count, and a warning names what else there is."""

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"must be at least 1, got {getattr(self, name)}", f"generation.{name}")


@dataclass(frozen=True)
class Prompt:
    """A text to be continued."""

    text: str
    answer: str = ""
    """What is expected after it; it makes the work shorter and never changes what is generated."""
    exact: bool = False
    """Whether only the whole answer scores (see ``Generation.stop_decided``)."""


@dataclass(frozen=True)
class Answer:
    """What the model said to a prompt."""

    text: str
    """Special tokens dropped."""
    tokens: int
    """How many were generated, the end included."""
    ended: bool
    """Whether the model ended it, by an EOS."""
    cut: bool
    """Whether it was stopped since its score was decided."""
    recall: Likelihood | None
    """What one forward over the expected answer showed; None without one."""


@dataclass(frozen=True)
class Row:
    """A prompt as token ids."""

    prompt: Sequence[int]
    budget: int
    """How many tokens its text may have; at least 1."""
    draft: Sequence[int] = ()
    """Tokens of the expected answer."""
    exact: str | None = None
    """What the text must be to score; None if others score too."""


@dataclass(frozen=True)
class GreedyDecoding:
    """Greedy texts of ``rows``: first each expected answer is read in one forward, then the rows that go on from there
    are continued token by token, in batches."""

    engine: Engine
    tokenizer: PreTrainedTokenizerBase
    eos: frozenset[int]
    options: Generation
    rows: Sequence[Row]

    def answers(self) -> list[Answer]:
        """The answer of each row. Under several processes each generates a part and all get everything."""
        read = self.read()
        started = [self.started(row, found) for row, found in zip(self.rows, read, strict=True)]
        continued = self.continued(started, read)
        return [
            self.answer(row, continued.get(index, tokens), found)
            for index, (row, tokens, found) in enumerate(zip(self.rows, started, read, strict=True))
        ]

    def read(self) -> list[Likelihood | None]:
        """The likelihood of each expected answer; None without one."""
        drafted = [index for index, row in enumerate(self.rows) if row.draft]
        prompts, drafts = [self.rows[index].prompt for index in drafted], [self.rows[index].draft for index in drafted]
        found = read_answers(self.engine, prompts, drafts, batch_size=self.options.batch_size)
        by_row = dict(zip(drafted, found, strict=True))
        return [by_row.get(index) for index in range(len(self.rows))]

    def started(self, row: Row, read: Likelihood | None) -> list[int]:
        """The tokens that greedy decoding is known to give a row.

        None where it is unsure or broken, or where the model's own ``generate`` must be asked; none in half precision
        for single rows, where only token by token is exact.
        """
        single = self.options.batch_size == 1 and torch.finfo(self.engine.causal.dtype).bits < 32
        own = self.options.own_config or not self.engine.generates_fast(len(row.prompt) + len(row.draft) + 1)
        if read is None or read.unsure or read.broken or single or own:
            return []
        tokens = [*row.draft[: read.accepted], read.following]
        ends = [place for place, token in enumerate(tokens) if token in self.eos]
        return tokens[: ends[0] + 1] if ends else tokens[: row.budget]

    def continued(self, started: Sequence[list[int]], read: Sequence[Likelihood | None]) -> dict[int, list[int]]:
        """Index -> all tokens of the rows that are not over with those that they ``started`` with."""
        going = [index for index, tokens in enumerate(started) if not self.is_over(self.rows[index], tokens)]
        # A row that must go alone makes a batch of its own: it was unsure when it was read already.
        alone = [index for index in going if (found := read[index]) is not None and found.unsure]
        together = [index for index in going if index not in set(alone)]
        lengths = [len(self.rows[index].prompt) + len(started[index]) for index in together]
        batches = [[together[n] for n in batch] for batch in length_sorted_batches(lengths, self.options.batch_size)]
        batches += [[index] for index in alone]

        def compute(batch: Sequence[int]) -> list[list[int]]:
            rows = [self.rows[index] for index in batch]
            return continue_batch(
                self.engine,
                [row.prompt for row in rows],
                [row.budget for row in rows],
                self.eos,
                started=[started[index] for index in batch],
                stop=(lambda slot, tokens: self.is_decided(rows[slot], tokens)) if self.options.stop_decided else None,
                own_config=self.options.own_config,
            )

        begun = [(self.rows[index], started[index]) for index in going]
        identity: list[Any] = [self.options.stop_decided, self.options.own_config, sorted(self.eos)]
        identity += [[list(row.prompt), tokens, row.budget, row.exact] for row, tokens in begun]
        tokens_of = map_batches(batches, compute, "generation, rows", self.engine.work, identity)
        return dict(zip(sorted(going), tokens_of, strict=True))

    def is_over(self, row: Row, tokens: Sequence[int]) -> bool:
        """Whether nothing can be added to the tokens of a row."""
        ended = bool(tokens) and tokens[-1] in self.eos
        decided = self.options.stop_decided and bool(tokens) and self.is_decided(row, tokens)
        return ended or decided or len(tokens) == row.budget

    def is_decided(self, row: Row, tokens: Sequence[int]) -> bool:
        """Whether a row's text can no longer become what it must be."""
        return row.exact is not None and is_decided(row.exact, decode_answer(self.tokenizer, tokens))

    def answer(self, row: Row, tokens: Sequence[int], read: Likelihood | None) -> Answer:
        """The finished answer of a row."""
        ended = tokens[-1] in self.eos
        cut = not ended and len(tokens) < row.budget
        return Answer(decode_answer(self.tokenizer, tokens), len(tokens), ended, cut, read)


def is_decided(expected: str, begun: str) -> bool:
    """Whether no continuation of ``begun`` is ``expected`` but for case and surrounding space.

    A False may be wrong (the text is then written on), a True never is. Space inside counts for nothing, as decoding
    can drop a space once it knows what follows (" ," and " n't" of tokenizers whose texts are cleaned up).
    """
    return not _plain(expected).startswith(_plain(begun.rstrip(UNFINISHED)))


def _plain(text: str) -> str:
    # str.lower writes a Greek sigma differently at the end of a word, so it is not a function of each character
    return "".join(text.lower().replace("\u03c2", "\u03c3").split())
