"""Rows of token ids of different lengths as one tensor, padded on the left or on the right."""

from collections.abc import Sequence

import torch
from torch import Tensor


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
