"""Rows of token ids through a causal language model: what generation, membership and multiple choice share."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from unlearn_pl.data.encoding import start_ids
from unlearn_pl.errors import InputError
from unlearn_pl.models.rope import scaled_limit
from unlearn_pl.models.tokenizer import check_ids


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
    """Token ids of each text, with what the tokenizer puts in front and without an EOS that it appends; nothing is cut.

    Raises InputError if a text has no token or one without an embedding, or if it and ``room`` further tokens exceed
    the model's positions.
    """
    rows = [start_ids(text, tokenizer) for text in texts]
    check_ids(model, rows, what)
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
    return scaled_limit(model)


def rooms(model: nn.Module, rows: Sequence[Sequence[int]], wanted: int, what: str) -> list[int]:
    """How many tokens may follow each row: ``wanted``, or as many as the model's positions leave, which may be none.

    Warns, naming ``what``, if that is fewer for some.
    """
    positions = position_limit(model)
    found = [wanted if positions is None else min(wanted, max(0, positions - len(row))) for row in rows]
    if short := sum(room < wanted for room in found):
        told = f"{short} of {len(rows)} rows have room for fewer than {wanted} new tokens"
        warnings.warn(f"{what}: {told} within the model's {positions} positions", stacklevel=3)
    return found


def left_padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Rows that end together: ids [B, T], mask [B, T] and positions [B, T] (0 at a row's first token).

    Mask and positions are None for rows of one length, which need no padding and then go the same way as a row alone.
    """
    longest = max(map(len, rows))
    # Any id will do in masked places, unless its embedding is NaN; then the row itself is
    input_ids = torch.tensor([[row[0]] * (longest - len(row)) + list(row) for row in rows], device=device)
    if all(len(row) == longest for row in rows):
        return input_ids, None, None
    starts = torch.tensor([longest - len(row) for row in rows], device=device)[:, None]
    places = torch.arange(longest, device=device)[None]
    return input_ids, (places >= starts).long(), (places - starts).clamp(min=0)


def right_padded(rows: Sequence[Sequence[int]], device: torch.device, room: int = 0) -> Tensor:
    """Rows that begin together, [B, T], T the longest and ``room`` more.

    A causal model never looks at what comes after a token: no mask is needed.

    Padded like ``left_padded``, as NaN times an attention of 0 is NaN.
    """
    longest = max(map(len, rows)) + room
    return torch.tensor([[*row, *[row[0]] * (longest - len(row))] for row in rows], device=device)
