"""How many rows are computed together, where that is to follow from memory.

On a GPU it follows from all that it has and not from what is free, on a CPU from a number that is the same on all: the
last digits of a result depend on what it shared a batch with, and the same model in the same place is to give the same
results.
"""

from typing import Literal

import torch
from torch import nn

from unlearn_pl.errors import InputError
from unlearn_pl.inference.forward import Forward
from unlearn_pl.inference.kv_cache import growing_cache, takes

BatchSize = int | Literal["auto"]
# Bytes on a CPU. Rows of a small model are many in it, and cost little more together than a few do.
CPU_MEMORY = 2_000_000_000
# Of the memory that the weights leave; the rest is for the forward pass itself, and for what others hold.
SHARE = 0.7
# A row's keys and values are there three times while rows take the places of others: in the old cache, in the new one,
# and in that which they were read into.
CACHES = 3
# Numbers of 4 bytes for each word: logits, and what is made of them to look for ties.
LOGITS = 16
# More rows are no faster by the row.
MOST = 256


def check_batch_size(size: BatchSize, name: str) -> None:
    """Raise InputError, called ``name``, unless ``size`` is ``auto`` or at least 1."""
    if size != "auto" and (not isinstance(size, int) or size < 1):
        raise InputError(f"must be at least 1, or auto, got {size}", name)


def device_memory(device: torch.device) -> int | None:
    """All bytes of a GPU; None elsewhere."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


def rows_that_fit(memory: int, weights: int, row: int) -> int:
    """Rows of ``row`` bytes each beside ``weights`` bytes in ``memory`` bytes: a power of two, from 1 to ``MOST``.

    80e9 bytes, 16e9 of weights and .2e9 a row: .7 x 64e9 / .2e9 = 224, so 128.
    """
    rows = int(SHARE * (memory - weights) / row)
    return 1 << (min(max(rows, 1), MOST).bit_length() - 1)


def row_bytes(forward: Forward, tokens: int) -> int:
    """What a row of so many tokens takes while it is continued, by a model that ``keeps_a_cache``."""
    cache = growing_cache(forward.model)
    assert cache is not None
    forward.states(torch.zeros(1, 1, dtype=torch.long, device=forward.device), cache=cache)
    held = (getattr(layer, name, None) for layer in cache.layers for name in ("keys", "values"))
    token = sum(states.nbytes for states in held if states is not None)
    words = int(forward.causal.get_input_embeddings().weight.shape[0])
    return CACHES * tokens * token + LOGITS * words


def keeps_a_cache(forward: Forward) -> bool:
    """Whether what a row takes while it is continued is a cache that can be looked at."""
    return takes(forward.causal, "past_key_values")


def weight_bytes(model: nn.Module) -> int:
    """Of all weights, as they lie in memory."""
    return sum(weight.nbytes for weight in model.parameters())
