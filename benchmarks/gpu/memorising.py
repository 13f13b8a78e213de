"""The memorising stage at a shape: full fine-tuning, ours beside padded rows."""

from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.command import tell
from benchmarks.gpu.shapes import Shape, random_model
from benchmarks.gpu.work import random_pairs
from benchmarks.memorise import Turns
from unlearn_pl.data.batch import collate_rows


@dataclass(frozen=True)
class MemoriseLoad:
    """The rows and how they are dealt out."""

    rows: int = 96
    batch: int = 32
    longest: int = 256
    rounds: int = 3
    """The figures are medians."""


def memorise_figures(shape: Shape, load: MemoriseLoad, device: torch.device) -> dict[str, Any]:
    """See ``benchmarks.memorise``; of random rows and a model of random weights in float32, as the stage trains one."""
    pairs = random_pairs(load.rows // 2, load.longest, shape.vocabulary, seed=1)
    rows = sorted((row for pair in pairs for row in pair), key=lambda row: len(row.input_ids))
    cuts = range(0, len(rows), load.batch)
    batches = [collate_rows(rows[start : start + load.batch], pad_token_id=0).to(device) for start in cuts]
    found = Turns(random_model(shape, device, torch.float32), 1e-5, device).run(batches, load.rounds, tell)
    tokens = sum(len(row.input_ids) for row in rows)
    rates = {way: tokens / seconds for way, seconds in found["seconds"].items()}
    return found | {"rows": len(rows), "tokens": tokens, "tokens_per_second_of": rates}
