"""How many tokens go through a model at once, where that is to follow from the memory that a GPU has."""

from collections.abc import Callable
from typing import Literal

import torch

from unlearn_pl.errors import InputError
from unlearn_pl.training.loss import PackedLoss

PackSize = int | Literal["auto"] | None
# Tokens of a pack on a CPU, where larger ones are no faster, and of a GPU's first batch.
FIRST = 1024
# Of a GPU's free memory; the rest is for what differs from batch to batch.
SHARE = 0.8


def check_pack_size(size: PackSize) -> None:
    """Raise InputError unless ``size`` is ``auto``, None or at least 1."""
    if size not in ("auto", None) and (not isinstance(size, int) or size < 1):
        raise InputError(f"must be at least 1, auto or null, got {size}", "tokens_per_forward")


def first_size(size: PackSize) -> int | None:
    """With what a fit begins."""
    return FIRST if size == "auto" else size


class MemoryOfBatch:
    """The memory of a GPU that a batch takes above what is there before it; made before the batch."""

    def __init__(self, device: torch.device):
        self.device = device
        torch.cuda.reset_peak_memory_stats(device)
        self.before = torch.cuda.memory_allocated(device)

    def size_packs(self, loss: PackedLoss, report: Callable[[str], None]) -> None:
        """After the backward pass of the batch: let the packs of ``loss`` be as large as the free memory holds."""
        used = torch.cuda.max_memory_allocated(self.device) - self.before
        unused = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        free = torch.cuda.mem_get_info(self.device)[0] + unused
        loss.tokens_per_forward = tokens_that_fit(loss.largest_pack, used, free)
        report(
            f"tokens_per_forward auto: {loss.tokens_per_forward} from the second batch on, as {loss.largest_pack} took "
            f"{used / 1e9:.2f} GB and {free / 1e9:.2f} GB are free"
        )


def memory_to_watch(size: PackSize, loss: PackedLoss, device: torch.device) -> MemoryOfBatch | None:
    """That of the next batch, if the packs of ``loss`` are to follow from it; 16-mixed has taken theirs away."""
    wanted = size == "auto" and loss.tokens_per_forward is not None and device.type == "cuda"
    return MemoryOfBatch(device) if wanted else None


def tokens_that_fit(tokens: int, used: int, free: int) -> int:
    """Tokens for ``SHARE`` of ``free`` bytes, if ``tokens`` took ``used``; at least ``FIRST``, which did fit.

    1,024 tokens that took 2 GB are 8,192 tokens in 20 GB free.
    """
    return max(FIRST, int(tokens * SHARE * free / max(used, 1)))
