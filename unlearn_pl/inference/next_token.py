"""Which of some tokens comes next after prompts, those that begin alike computed from their common prefix on."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache

from unlearn_pl.inference.batch_size import BatchSize
from unlearn_pl.inference.batches import length_sorted_batches, map_batches
from unlearn_pl.inference.engine import Engine
from unlearn_pl.inference.kv_cache import prefix_cache
from unlearn_pl.inference.padding import right_padded
from unlearn_pl.inference.token_scores import TIE, is_tie

# A shorter common prefix is not worth a forward of its own.
LEAST_PREFIX = 16
# Rows that `auto` asks together there.
ON_CPU = 16


def choose_next(
    engine: Engine,
    rows: Sequence[Sequence[int]],
    candidates: Sequence[int],
    *,
    batch_size: BatchSize,
    what: str = "choice, questions",
) -> list[int | None]:
    """For each row of token ids the place, in ``candidates``, of the token with the highest logit after it; None where
    one of these logits is not finite, as of a broken model.

    It is that of the row alone: where two are within rounding of each other, the row is asked again by itself. Rows
    that follow each other and share their first tokens (the questions of a subject, with its shots) share the work on
    these.
    """
    batches, prefix_of = prefix_batches(engine, rows, engine.rows_together(batch_size, ON_CPU))
    held: tuple[list[int], Cache | None] = [], None

    def compute(batch: Sequence[int]) -> list[int | None]:
        nonlocal held
        prefix = prefix_of[batch[0]]
        if prefix != held[0]:
            held = prefix, filled_prefix(engine, prefix)
        logits = candidate_logits(engine, [rows[index][len(prefix) :] for index in batch], candidates, held[1])
        for slot, tie in enumerate(tied(logits, engine.tie_units)):
            if tie:
                logits[slot] = candidate_logits(engine, [rows[batch[slot]]], candidates)[0]
        own = logits[:, : len(candidates)]
        places = zip(own.argmax(dim=-1).tolist(), own.isfinite().all(dim=-1).tolist(), strict=True)
        return [place if finite else None for place, finite in places]

    return map_batches(batches, compute, what, engine.work, [list(map(list, rows)), list(candidates)])


def prefix_batches(
    engine: Engine, rows: Sequence[Sequence[int]], batch_size: int
) -> tuple[list[list[int]], dict[int, list[int]]]:
    """Batches of indices whose rows share a prefix, those without one first, and first index -> prefix of each batch.

    All are without one where the engine's trial found that it cannot share prefixes.
    """
    groups = prefix_groups(rows) if engine.trial.prefixes else [(list(range(len(rows))), 0)]
    lone = [index for group, length in groups if not length for index in group]
    batches, prefix_of = [], {}
    for group, length in [(lone, 0), *(one for one in groups if one[1])]:
        lengths = [len(rows[index]) - length for index in group]
        for batch in length_sorted_batches(lengths, batch_size, engine.tokens_per_forward):
            batches.append([group[place] for place in batch])
            prefix_of[batches[-1][0]] = list(rows[group[0]][:length])
    return batches, prefix_of


def prefix_groups(rows: Sequence[Sequence[int]]) -> list[tuple[list[int], int]]:
    """(indices, tokens in common) of neighbouring rows that share at least ``LEAST_PREFIX`` tokens and half of the
    shortest row; a row that shares less with the last one begins a new group. At least one token of each row is left.
    """
    groups: list[tuple[list[int], int]] = []
    for index, row in enumerate(rows):
        if groups:
            group, length = groups[-1]
            shared = min(common_length(rows[group[0]], row), length)
            if shared >= max(LEAST_PREFIX, (min(len(row), len(rows[group[0]])) - 1) / 2):
                groups[-1] = ([*group, index], shared)
                continue
        groups.append(([index], len(row) - 1))
    return [(group, length if len(group) > 1 else 0) for group, length in groups]


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens both begin with, and leave one of each."""
    limit = min(len(first), len(second)) - 1
    return next((place for place in range(limit) if first[place] != second[place]), limit)


def filled_prefix(engine: Engine, prefix: Sequence[int]) -> Cache | None:
    """A cache that any rows may continue ``prefix`` from; None for an empty one."""
    if not prefix:
        return None
    cache = DynamicCache(config=engine.causal.config)
    engine.states(torch.tensor([list(prefix)], device=engine.device), cache=cache)
    return prefix_cache(cache)


def candidate_logits(
    engine: Engine, rows: Sequence[Sequence[int]], candidates: Sequence[int], prefix: Cache | None = None
) -> Tensor:
    """[B, candidates + 1] logits after each row, which continues ``prefix``; the last column is the largest of all
    logits in size, the scale of their rounding."""
    if prefix is None and len(rows) == 1:
        states = engine.states(right_padded(rows, engine.device))  # exactly as the model has it
    else:
        states = engine.rows_states(rows, 0 if prefix is None else prefix.get_seq_length(), prefix)
    ends = torch.tensor([len(row) - 1 for row in rows], device=states.device)
    logits = engine.logits(states[torch.arange(len(rows), device=states.device), ends])
    return torch.cat([logits[:, list(candidates)], logits.abs().amax(dim=-1, keepdim=True)], dim=-1)


def tied(logits: Tensor, units: float = TIE) -> list[bool]:
    """For each row of ``candidate_logits`` whether rounding by so many ``units`` may have decided between its two best
    candidates (see ``is_tie``)."""
    best, second = logits[:, :-1].float().topk(2, dim=-1).values.unbind(dim=-1)
    margin = (best - second) / (logits[:, -1].float() * torch.finfo(logits.dtype).eps)
    return is_tie(margin, logits.dtype, units).tolist()
