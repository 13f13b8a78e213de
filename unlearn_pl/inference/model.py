"""A language model asked things: texts, likelihoods, next tokens, scores of tokens."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from operator import ne

from torch import nn
from transformers import PreTrainedTokenizerBase

from unlearn_pl.data.encoding import decoded_ids, encode_pair, is_unknown, start_ids
from unlearn_pl.data.records import BLANK
from unlearn_pl.errors import InputError
from unlearn_pl.inference.batch_size import BatchSize
from unlearn_pl.inference.batches import Work
from unlearn_pl.inference.engine import Engine
from unlearn_pl.inference.forward import evaluating
from unlearn_pl.inference.generation import Answer, Generation, Prompt, Row
from unlearn_pl.inference.greedy import GreedyDecoding
from unlearn_pl.inference.likelihood import Likelihood, read_answers, read_documents
from unlearn_pl.inference.next_token import choose_next
from unlearn_pl.inference.own_generate import eos_ids, warn_of_ignored
from unlearn_pl.inference.sampling import Sampling, draw_texts
from unlearn_pl.inference.token_scores import TokenScores
from unlearn_pl.models.rope import position_limit
from unlearn_pl.models.tokenizer import check_ids, embedding_rows, guarded_ids


class LanguageModel:
    """A causal language model and its tokenizer.

    A request takes many texts, computes them in batches, and gives what each would have got alone. The first one tries
    the model (see ``trial``): what it is not exact in goes row by row, with a warning. The model is in eval mode
    during a request and in its own modes afterwards. Under several processes every one must make the same requests;
    each computes a part and all get everything.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        joiner: str = BLANK,
        work: Work | None = None,
    ):
        """``joiner`` stands between a prompt and its answer (see ``Encoding.joiner``); ``work`` is told how far a
        request is, and keeps its finished batches."""
        if not isinstance(model, nn.Module):
            raise InputError(f"must be a model in memory, got {type(model).__name__}", "model")
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise InputError(f"must be a tokenizer in memory, got {type(tokenizer).__name__}", "tokenizer")
        self.model, self.tokenizer = model, tokenizer
        self.joiner, self.work = joiner, work

    @cached_property
    def _engine(self) -> Engine:
        return Engine(self.model, self.work)

    @contextmanager
    def _asked(self) -> Iterator[Engine]:
        with evaluating(self.model), guarded_ids(self.model, self.tokenizer):
            yield self._engine

    @property
    def positions(self) -> int | None:
        """Tokens that the model was made for; None if its configuration names no limit."""
        return position_limit(self.model)

    def fits(self, tokens: int) -> bool:
        """Whether the model has so many positions."""
        return self.positions is None or tokens <= self.positions

    def length(self, text: str) -> int:
        """Tokens of a text that stands at the beginning."""
        return len(start_ids(text, self.tokenizer))

    def encode(self, prompt: str, answer: str, *, eos: bool = False) -> tuple[list[int], list[int]]:
        """Token ids of a prompt and of the answer after it (see ``encode_pair``), with ``eos`` the end token too.

        Raises InputError if there is no end token.
        """
        if eos and self.tokenizer.eos_token_id is None:
            raise InputError("the tokenizer has no end token", "eos")
        first, rest = encode_pair(prompt, answer, self.tokenizer, self.joiner)
        return first, [*rest, self.tokenizer.eos_token_id] if eos and rest else rest

    def obstacle(self, prompt: Prompt) -> str | None:
        """Why ``generate`` cannot measure a prompt, None if it can: its expected answer must be sayable."""
        row, answer = self.encode(prompt.text, prompt.answer)
        needed = len(row) + max(1, len(answer))
        if not row:
            return f"no token is left of the text {prompt.text!r:.60}"
        if not self.fits(needed):
            size = f"{len(row)} tokens and an answer of {needed - len(row)}"
            return f"its prompt of {size} exceed the model's {self.positions} positions"
        if is_unknown(answer, self.tokenizer):
            return f"the tokenizer knows no character of its answer {prompt.answer.strip()!r:.60}"
        return None

    def generate(self, prompts: Sequence[Prompt | str], options: Generation | None = None) -> list[Answer]:
        """The greedy continuation of each prompt, in the order of ``prompts``.

        The text is what ``model.generate(ids, do_sample=False, max_new_tokens=...)`` gives for one row alone, save that
        of the model's generation config only the EOS ids count, unless ``options.own_config``.

        Raises InputError if one of the prompts has an ``obstacle``.
        """
        refuse_one_text(prompts, "prompts")
        given = [Prompt(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
        for number, prompt in enumerate(given, start=1):
            if (obstacle := self.obstacle(prompt)) is not None:
                raise InputError(f"number {number}: {obstacle}", "prompts")
        encoded = [self.encode(prompt.text, prompt.answer) for prompt in given]
        exact = [prompt.answer if prompt.exact else None for prompt in given]
        return self.continue_ids([ids for ids, _ in encoded], options, [draft for _, draft in encoded], exact)

    def continue_ids(
        self,
        prompts: Sequence[Sequence[int]],
        options: Generation | None = None,
        drafts: Sequence[Sequence[int]] | None = None,
        exact: Sequence[str | None] | None = None,
    ) -> list[Answer]:
        """``generate`` for prompts of token ids, each with room for a token; ``drafts`` are expected answers as token
        ids, ``exact`` what a text must be to score (None: not one text alone)."""
        options = options or Generation()
        budgets = self._budgets(prompts, options.max_new_tokens, "generation")
        drafts, exact = drafts or [()] * len(prompts), exact or [None] * len(prompts)
        if not options.own_config:
            warn_of_ignored(self.model)
        rows = [Row(*one) for one in zip(prompts, budgets, drafts, exact, strict=True)]
        with self._asked() as engine:
            ends = eos_ids(self.model, self.tokenizer)
            return GreedyDecoding(engine, self.tokenizer, ends, options, rows).answers()

    def sample(self, prompts: Sequence[str], options: Sampling) -> list[list[str]]:
        """``options.samples`` texts for each prompt, drawn at random. Raises InputError if the model has no position
        left after one."""
        rows = self.encode_texts(prompts, "prompts", room=1)
        budgets = self._budgets(rows, options.max_new_tokens, "sampling")
        warn_of_ignored(self.model)
        ends = eos_ids(self.model, self.tokenizer)
        with self._asked() as engine:
            return draw_texts(engine, self.tokenizer, ends, options, prompts, rows, budgets)

    def likelihood(
        self,
        prompts: Sequence[str],
        continuations: Sequence[str],
        *,
        eos: bool = False,
        batch_size: BatchSize = 16,
        what: str = "answers, rows",
    ) -> list[Likelihood]:
        """How likely each continuation is after its prompt, the end token too with ``eos``; ``what`` names the work in
        progress lines.

        Raises InputError if one of either has no token, or both together exceed the model's positions.
        """
        refuse_one_text(prompts, "prompts")
        refuse_one_text(continuations, "continuations")
        if len(prompts) != len(continuations):
            raise InputError(
                f"must be one for each prompt, got {len(continuations)} of {len(prompts)}", "continuations"
            )
        pairs = [self.encode(*pair, eos=eos) for pair in zip(prompts, continuations, strict=True)]
        for number, (prompt, answer) in enumerate(pairs, start=1):
            tokens = len(prompt) + len(answer)
            if not prompt or not answer:
                raise InputError(f"number {number}: no token is left", "continuations" if prompt else "prompts")
            if not self.fits(tokens):
                size = f"{tokens} tokens, with its prompt,"
                raise InputError(
                    f"number {number}: {size} exceed the model's {self.positions} positions", "continuations"
                )
        rows, answers = [prompt for prompt, _ in pairs], [answer for _, answer in pairs]
        with self._asked() as engine:
            return read_answers(engine, rows, answers, batch_size=batch_size, what=what)

    def likelihood_of_generated(
        self, prompts: Sequence[str], texts: Sequence[str], *, batch_size: BatchSize = 16, what: str = "texts, rows"
    ) -> list[Likelihood | None]:
        """How likely each text is that a model, this one or another, generated after a prompt.

        Its tokens are those that the tokenizer makes of it, which may be more than were generated (a byte that is no
        character becomes three). Of a text that exceeds the model's positions only what fits counts, with a warning;
        None where no token is left.
        """
        rows = [start_ids(prompt, self.tokenizer) for prompt in prompts]
        answers = [decoded_ids(text, self.tokenizer) for text in texts]
        if (limit := self.positions) is not None:
            fitting = [answer[: max(0, limit - len(row))] for row, answer in zip(rows, answers, strict=True)]
            if long := sum(map(ne, fitting, answers)):
                told = f"{long} of {len(texts)} texts exceed the model's {limit} positions"
                warnings.warn(f"likelihood: {told}; only what fits of them counts", stacklevel=2)
            answers = fitting
        kept = [index for index, answer in enumerate(answers) if answer]
        pairs = [rows[index] for index in kept], [answers[index] for index in kept]
        with self._asked() as engine:
            found = read_answers(engine, *pairs, batch_size=batch_size, what=what)
        by_row = dict(zip(kept, found, strict=True))
        return [by_row.get(index) for index in range(len(texts))]

    def next_token(
        self,
        prompts: Sequence[str],
        candidates: Sequence[int],
        *,
        batch_size: BatchSize = 16,
        what: str = "choice, questions",
    ) -> list[int | None]:
        """For each prompt the place, in ``candidates`` (token ids), of the likeliest next token; None where a broken
        model has no finite logit. Raises InputError if a prompt has no token or exceeds the model's positions."""
        rows, known = self.encode_texts(prompts, "prompts"), embedding_rows(self.model)
        if len(candidates) < 2 or not all(isinstance(one, int) and 0 <= one < known for one in candidates):
            given = f"{candidates!r:.60}"
            raise InputError(f"must be at least two token ids from 0 to {known - 1}, got {given}", "candidates")
        with self._asked() as engine:
            return choose_next(engine, rows, candidates, batch_size=batch_size, what=what)

    def token_scores(
        self,
        documents: Sequence[str],
        *,
        moments: bool = False,
        batch_size: BatchSize = 8,
        what: str = "membership, documents",
    ) -> list[TokenScores]:
        """Scores of the tokens of each whole document after its first; mean and deviation only with ``moments``.

        Raises InputError if a document has fewer than two tokens, or exceeds the model's positions.
        """
        rows = self.encode_texts(documents, "documents")
        for number, row in enumerate(rows, start=1):
            if len(row) < 2:
                text = documents[number - 1]
                raise InputError(f"number {number} is a single token, which has no loss: {text!r:.60}", "documents")
        with self._asked() as engine:
            return read_documents(engine, rows, moments=moments, batch_size=batch_size, what=what)

    def encode_texts(self, texts: Sequence[str], name: str, room: int = 0) -> list[list[int]]:
        """Token ids of texts that stand at the beginning, with ``room`` for further tokens; ``name`` is theirs."""
        refuse_one_text(texts, name)
        rows = [start_ids(text, self.tokenizer) for text in texts]
        check_ids(self.model, rows, name)
        for number, row in enumerate(rows, start=1):
            if not row:
                raise InputError(f"number {number}: no token is left of the text {texts[number - 1]!r:.60}", name)
            if not self.fits(len(row) + room):
                size = f"{len(row)} tokens" + (f" and room for {room} more" if room else "")
                raise InputError(f"number {number}: {size} exceed the model's {self.positions} positions", name)
        return rows

    def _budgets(self, rows: Sequence[Sequence[int]], wanted: int, what: str) -> list[int]:
        """How many tokens may follow each row: ``wanted``, or as many as the model's positions leave."""
        limit = self.positions
        found = [wanted if limit is None else min(wanted, max(0, limit - len(row))) for row in rows]
        if short := sum(room < wanted for room in found):
            told = f"{short} of {len(rows)} rows have room for fewer than {wanted} new tokens"
            warnings.warn(f"{what}: {told} within the model's {limit} positions", stacklevel=3)
        return found


def refuse_one_text(texts: Sequence[object], name: str) -> None:
    """Raise InputError on a text in the place of many, which would be asked letter by letter."""
    if isinstance(texts, str):
        raise InputError(f"must be a list of texts, got one text {texts!r:.60}", name)
