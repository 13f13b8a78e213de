"""Greedy generation whose text is that of one row at a time, in a fraction of the time."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from unlearn_pl.data.encoding import is_unknown, joined_ids
from unlearn_pl.errors import InputError
from unlearn_pl.inference.batches import Work, length_sorted_batches, map_batches
from unlearn_pl.inference.decided import is_decided
from unlearn_pl.inference.decoding import continue_batch
from unlearn_pl.inference.likelihood import Recall, recall_answers
from unlearn_pl.inference.model import Network
from unlearn_pl.inference.own_generate import acting_settings
from unlearn_pl.inference.rows import evaluating, position_limit, rooms
from unlearn_pl.models.body import causal_model


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
    """Stop question rows (qa) as soon as their text can no longer become the expected answer: their knowledge score is
    then known to be 0. Such samples say `cut: true`; what else is measured on their text sees only this much of it."""
    own_config: bool = False
    """Let all of the model's generation config act on the text, as in the official script: repetition penalty,
    suppressed and forced tokens, beams and so on. Rows then go one at a time through transformers' own `generate`.
    Without it only the EOS ids count, and a warning names what else there is."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InputError(f"--generation.max_new_tokens: must be at least 1, got {self.max_new_tokens}")
        if self.batch_size < 1:
            raise InputError(f"--generation.batch_size: must be at least 1, got {self.batch_size}")


