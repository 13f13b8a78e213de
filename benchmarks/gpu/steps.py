"""The training step at a shape, one way at a time: tokens a second, share of the matrix products' peak, peak memory."""

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.flops import pairs_flops, sizes_of
from benchmarks.gpu.shapes import Shape, random_model
from benchmarks.gpu.work import random_pairs
from benchmarks.released import EncodedPair
from benchmarks.variants import Ours, Settings, Window
from benchmarks.worker import VARIANTS, Kind
from unlearn_pl.models.body import causal_model
from unlearn_pl.models.lora import Lora

WARM = 1
"""Optimizer steps that are not counted."""


@dataclass(frozen=True)
class StepLoad:
    """The rows of the steps and how they go through the model."""

    pairs: int = 32
    """Of an optimizer step."""
    micro_batch: int = 8
    """Pairs that the terms are taken of together, and that the other ways pad to one length."""
    steps: int = 3
    """That are counted; the figures are medians."""
    longest: int = 256
    """Tokens of a row at most, and the length to which the released way pads."""
    tokens_per_forward: int | None = 8192
    """Of our packs."""
    rank: int = 32

    def settings(self, vocabulary: int, checkpointing: bool, device: torch.device, dtype: torch.dtype) -> Settings:
        pairs = random_pairs((self.steps + WARM) * self.pairs, self.longest, vocabulary, seed=1)
        return Settings(
            pairs, self.pairs, self.longest, pad_token_id=0, positions="padded",
            tokens_per_forward=self.tokens_per_forward, device=str(device), micro_batch=self.micro_batch,
            lora=Lora(rank=self.rank), checkpointing=checkpointing, autocast=dtype == torch.bfloat16,
        )  # fmt: skip


def step_figures(
    shape: Shape, way: Kind, checkpointing: bool, load: StepLoad, device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    """Of a model with random weights; ours warm, its reference cache being there. ``useful_flops`` is the same for all
    ways: nothing that is computed twice counts."""
    settings = load.settings(shape.vocabulary, checkpointing, device, dtype)
    variant = VARIANTS[way](random_model(shape, device, dtype), settings)
    with tempfile.TemporaryDirectory(prefix="unlearn-pl-bench-") as folder:
        build = variant.build(Path(folder), settings.pairs) if isinstance(variant, Ours) else None
        windows = [variant.window(number) for number in range(settings.windows)][WARM:]
    counted = settings.pairs[WARM * load.pairs :]
    return window_figures(windows, counted) | {
        "way": way,
        "checkpointing": checkpointing or way == "released",
        "useful_flops": pairs_flops(sizes_of(variant.policy), counted, "attended"),
        "base_bytes": variant.base_bytes,
        "attention": str(causal_model(variant.policy).config._attn_implementation),
        "packed": isinstance(variant, Ours) and variant.packed,
        "cache_build_seconds": build.seconds if build else None,
        "cache_build_peak_bytes": build.peak if build else None,
    }


def window_figures(windows: Sequence[Window], pairs: Sequence[EncodedPair]) -> dict[str, Any]:
    """Of the steps that count, which had these ``pairs``; tokens are those of the rows, without padding."""
    tokens = sum(len(row.input_ids) for pair in pairs for row in pair)
    seconds = [window.seconds for window in windows]
    return {
        "step_seconds": statistics.median(seconds),
        "step_seconds_all": seconds,
        "gradient_seconds": sum(window.gradient_seconds for window in windows),
        "tokens_per_second": tokens / sum(seconds),
        "padding_share": 1 - tokens / sum(window.tokens for window in windows),
        "peak_bytes": max(window.peak for window in windows),
        "losses": [window.loss for window in windows],
    }
