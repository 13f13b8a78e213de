"""Attention of rows that stand in one sequence, each to itself: two attention functions that transformers can call.

``PACKED`` calls torch's attention once a row, on a GPU once for all, padded within it; ``VARLEN`` once for all rows
without padding, by the kernel for sequences of different lengths that torch has on a GPU (FlashAttention 2, arXiv
2307.08691), where it takes the numbers at hand.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

PACKED, VARLEN = "packed_sdpa", "packed_varlen"
HALF = (torch.bfloat16, torch.float16)
# The widest head that the kernel takes.
MOST_WIDTH = 256
# Times the tokens that rows may take when padded within attention.
MOST_ROOM = 4

varlen_attn: Any = None
try:
    from torch.nn.attention import varlen
except ImportError:  # torch 2.9
    pass
else:
    varlen_attn = varlen.varlen_attn
# Those of torch 2.10 are others than of 2.11, and 2.12 added to them.
VARLEN_OPTIONS = () if varlen_attn is None else tuple(inspect.signature(varlen_attn).parameters)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    row_lengths: Sequence[int] | None = None,
    row_bounds: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of packed rows, each to itself; without ``row_lengths`` it is transformers' own ``sdpa``.

    ``query``, ``key`` and ``value`` are [1, heads, sum of row_lengths, head width]; gives [1, tokens, heads, width].
    ``row_bounds`` [rows + 1], where given, are the places of the rows' ends, from 0, in int32 on the device.
    """
    if row_lengths is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    refuse_added(attention_mask)
    if on_gpu(query) and row_bounds is not None and is_plain(module, query, value, **kwargs):
        longest = max(row_lengths)
        if len(row_lengths) * longest <= MOST_ROOM * query.shape[2]:
            return rows_at_once(query, key, value, row_bounds, longest, kwargs.get("scaling")), None
    rows = zip(*(states.split(list(row_lengths), dim=2) for states in (query, key, value)), strict=True)
    return torch.cat([sdpa_attention_forward(module, *row, None, **kwargs)[0] for row in rows], dim=1), None


def varlen_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The same by one call for all rows. What the kernel does not take goes as ``PACKED``."""
    bounds: Tensor | None = kwargs.get("row_bounds")
    if bounds is None or not varlen_takes(module, query, value, **kwargs):
        return packed_attention(module, query, key, value, attention_mask, **kwargs)
    refuse_added(attention_mask)
    options: dict[str, Any] = {"scale": kwargs.get("scaling"), "window_size": (-1, 0)}  # causal, the whole row
    if "enable_gqa" in VARLEN_OPTIONS:
        options["enable_gqa"] = query.shape[1] != key.shape[1]
    else:
        groups = query.shape[1] // key.shape[1]
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    dtype = product_type(query)
    states = (each[0].transpose(0, 1).to(dtype) for each in (query, key, value))  # [tokens, heads, width]
    longest = max(kwargs["row_lengths"])
    return varlen_attn(*states, bounds, bounds, longest, longest, **options)[None], None


def rows_at_once(
    query: Tensor, key: Tensor, value: Tensor, row_bounds: Tensor, longest: int, scale: float | None
) -> Tensor:
    """[1, tokens, heads, width] of rows padded on the right, in one call: causal attention needs no mask for those.
    Heads are repeated, since torch's kernels for float32 do not share keys among them."""
    place = torch.arange(query.shape[2], dtype=torch.int32, device=query.device)
    row = torch.searchsorted(row_bounds, place, right=True) - 1
    place = row * longest + place - row_bounds[row]
    groups, count = query.shape[1] // key.shape[1], len(row_bounds) - 1

    def padded(states: Tensor) -> Tensor:
        flat = states[0].transpose(0, 1)  # [tokens, heads, width]
        whole = flat.new_zeros(count * longest, *flat.shape[1:]).index_copy(0, place, flat)
        return whole.view(count, longest, *flat.shape[1:]).transpose(1, 2)

    queries, keys, values = padded(query), padded(repeat_kv(key, groups)), padded(repeat_kv(value, groups))
    output = nn.functional.scaled_dot_product_attention(queries, keys, values, is_causal=True, scale=scale)
    return output.transpose(1, 2).flatten(0, 1).index_select(0, place)[None]


def refuse_added(attention_mask: Tensor | None) -> None:
    """Raise ValueError if a model adds numbers of its own to the attention, which rows of a pack would go without."""
    if attention_mask is not None and attention_mask.is_floating_point():
        raise ValueError("the model adds numbers of its own to the attention, which rows of a pack would go without")


def on_gpu(states: Tensor) -> bool:
    """Whether a call costs more than what it computes of a row."""
    return states.is_cuda


def product_type(query: Tensor) -> torch.dtype:
    """The type in which attention multiplies: under autocast that of autocast."""
    device = query.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype


def varlen_takes(module: nn.Module, query: Tensor, value: Tensor, **kwargs: Any) -> bool:
    """Whether the kernel computes this attention: causal, without dropout, in half precision."""
    return has_varlen(query.device) and product_type(query) in HALF and is_plain(module, query, value, **kwargs)


def is_plain(module: nn.Module, query: Tensor, value: Tensor, **kwargs: Any) -> bool:
    """Whether an attention is causal, without dropout, and nothing else."""
    causal = kwargs.get("is_causal")
    return (
        query.shape[-1] == value.shape[-1] <= MOST_WIDTH
        and not kwargs.get("dropout")
        and kwargs.get("softcap") is None
        and kwargs.get("position_bias") is None
        and (getattr(module, "is_causal", True) if causal is None else causal)
    )


def has_varlen(device: torch.device) -> bool:
    """Whether this torch (2.11 or newer) has the kernel for this device."""
    return device.type == "cuda" and "window_size" in VARLEN_OPTIONS


AttentionInterface.register(PACKED, packed_attention)
AttentionInterface.register(VARLEN, varlen_attention)
AttentionMaskInterface.register(PACKED, sdpa_mask)
AttentionMaskInterface.register(VARLEN, sdpa_mask)
