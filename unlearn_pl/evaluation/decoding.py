"""Token-by-token generation of several rows together, each as if it were alone."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from unlearn_pl.evaluation.caches import generates_together, growing_cache
from unlearn_pl.evaluation.forward import left_padded
from unlearn_pl.evaluation.network import Network
from unlearn_pl.evaluation.token_scores import is_close_call, leads

Pick = Callable[[Tensor, Sequence[int], int], Tensor]
"""(logits [B, V], the rows they belong to, step) -> next token of each [B]."""
Stop = Callable[[int, list[int]], bool]
"""(row, its new tokens so far) -> whether nothing that follows matters."""

# Rows that have ended are taken out of the cache, which is then copied, once they are this share of it.
ENDED_SHARE = 1 / 8


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
    """
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
    longest = max(map(len, rows)) + max(budgets)
    if len(rows) > 1 and not generates_together(network.model, longest):
        return [
            continue_rows(network, [row], [budgets[slot]], eos, *alone(slot, pick, stop), watched)[0]
            for slot, row in enumerate(rows)
        ]
    lines = Lines(network, rows, max(budgets))
    answers: list[list[int]] = [[] for _ in rows]
    led_astray: set[int] = set()
    for step in range(max(budgets)):
        logits = lines.logits()
        chosen = logits.argmax(dim=-1) if pick is None else pick(logits, lines.rows, step)
        unsure = is_close_call(leads(logits), logits.dtype).tolist() if watched else [False] * len(lines.rows)
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


class Lines:
    """The lines of a key-value cache: one for each row that still runs, and for a while those of rows that ended."""

    def __init__(self, network: Network, rows: Sequence[Sequence[int]], budget: int):
        self.network = network
        longest = max(map(len, rows))
        self.cache = growing_cache(network.model, longest, longest + budget)
        self.ids, self.mask, self.positions = left_padded(rows, network.device)
        if self.cache is not None and self.positions is None:
            # some models count from 0 again after a cache, unless they are told
            self.positions = torch.arange(longest, device=network.device).expand(len(rows), -1)
        self.rows = list(range(len(rows)))
        self.ended: set[int] = set()

    def logits(self) -> Tensor:
        """[B, V] after the last token of each line."""
        return self.network.logits(self._states()[:, -1])

    def _states(self) -> Tensor:
        fresh = self.cache is not None and self.cache.get_seq_length() == 0
        try:
            return self.network.states(self.ids, self.mask, self.positions, self.cache)
        except ValueError:
            if not fresh:
                raise
            self.cache = None  # the model insists on a cache of its own class: its rows are read anew for each token
            return self.network.states(self.ids, self.mask, self.positions)

    def feed(self, tokens: Tensor) -> bool:
        """Append a token [B] to each line; False if no row runs any more."""
        running = [line for line, row in enumerate(self.rows) if row not in self.ended]
        if not running:
            return False
        self.ids = tokens[:, None] if self.cache is not None else torch.cat([self.ids, tokens[:, None]], dim=1)
        if self.mask is not None:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        if self.positions is not None:
            following = self.positions[:, -1:] + 1
            self.positions = following if self.cache is not None else torch.cat([self.positions, following], dim=1)
        if len(running) <= (1 - ENDED_SHARE) * len(self.rows):
            self._keep(running)
        return True

    def _keep(self, lines: list[int]) -> None:
        index = torch.tensor(lines, device=self.ids.device)
        if self.cache is not None:
            self.cache.batch_select_indices(index)
        self.rows = [self.rows[line] for line in lines]
        self.ids = self.ids[index]
        if self.mask is not None:
            self.mask = self.mask[index]
        if self.positions is not None:
            self.positions = self.positions[index]
