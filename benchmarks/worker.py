"""One variant, in a process of its own (``benchmarks.remote``).

All variants then see the same machine in the same minutes, and no one's memory is in another's measurement: while one
works the others wait on their pipes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file

from benchmarks.flops import pairs_flops, sizes_of
from benchmarks.measure import matmul_peak, resident_bytes, settle
from benchmarks.variants import Build, Competent, Ours, Plain64, Released, Settings, Variant, Window
from unlearn_pl.models.load import load_base

Kind = Literal["released", "competent", "ours", "plain64"]
VARIANTS: dict[Kind, type[Variant]] = {
    "released": Released,
    "competent": Competent,
    "ours": Ours,
    "plain64": Plain64,
}


@dataclass(frozen=True)
class Facts:
    """What a worker tells of itself once its model stands."""

    imports_bytes: int
    """In use before the model was loaded: interpreter and libraries, nothing on a GPU."""
    base_bytes: int
    """Of one copy of the base model's weights."""
    resident_bytes: int
    """In use once everything is loaded."""
    packed: bool
    """Whether the rows go through the model packed."""


class Worker:
    """What can be asked of a worker, by the names of the methods."""

    def __init__(self, kind: Kind, model: str, dtype: str, settings: Settings):
        device = torch.device(settings.device)
        settle()
        before = resident_bytes(device)
        self.dtype = getattr(torch, dtype)
        self.variant = VARIANTS[kind](load_base(model, dtype), settings)
        settle()
        packed = isinstance(self.variant, Ours) and self.variant.packed
        self.known = Facts(before, self.variant.base_bytes, resident_bytes(device), packed)

    def facts(self) -> Facts:
        return self.known

    def window(self, number: int) -> Window:
        """Run and measure an optimizer step."""
        return self.variant.window(number)

    def build(self, folder: str, windows: Sequence[int]) -> Build:
        """Build the cache of the rows of some windows; for ours alone."""
        pairs = [pair for number in windows for pair in self.variant.settings.window(number)]
        assert isinstance(self.variant, Ours)
        return self.variant.build(Path(folder), pairs)

    def check(self, number: int, file: str) -> float:
        """The loss of a window, see ``Variant.check``; its gradient goes to a safetensors file."""
        loss, gradient = self.variant.check(number)
        save_file({name: values.contiguous() for name, values in gradient.items()}, file)
        settle()
        return loss

    def matmul_peak(self) -> float:
        """FLOP/s of this process's matrix products now, in the type of the weights."""
        peak = matmul_peak(self.variant.device, self.dtype)
        settle()
        return peak

    def flops(self) -> int:
        """Operations of loss and gradient of all windows, see ``pairs_flops``."""
        s = self.variant.settings
        pairs = s.pairs[: s.windows * s.accumulate]
        return pairs_flops(sizes_of(self.variant.policy), pairs, "answer" if s.positions == "answer" else "attended")