@dataclass(frozen=True)
class Prompt:
    """A row to be continued."""

    text: str
    answer: str = ""
    """What is expected, with the space before it; it makes the work shorter and never changes the text."""
    exact: str | None = None
    """What the whole text must be to score, where that is so (see ``Generation.stop_decided``)."""

    def ids(self, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
        """Token ids of prompt and expected answer, as the whole text has them."""
        return joined_ids(self.text, self.answer, tokenizer)

    def obstacle(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> str | None:
        """Why this row cannot be measured, None if it can: its expected answer must be sayable."""
        row, answer = self.ids(tokenizer)
        limit, needed = position_limit(model), len(row) + max(1, len(answer))
        if not row:
            return f"no token is left of the text {self.text!r:.60}"
        if limit is not None and needed > limit:
            size = f"{len(row)} tokens and an answer of {needed - len(row)}"
            return f"its prompt of {size} exceed the model's {limit} positions"
        if is_unknown(answer, tokenizer):
            return f"the tokenizer knows no character of its answer {self.answer.strip()!r:.60}"
        return None


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
    recall: Recall | None
    """What one forward over the expected answer showed; None without one."""


def generate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    options: Generation | None = None,
    work: Work | None = None,
) -> list[Answer]:
    """The greedy continuation of each prompt, in the order of ``prompts``.

    The text is what ``model.generate(ids, do_sample=False, max_new_tokens=...)`` gives for one row alone, save that of
    the model's generation config only the EOS ids count, unless ``options.own_config``. First each expected
    answer is read in one forward (see ``recall``); rows that go on from there are continued token by token, in batches.
    Under several processes each generates a part and all get everything.

    Raises InputError if one of the prompts has an ``obstacle``.
    """
    options = options or Generation()
    for number, prompt in enumerate(prompts, start=1):
        if (obstacle := prompt.obstacle(model, tokenizer)) is not None:
            raise InputError(f"generation: prompt {number}: {obstacle}")
    encoded = [prompt.ids(tokenizer) for prompt in prompts]
    rows, drafts = [row for row, _ in encoded], [draft for _, draft in encoded]
    budgets = rooms(model, rows, options.max_new_tokens, "generation")
    if not options.own_config:
        warn_of_ignored(model)
    with evaluating(model):
        network = Network(model, options.own_config)
        recalls = _recalls(network, rows, drafts, options.batch_size, work)
        job = Continuation(network, tokenizer, eos_ids(model, tokenizer), options, rows, drafts, budgets, prompts)
        return job.answers(recalls, work)


def generate_greedy(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int = 256,
    batch_size: int = 32,
) -> list[str]:
    """The texts of ``generate`` for bare prompts."""
    options = Generation(max_new_tokens, batch_size)
    return [answer.text for answer in generate(model, tokenizer, [Prompt(text) for text in prompts], options)]


def eos_ids(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The token ids that end a row: the model's own if it names any, else the tokenizer's."""
    given = getattr(getattr(causal_model(model), "generation_config", None), "eos_token_id", None)
    if given is None:
        given = tokenizer.eos_token_id
    ids = frozenset(given if isinstance(given, (list, tuple)) else [given])
    if tokenizer.eos_token_id not in ids:
        warnings.warn(
            f"generation ends at the model's EOS ids {sorted(ids)}; the tokenizer's, {tokenizer.eos_token_id}, is none",
            stacklevel=2,
        )
    return ids


def warn_of_ignored(model: nn.Module) -> None:
    """Name what the model's generation config would change in a text, and does not here."""
    if settings := acting_settings(model):
        told = ", ".join(f"{name} {value!s:.40}" for name, value in settings.items())
        warnings.warn(
            f"not used of the model's generation config: {told}; transformers' generate and the official script apply "
            "that. With --generation.own_config true evaluate does too, a row at a time",
            stacklevel=3,
        )


def decode_answer(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> str:
    """Generated text as the official script decodes it: special tokens dropped, spaces before punctuation cleaned up.

    transformers ignores the clean-up for BPE tokenizers, with a warning for every model; so they are not asked for it.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    is_bpe = backend is not None and type(backend.model).__name__ == "BPE"
    return str(tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=not is_bpe))


def _recalls(
    network: Network, rows: list[list[int]], answers: list[list[int]], batch_size: int, work: Work | None
) -> list[Recall | None]:
    asked = [index for index, answer in enumerate(answers) if answer]
    found = recall_answers(
        network, [rows[index] for index in asked], [answers[index] for index in asked], batch_size, work
    )
    by_row = dict(zip(asked, found, strict=True))
    return [by_row.get(index) for index in range(len(rows))]


@dataclass(frozen=True)
class Continuation:
    """The token-by-token part of ``generate``."""

    network: Network
    tokenizer: PreTrainedTokenizerBase
    eos: frozenset[int]
    options: Generation
    rows: Sequence[Sequence[int]]
    drafts: Sequence[Sequence[int]]
    """Tokens of the expected answers."""
    budgets: Sequence[int]
    """How many tokens each answer may have."""
    prompts: Sequence[Prompt]

    def answers(self, recalls: Sequence[Recall | None], work: Work | None) -> list[Answer]:
        """The answer of each row, from where its ``Recall`` leaves off."""
        started = [self.started(index, recall) for index, recall in enumerate(recalls)]
        open_rows = [index for index, tokens in enumerate(started) if not self.is_over(index, tokens)]
        # A row that must go alone makes a batch of its own: its recall was unsure already.
        alone = [index for index in open_rows if (recall := recalls[index]) is not None and recall.unsure]
        together = [index for index in open_rows if index not in set(alone)]
        lengths = [len(self.rows[index]) + len(started[index]) for index in together]
        batches = [
            [together[place] for place in batch] for batch in length_sorted_batches(lengths, self.options.batch_size)
        ]

        def compute(batch: Sequence[int]) -> list[list[int]]:
            def stop(slot: int, tokens: list[int]) -> bool:
                return self.is_decided(batch[slot], tokens)

            rows, known = ([values[index] for index in batch] for values in (self.rows, started))
            budgets = [self.budgets[index] for index in batch]
            decided = stop if self.options.stop_decided else None
            return continue_batch(self.network, rows, budgets, self.eos, known, decided)

        batches += [[index] for index in alone]
        identity = [
            [list(self.rows[index]), started[index], self.budgets[index], self.prompts[index].exact]
            for index in open_rows
        ]
        settings = [self.options.stop_decided, self.options.own_config, sorted(self.eos)]
        found = map_batches(batches, compute, "generation, rows", work, [settings, identity])
        continued = dict(zip(sorted(open_rows), found, strict=True))
        return [
            self.answer(index, continued.get(index, tokens), recalls[index]) for index, tokens in enumerate(started)
        ]

    def started(self, index: int, recall: Recall | None) -> list[int]:
        """The tokens that greedy decoding is known to give a row.

        None where it is unsure or broken, or where the model's own ``generate`` must be asked; none in half precision
        for single rows, where only token by token is exact.
        """
        single = self.options.batch_size == 1 and torch.finfo(self.network.causal.dtype).bits < 32
        fast = self.network.generates_fast(len(self.rows[index]) + len(self.drafts[index]) + 1)
        if recall is None or recall.unsure or recall.broken or single or not fast:
            return []
        tokens = [*self.drafts[index][: recall.accepted], recall.following]
        ends = [place for place, token in enumerate(tokens) if token in self.eos]
        return tokens[: ends[0] + 1] if ends else tokens[: self.budgets[index]]

    def is_over(self, index: int, tokens: Sequence[int]) -> bool:
        """Whether nothing can be added to the tokens of a row."""
        ended = bool(tokens) and tokens[-1] in self.eos
        decided = self.options.stop_decided and bool(tokens) and self.is_decided(index, tokens)
        return ended or decided or len(tokens) == self.budgets[index]

    def is_decided(self, index: int, tokens: Sequence[int]) -> bool:
        """Whether a row's text can no longer become what it must be."""
        exact = self.prompts[index].exact
        return exact is not None and is_decided(exact, decode_answer(self.tokenizer, tokens))

    def answer(self, index: int, tokens: Sequence[int], recall: Recall | None) -> Answer:
        """The finished answer of a row."""
        ended = tokens[-1] in self.eos
        cut = not ended and len(tokens) < self.budgets[index]
        return Answer(decode_answer(self.tokenizer, tokens), len(tokens), ended, cut, recall)
