"""Token-by-token generation of several rows together, each as if it were alone."""

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor

from unlearn_pl.inference.lines import Lines
from unlearn_pl.inference.model import Network
from unlearn_pl.inference.own_generate import generate_alone
from unlearn_pl.inference.token_scores import is_close_call, leads

Pick = Callable[[Tensor, Sequence[int], int], Tensor]
"""(logits [B, V], the rows they belong to, step) -> next token of each [B]."""
Stop = Callable[[int, list[int]], bool]
"""(row, its new tokens so far) -> whether nothing that follows matters."""


def continue_batch(
    network: Network,
    prompts: Sequence[Sequence[int]],
    budgets: Sequence[int],
    eos: frozenset[int],
    started: Sequence[Sequence[int]] | None = None,
    stop: Stop | None = None,
) -> list[list[int]]:
    """Greedy answer to each prompt of token ids, of at most so many tokens, up to and with an EOS.

    ``started`` are tokens that the answers are known to begin with, fewer than the budget. A row that the others, or
    reading several tokens at once, could have led astray is generated again: alone, from its prompt, token by token.
    Where our cache is not exact, rows go one at a time through the model's own ``generate``, from their prompts.
    """
    if not network.generates_fast(max(map(sum, zip(map(len, prompts), budgets, strict=True)))):
        return [
            generate_alone(
                network.model, prompt, budget, eos, None if stop is None else partial(stop, slot), network.own_config
            )[0]
            for slot, (prompt, budget) in enumerate(zip(prompts, budgets, strict=True))
        ]
    begun = [[] for _ in prompts] if started is None else [list(tokens) for tokens in started]
    rows = [[*prompt, *tokens] for prompt, tokens in zip(prompts, begun, strict=True)]
    left = [budget - len(tokens) for budget, tokens in zip(budgets, begun, strict=True)]
    whole: Stop | None = None if stop is None else lambda slot, new: stop(slot, [*begun[slot], *new])
    exact = len(rows) == 1 and not begun[0]
    answers = []
    for slot, new in enumerate(continue_rows(network, rows, left, eos, stop=whole, watched=not exact)):
        if new is None:
            lone = alone(slot, stop=stop)[1]
            (again,) = continue_rows(network, [prompts[slot]], [budgets[slot]], eos, stop=lone)
            assert again is not None
            answers.append(again)
        else:
            answers.append([*begun[slot], *new])
    return answers


def continue_rows(
    network: Network,
    rows: Sequence[Sequence[int]],
    budgets: Sequence[int],
    eos: frozenset[int],
    pick: Pick | None = None,
    stop: Stop | None = None,
    watched: bool = False,
) -> list[list[int] | None]:
    """New token ids of each row, greedy without ``pick``. If ``watched``, None where two tokens came so close that
    rounding may have chosen between them. Every budget is at least 1.
    """
    fast = network.generates_fast(max(map(sum, zip(map(len, rows), budgets, strict=True))))
    if len(rows) > 1 and not (fast and network.trial.together):
        return [
            continue_rows(network, [row], [budgets[slot]], eos, *alone(slot, pick, stop), watched)[0]
            for slot, row in enumerate(rows)
        ]
    lines = Lines(network, rows, cached=fast)
    answers: list[list[int]] = [[] for _ in rows]
    led_astray: set[int] = set()
    for step in range(max(budgets)):
        logits = lines.logits()
        chosen = logits.argmax(dim=-1) if pick is None else pick(logits, lines.rows, step)
        unsure = (
            is_close_call(leads(logits), logits.dtype, network.close_call).tolist()
            if watched
            else [False] * len(lines.rows)
        )
        for line, (row, token) in enumerate(zip(lines.rows, chosen.tolist(), strict=True)):
            if row in lines.ended:
                continue
            answers[row].append(token)
            if unsure[line]:
                led_astray.add(row)
            if unsure[line] or token in eos or len(answers[row]) == budgets[row] or (stop and stop(row, answers[row])):
                lines.ended.add(row)
        if not lines.feed(chosen):
            break
    return [None if row in led_astray else answer for row, answer in enumerate(answers)]


def alone(slot: int, pick: Pick | None = None, stop: Stop | None = None) -> tuple[Pick | None, Stop | None]:
    """What picks and stops row ``slot`` of a batch, for a batch of that row alone."""
    lone_pick = None if pick is None else lambda logits, _, step: pick(logits, [slot], step)
    lone_stop = None if stop is None else lambda _, tokens: stop(slot, tokens)
    return lone_pick, lone_stop
