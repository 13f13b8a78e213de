"""Rows of token ids through a causal language model: what generation, membership and multiple choice share."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from unlearn_pl.errors import InputError
from unlearn_pl.models.forward import causal_model


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode and inference mode inside the block; afterwards each submodule's own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, training in modes:
            module.training = training


def encode_texts(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], what: str, room: int = 0
) -> list[list[int]]:
    """Token ids of each text, with the special tokens that the tokenizer adds by itself, nothing cut off.

    Raises InputError if a text has no token, or if it and ``room`` further tokens exceed the model's positions.
    """
    rows = [list(tokenizer(text).input_ids) for text in texts]
    positions = position_limit(model)
    for number, row in enumerate(rows, start=1):
        if not row:
            raise InputError(f"{what} {number}: no token is left of the text {texts[number - 1]!r:.60}")
        if positions is not None and len(row) + room > positions:
            extra = f" and room for {room} more" if room else ""
            raise InputError(f"{what} {number}: {len(row)} tokens{extra} exceed the model's {positions} positions")
    return rows


def position_limit(model: nn.Module) -> int | None:
    """The longest sequence the model was made for, None if its configuration names none."""
    return getattr(causal_model(model).config, "max_position_embeddings", None)


def device_of(model: nn.Module) -> torch.device:
    """Where token ids have to go."""
    return causal_model(model).get_input_embeddings().weight.device


def left_padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Rows that end together: ids [B, T], mask [B, T] and positions [B, T] (0 at a row's first token).

    Mask and positions are None for rows of one length, which need no padding and then go the same way as a row alone.
    """
    longest = max(map(len, rows))
    # Any id will do in masked places
    input_ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows], device=device)
    if all(len(row) == longest for row in rows):
        return input_ids, None, None
    starts = torch.tensor([longest - len(row) for row in rows], device=device)[:, None]
    places = torch.arange(longest, device=device)[None]
    return input_ids, (places >= starts).long(), (places - starts).clamp(min=0)


def last_logits(
    model: nn.Module,
    input_ids: Tensor,
    mask: Tensor | None = None,
    positions: Tensor | None = None,
    cache: Any = None,
    use_cache: bool = False,
) -> tuple[Tensor, Any]:
    """[B, V] logits after the last token and the key-value cache; the vocabulary head runs there alone if it can."""
    options: dict[str, Any] = {"attention_mask": mask, "past_key_values": cache, "use_cache": use_cache}
    accepted = inspect.signature(causal_model(model).forward).parameters
    if positions is not None and "position_ids" in accepted:
        options["position_ids"] = positions
    if "logits_to_keep" in accepted:
        options["logits_to_keep"] = 1
    outputs = model(input_ids=input_ids, **options)
    return outputs.logits[:, -1], outputs.past_key_values if use_cache else None
