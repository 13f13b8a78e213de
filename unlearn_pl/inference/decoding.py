"""Token-by-token generation of several rows together, each as if it were alone."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice

import torch
from torch import Tensor

from unlearn_pl.inference.engine import Engine
from unlearn_pl.inference.lines import ENDED_SHARE, Lines, ReadRow
from unlearn_pl.inference.own_generate import generate_alone
from unlearn_pl.inference.token_scores import is_tie, margins
from unlearn_pl.models.fast.linear import frozen_linears

Pick = Callable[[Tensor, Sequence[int], int], Tensor]
"""(logits [B, V], the rows they belong to, step) -> next token of each [B]."""
Stop = Callable[[int, list[int]], bool]
"""(row, its new tokens so far) -> whether nothing that follows matters."""


def continue_batch(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    budgets: Sequence[int],
    eos: frozenset[int],
    *,
    started: Sequence[Sequence[int]] | None = None,
    stop: Stop | None = None,
    own_config: bool = False,
) -> list[list[int]]:
    """Greedy answer to each prompt of token ids, of at most so many tokens, up to and with an EOS.

    ``started`` are tokens that the answers are known to begin with, fewer than the budget. A row whose two best tokens
    came so close that rounding may have chosen between them is generated again: alone, from its prompt, token by token.
    Where our cache is not exact, or all of the model's generation config is to act (``own_config``), rows go one at a
    time through the model's own ``generate``, from their prompts.
    """
    if own_config or not engine.generates_fast(longest(prompts, budgets)):
        return [
            generate_alone(
                engine.model, prompt, budget, eos, None if stop is None else partial(stop, slot), own_config
            )[0]
            for slot, (prompt, budget) in enumerate(zip(prompts, budgets, strict=True))
        ]
    begun = [[] for _ in prompts] if started is None else [list(tokens) for tokens in started]
    rows = [[*prompt, *tokens] for prompt, tokens in zip(prompts, begun, strict=True)]
    left = [budget - len(tokens) for budget, tokens in zip(budgets, begun, strict=True)]
    whole: Stop | None = None if stop is None else lambda slot, new: stop(slot, [*begun[slot], *new])
    exact = len(rows) == 1 and not begun[0]
    answers = []
    for slot, new in enumerate(continue_rows(engine, rows, left, eos, stop=whole, watched=not exact)):
        if new is None:
            (again,) = continue_rows(engine, [prompts[slot]], [budgets[slot]], eos, stop=alone(slot, stop=stop)[1])
            assert again is not None
            answers.append(again)
        else:
            answers.append([*begun[slot], *new])
    return answers


def continue_rows(
    engine: Engine,
    rows: Sequence[Sequence[int]],
    budgets: Sequence[int],
    eos: frozenset[int],
    *,
    pick: Pick | None = None,
    stop: Stop | None = None,
    watched: bool = False,
) -> list[list[int] | None]:
    """New token ids of each row, greedy without ``pick``. If ``watched``, None where two tokens came so close that
    rounding may have chosen between them. Every budget is at least 1.
    """
    fast = engine.generates_fast(longest(rows, budgets))
    if len(rows) > 1 and not (fast and engine.trial.together):
        lone = [alone(slot, pick, stop) for slot in range(len(rows))]
        return [
            continue_rows(engine, [row], [budget], eos, pick=own_pick, stop=own_stop, watched=watched)[0]
            for row, budget, (own_pick, own_stop) in zip(rows, budgets, lone, strict=True)
        ]
    lines = Lines(engine, rows, cached=fast)
    texts = Texts({row: [] for row in range(len(rows))}, budgets, eos, stop)
    for step in range(max(budgets)):
        logits = lines.logits()
        chosen = logits.argmax(dim=-1) if pick is None else pick(logits, lines.rows, step)
        texts.take(lines, *on_host(chosen, ties(engine, logits) if watched else None))
        if not lines.running:
            break
        lines.feed(chosen)
        lines.drop_ended()
    return [None if row in texts.unsure else tokens for row, tokens in texts.tokens.items()]


def continue_read(engine: Engine, reading: Iterator[ReadRow], size: int, texts: "Texts") -> None:
    """Add to ``texts`` until they are over, or unsure, those of the rows that ``reading`` gives: at most ``size`` of
    them run together, and as some end the next are read.

    The engine's trial must have found that rows join. Uses oneDNN on a CPU.
    """
    lines = Lines(engine)
    with frozen_linears(engine.causal):
        while True:
            room = size - len(lines.running)
            new = list(islice(reading, room)) if room >= max(1, ENDED_SHARE * size) else []
            if new:
                lines.join(new)
            else:
                lines.drop_ended()
            if not lines.running:
                return
            logits = lines.logits()
            chosen = logits.argmax(dim=-1)
            texts.take(lines, *on_host(chosen, ties(engine, logits)))
            lines.feed(chosen)


def ties(engine: Engine, logits: Tensor) -> Tensor | None:
    """[B] for each row of ``logits`` [B, V] whether rounding may have chosen its best token; None in half precision,
    where that is said of none."""
    if torch.finfo(logits.dtype).bits < 32:
        return None
    return is_tie(margins(logits), logits.dtype, engine.tie_units)


def on_host(chosen: Tensor, tied: Tensor | None) -> tuple[list[int], list[int] | None]:
    """Both [B] as numbers; a GPU is waited for once."""
    if tied is None:
        return chosen.tolist(), None
    tokens, unsure = torch.stack([chosen, tied.long()]).tolist()
    return tokens, unsure


class Texts:
    """The new tokens of rows while they are generated."""

    def __init__(
        self, tokens: dict[int, list[int]], budgets: Sequence[int], eos: frozenset[int], stop: Stop | None = None
    ):
        """``tokens`` are what the rows begin with, fewer than their budgets."""
        self.tokens = tokens
        self.budgets, self.eos, self.stop = budgets, eos, stop
        self.unsure: set[int] = set()
        """Rows where two tokens came so close that rounding may have chosen between them."""

    def take(self, lines: Lines, chosen: Sequence[int], tied: Sequence[int] | None) -> None:
        """Append the token ``chosen`` [B] for each line that still runs; rows that are over end."""
        for line in lines.running:
            row = lines.rows[line]
            self.tokens[row].append(chosen[line])
            if tied is not None and tied[line]:
                self.unsure.add(row)
            if row in self.unsure or self.over(row):
                lines.ended.add(row)

    def over(self, row: int) -> bool:
        """Whether nothing can be added to a row that has tokens."""
        tokens = self.tokens[row]
        ended = tokens[-1] in self.eos or len(tokens) == self.budgets[row]
        return ended or (self.stop is not None and self.stop(row, tokens))


def longest(rows: Sequence[Sequence[int]], budgets: Sequence[int]) -> int:
    """Tokens that the longest row can reach."""
    return max((len(row) + budget for row, budget in zip(rows, budgets, strict=True)), default=0)


def alone(slot: int, pick: Pick | None = None, stop: Stop | None = None) -> tuple[Pick | None, Stop | None]:
    """What picks and stops row ``slot`` of a batch, for a batch of that row alone."""
    lone_pick = None if pick is None else lambda logits, _, step: pick(logits, [slot], step)
    lone_stop = None if stop is None else lambda _, tokens: stop(slot, tokens)
    return lone_pick, lone_stop
