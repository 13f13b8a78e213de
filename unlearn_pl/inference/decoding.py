"""Token-by-token generation of several rows together, each as if it were alone."""

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor

from unlearn_pl.inference.engine import Engine
from unlearn_pl.inference.lines import Lines
from unlearn_pl.inference.own_generate import generate_alone
from unlearn_pl.inference.token_scores import is_tie, margins

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
    answers: list[list[int]] = [[] for _ in rows]
    must_redo: set[int] = set()
    for step in range(max(budgets)):
        logits = lines.logits()
        chosen = logits.argmax(dim=-1) if pick is None else pick(logits, lines.rows, step)
        ties = [False] * len(lines.rows)
        if watched:
            ties = is_tie(margins(logits), logits.dtype, engine.tie_units).tolist()
        for row, token, tie in zip(list(lines.rows), chosen.tolist(), ties, strict=True):
            if row in lines.ended:
                continue
            answers[row].append(token)
            if tie:
                must_redo.add(row)
            if tie or token in eos or len(answers[row]) == budgets[row] or (stop and stop(row, answers[row])):
                lines.ended.add(row)
        if not lines.feed(chosen):
            break
    return [None if row in must_redo else answer for row, answer in enumerate(answers)]


def longest(rows: Sequence[Sequence[int]], budgets: Sequence[int]) -> int:
    """Tokens that the longest row can reach."""
    return max(len(row) + budget for row, budget in zip(rows, budgets, strict=True))


def alone(slot: int, pick: Pick | None = None, stop: Stop | None = None) -> tuple[Pick | None, Stop | None]:
    """What picks and stops row ``slot`` of a batch, for a batch of that row alone."""
    lone_pick = None if pick is None else lambda logits, _, step: pick(logits, [slot], step)
    lone_stop = None if stop is None else lambda _, tokens: stop(slot, tokens)
    return lone_pick, lone_stop
