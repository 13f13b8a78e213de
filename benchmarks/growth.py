"""How an optimizer step grows with row length, vocabulary and depth, by both ways.

python -m benchmarks.growth --json OUT
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.command import run, shown, tell
from benchmarks.measure import resident_bytes, settle
from benchmarks.released import EncodedPair
from benchmarks.variants import Ours, Released, Settings, Variant, Window
from unlearn_pl.data.encoding import Encoded
from unlearn_pl.files import write_json
from unlearn_pl.models.device import find_device
from unlearn_pl.provenance import provenance

HEAD_WIDTH = 64
KINDS: dict[str, type[Variant]] = {"ours": Ours, "released": Released}


@dataclass(frozen=True)
class GrowthSizes:
    """What is measured: each list in turn, the other sizes at the middle."""

    lengths: tuple[int, ...] = (64, 128, 256, 512)
    """Tokens of every row; a third of them are the answer."""
    vocabularies: tuple[int, ...] = (8192, 32768, 131072)
    """Words of the head."""
    depths: tuple[int, ...] = (4, 8, 16)
    """Transformer blocks."""
    length: int = 128
    vocabulary: int = 32768
    depth: int = 8
    hidden: int = 256
    """A multiple of 64, the width of a head."""
    pairs: int = 4
    """Of an optimizer step."""


GROWTH = GrowthSizes()


@dataclass(frozen=True)
class Point:
    """One size; times are those of one optimizer step after a smaller one that is not counted."""

    varied: str
    length: int
    vocabulary: int
    layers: int
    released_seconds: float = 0.0
    ours_seconds: float = 0.0
    released_peak_above_base_bytes: int = 0
    """Above what is in use with one copy of the base model, before anything is attached to it."""
    ours_peak_above_base_bytes: int = 0


def measure_growth(sizes: GrowthSizes, device: str, tell: Callable[[str], None]) -> list[Point]:
    """Every point, measured in this process."""
    done = []
    for name, kind in KINDS.items():  # what a process loads at its first step is in no measurement
        warm_window(kind, Point(name, 8, 64, 1), HEAD_WIDTH, Settings(random_pairs(1, 8, 64), 1, 8, 0, device=device))
    for point in points_of(sizes):
        tell(f"length {point.length}, vocabulary {point.vocabulary}, layers {point.layers}")
        pairs = random_pairs(sizes.pairs, point.length, point.vocabulary)
        settings = Settings(pairs, sizes.pairs, point.length, pad_token_id=0, device=device)
        measured: dict[str, Any] = {}
        for name, kind in KINDS.items():
            window, resident = warm_window(kind, point, sizes.hidden, settings)
            measured |= {f"{name}_seconds": window.seconds, f"{name}_peak_above_base_bytes": window.peak - resident}
        done.append(replace(point, **measured))
    return done


def points_of(sizes: GrowthSizes) -> Iterator[Point]:
    """The sizes, the middle of each list included."""
    for length in sizes.lengths:
        yield Point("length", length, sizes.vocabulary, sizes.depth)
    for vocabulary in sizes.vocabularies:
        yield Point("vocabulary", sizes.length, vocabulary, sizes.depth)
    for depth in sizes.depths:
        yield Point("layers", sizes.length, sizes.vocabulary, depth)


def warm_window(kind: type[Variant], point: Point, hidden: int, settings: Settings) -> tuple[Window, int]:
    """An optimizer step of a fresh model after one of a single pair, the cache being there; and the bytes in use with
    the base model alone."""
    device = torch.device(settings.device)
    settle()
    base = random_model(point, hidden).to(device)
    resident = resident_bytes(device)
    variant = kind(base, settings)
    with tempfile.TemporaryDirectory(prefix="unlearn-pl-bench-") as folder:
        if isinstance(variant, Ours):
            variant.build(Path(folder), settings.pairs)
        variant.differentiate(settings.pairs[:1])
        variant.optimizer.step()
        variant.optimizer.zero_grad()
        return variant.window(0), resident


def random_model(point: Point, hidden: int) -> LlamaForCausalLM:
    """A Llama of the shape of ``point`` with random weights; the global random state is left as it was."""
    config = LlamaConfig(
        vocab_size=point.vocabulary,
        hidden_size=hidden,
        intermediate_size=8 * hidden // 3,
        num_hidden_layers=point.layers,
        num_attention_heads=hidden // HEAD_WIDTH,
        num_key_value_heads=hidden // HEAD_WIDTH,
        max_position_embeddings=max(1024, point.length),
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


def random_pairs(count: int, length: int, vocabulary: int) -> list[EncodedPair]:
    """Rows of random tokens of which the last third is the answer."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (2 * count, length), generator=generator).tolist()
    rows = [Encoded(str(number), tuple(row), length - max(1, length // 3), False) for number, row in enumerate(ids)]
    return list(zip(rows[:count], rows[count:], strict=True))


def growth(json: str, sizes: GrowthSizes = GROWTH, device: str = "auto") -> None:
    """How time and memory of an optimizer step grow with row length, vocabulary and depth, by both ways.

    Random models and rows; one size varies at a time around the middle. About three minutes on two cores.

    Args:
        json: File for all figures.
        sizes: What is measured.
        device: Where to compute: cpu, cuda, cuda:1, ..., or auto (a GPU if there is one).
    """
    place = str(find_device(device))
    points = [asdict(point) for point in measure_growth(sizes, place, tell)]
    print_growth(points)
    config = {**asdict(sizes), "device": place, "threads": torch.get_num_threads()}
    write_json(json, provenance(points=points, config=config))
    print(f"wrote {json}")


def print_growth(points: Sequence[dict[str, Any]]) -> None:
    """Print one line for each size."""
    table = Table("Length", "Words", "Layers", "Released, s", "Ours, s", "Faster", "Released, MB", "Ours, MB")
    for point in points:
        sizes = [str(point[name]) for name in ("length", "vocabulary", "layers")]
        seconds = [point[f"{kind}_seconds"] for kind in ("released", "ours")]
        peaks = [point[f"{kind}_peak_above_base_bytes"] / 1e6 for kind in ("released", "ours")]
        table.add_row(*sizes, *map(shown, [*seconds, seconds[0] / seconds[1], *peaks]))
    Console(width=100).print(table)


if __name__ == "__main__":
    run(growth)
