"""Which letter a model answers prompts with, those that begin alike computed from their common prefix on."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache

from unlearn_pl.inference.batches import Work, length_sorted_batches, map_batches
from unlearn_pl.inference.kv_cache import prefix_cache
from unlearn_pl.inference.model import Network
from unlearn_pl.inference.rows import right_padded
from unlearn_pl.inference.token_scores import CLOSE_CALL, is_close_call

LETTERS = "ABCD"
# A shorter common prefix is not worth a forward of its own.
LEAST_PREFIX = 16


def choose_letters(
    network: Network, rows: Sequence[Sequence[int]], letters: Sequence[int], batch_size: int, work: Work | None = None
) -> list[str | None]:
    """For each row of token ids the letter whose token, of ``letters``, has the highest logit after it; None where one
    of these is not finite, as of a broken model.

    The letter is that of the row alone: where two are within rounding of each other, the row is asked again by itself.
    Rows that follow each other and share their first tokens (the questions of a subject, with its shots) share the
    work on these.
    """
    groups = prefix_groups(rows) if network.trial.prefixes else [(list(range(len(rows))), 0)]
    lone = [index for group, length in groups if not length for index in group]
    batches, prefix_of, tokens = [], {}, network.tokens_per_forward
    for group, length in [(lone, 0), *(one for one in groups if one[1])]:
        for batch in length_sorted_batches([len(rows[i]) - length for i in group], batch_size, tokens):
            batches.append([group[place] for place in batch])
            prefix_of[batches[-1][0]] = list(rows[group[0]][:length])
    held: tuple[list[int], Cache | None] = [], None

    def compute(batch: Sequence[int]) -> list[str | None]:
        nonlocal held
        prefix = prefix_of[batch[0]]
        if prefix != held[0]:
            held = prefix, filled_prefix(network, prefix)
        logits = letter_logits(network, [rows[index][len(prefix) :] for index in batch], letters, held[1])
        for slot, unsure in enumerate(close_letters(logits, network.close_call)):
            if unsure:
                logits[slot] = letter_logits(network, [rows[batch[slot]]], letters)[0]
        own = logits[:, : len(letters)]
        places = zip(own.argmax(dim=-1).tolist(), own.isfinite().all(dim=-1).tolist(), strict=True)
        return [LETTERS[place] if finite else None for place, finite in places]

    return map_batches(batches, compute, "choice, questions", work, [list(map(list, rows)), list(letters)])


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


def filled_prefix(network: Network, prefix: Sequence[int]) -> Cache | None:
    """A cache that any rows may continue ``prefix`` from; None for an empty one."""
    if not prefix:
        return None
    cache = DynamicCache(config=network.causal.config)
    network.states(torch.tensor([list(prefix)], device=network.device), cache=cache)
    return prefix_cache(cache)


def letter_logits(
    network: Network, rows: Sequence[Sequence[int]], letters: Sequence[int], prefix: Cache | None = None
) -> Tensor:
    """[B, letters + 1] logits after each row, which continues ``prefix``; the last column is the largest of all
    logits in size, the scale of their rounding."""
    if prefix is None and len(rows) == 1:
        states = network.states(right_padded(rows, network.device))  # exactly as the model has it
    else:
        states = network.rows_states(rows, 0 if prefix is None else prefix.get_seq_length(), prefix)
    ends = torch.tensor([len(row) - 1 for row in rows], device=states.device)
    logits = network.logits(states[torch.arange(len(rows), device=states.device), ends])
    return torch.cat([logits[:, list(letters)], logits.abs().amax(dim=-1, keepdim=True)], dim=-1)


def close_letters(logits: Tensor, units: float = CLOSE_CALL) -> list[bool]:
    """For each row of ``letter_logits`` whether rounding may have decided between its two best letters, by so many
    ``units`` (see ``is_close_call``)."""
    best, second = logits[:, :-1].float().topk(2, dim=-1).values.unbind(dim=-1)
    lead = (best - second) / (logits[:, -1].float() * torch.finfo(logits.dtype).eps)
    return is_close_call(lead, logits.dtype, units).tolist()
