"""Merging full checkpoints by TIES, in a process of its own, beside mergekit where it is installed, and beside a bare
loop that reads as many bytes and writes as many."""

import json
import multiprocessing
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import OlmoConfig

from benchmarks.measure import peak_bytes
from unlearn_pl.checkpoints.folder import FLOATS, SINGLE_FILE, lay_out, read_checkpoint, write_blocks
from unlearn_pl.checkpoints.merge import merge_checkpoints
from unlearn_pl.console import quiet
from unlearn_pl.errors import InputError
from unlearn_pl.files import new_folder
from unlearn_pl.models.load import DTYPES

Tell = Callable[[str], None]
Work = Callable[[Path, float], float]
"""Merges the checkpoints in a folder at a density; gives the seconds."""
Plan = dict[str, tuple[str, tuple[int, ...]]]
"""Tensor -> its type as safetensors calls it, and its shape."""

NAMES = ("base", "first", "second")
BLOCK_BYTES = 1 << 20
"""Of the bare loop: as much as our way reads at once."""
BLOCK_ENTRIES = 1 << 22


@dataclass(frozen=True)
class Sizes:
    """Of an OLMo model whose head is its embedding; the defaults are OLMo-1B, 1.18 billion parameters."""

    layers: int = 16
    hidden: int = 2048
    intermediate: int = 8192
    vocabulary: int = 50304
    dtype: str = "float32"

    def __post_init__(self) -> None:
        """Raise InputError for a type that is not in ``DTYPES``."""
        if self.dtype not in DTYPES:
            raise InputError(f"must be one of {', '.join(DTYPES)}, got {self.dtype}", "dtype")

    def config(self) -> OlmoConfig:
        """As transformers describes such a model."""
        return OlmoConfig(
            vocab_size=self.vocabulary, hidden_size=self.hidden, intermediate_size=self.intermediate,
            num_hidden_layers=self.layers, num_attention_heads=1, tie_word_embeddings=True, pad_token_id=0,
            eos_token_id=0, architectures=["OlmoForCausalLM"], dtype=self.dtype,
        )  # fmt: skip

    def plan(self) -> Plan:
        """Every tensor."""
        code = next(code for code, known in FLOATS.items() if known == DTYPES[self.dtype])
        hidden, wide = self.hidden, self.intermediate
        shapes = {"model.embed_tokens.weight": (self.vocabulary, hidden)}
        for number in range(self.layers):
            layer = f"model.layers.{number}"
            shapes |= {f"{layer}.self_attn.{side}_proj.weight": (hidden, hidden) for side in "qkvo"}
            shapes |= {f"{layer}.mlp.{side}_proj.weight": (wide, hidden) for side in ("gate", "up")}
            shapes[f"{layer}.mlp.down_proj.weight"] = (hidden, wide)
        return {name: (code, shape) for name, shape in shapes.items()}

    @property
    def nbytes(self) -> int:
        """Of one checkpoint's tensors."""
        return sum(torch.Size(shape).numel() for _, shape in self.plan().values()) * DTYPES[self.dtype].itemsize


def compare_checkpoints(folder: Path, sizes: Sizes, density: float, repeats: int, tell: Tell) -> dict[str, Any]:
    """Seconds and memory of all ways, which take turns; JSON-ready. ``ratio`` is our speed over the loop's,
    ``ratio_competent`` over mergekit's; what is mergekit's is there only if it can be imported.

    The three checkpoints are made in ``folder`` and deleted afterwards; what is there already is used and left.
    Raises InputError like ``check_folder``.
    """
    check_folder(folder, sizes)
    made = [number for number, name in enumerate(NAMES) if not (folder / name).exists()]
    with ExitStack() as clean:
        if not folder.exists():
            clean.callback(shutil.rmtree, folder, ignore_errors=True)
        for number in made:
            tell(f"making {folder / NAMES[number]}, {sizes.nbytes / 1e9:.2g} GB")
            clean.callback(shutil.rmtree, folder / NAMES[number], ignore_errors=True)
            make_checkpoint(folder / NAMES[number], number, sizes)
        seconds, peaks = take_turns(folder, density, repeats, tell)
    medians = {way: statistics.median(taken) for way, taken in seconds.items()}
    figures = {
        "seconds": medians["ours"],
        "bare_seconds": medians["bare"],
        "ratio": medians["bare"] / medians["ours"],
        "peak_bytes": max(peaks["ours"]),
        "checkpoint_bytes": sizes.nbytes,
        "all_seconds": seconds,
        "sizes": asdict(sizes),
    }
    if "mergekit" in medians:
        figures |= {"competent_seconds": medians["mergekit"], "competent_peak_bytes": max(peaks["mergekit"])}
        figures["ratio_competent"] = medians["mergekit"] / medians["ours"]
    return figures


def take_turns(
    folder: Path, density: float, repeats: int, tell: Tell
) -> tuple[dict[str, list[float]], dict[str, list[int]]]:
    """Way -> its seconds, and -> its peaks of memory (but of the bare loop); who begins changes."""
    works: dict[str, Work] = {"ours": merge_by_ties}
    if find_spec("mergekit") is not None:
        works["mergekit"] = merge_by_mergekit
    seconds: dict[str, list[float]] = {way: [] for way in ("bare", *works)}
    peaks: dict[str, list[int]] = {way: [] for way in works}
    for turn in range(repeats):
        for way in sorted(seconds, reverse=turn % 2 == 1):
            if way == "bare":
                seconds[way].append(bare_loop(folder))
            else:
                took, peak = in_a_process(works[way], folder, density)
                seconds[way].append(took)
                peaks[way].append(peak)
            tell(f"checkpoints, {way}, {turn + 1} of {repeats}: {seconds[way][-1]:.1f} s")
    return seconds, peaks


def check_folder(folder: Path, sizes: Sizes) -> None:
    """Raise InputError if ``folder`` is a file, its disk has no room for what would be written, or a checkpoint that is
    there already has other tensors."""
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise InputError(f"must be a folder, {nearest} is a file", "checkpoints")
    needed = sizes.nbytes  # what one way at a time writes
    for path in (folder / name for name in NAMES):
        if not path.exists():
            needed += sizes.nbytes
            continue
        found = read_checkpoint(path, "--checkpoints").tensors
        if {name: (stored.dtype, stored.shape) for name, stored in found.items()} != sizes.plan():
            raise InputError(f"{path} is there already and has other tensors; give another folder", "checkpoints")
    free = shutil.disk_usage(nearest).free
    if free < needed:
        raise InputError(f"{needed / 1e9:.3g} GB are needed, {folder} has {free / 1e9:.3g} GB free", "checkpoints")


def make_checkpoint(folder: Path, number: int, sizes: Sizes) -> None:
    """Normal numbers, 0 +- 0.02: number 0 is the base, the others are the base and 0 +- 0.001 of their own."""
    with new_folder(folder, argument="checkpoints") as temporary:
        sizes.config().save_pretrained(temporary)
        written = lay_out(temporary, sizes.plan(), shard_bytes=1 << 62)
        for place, stored in enumerate(written.tensors.values()):
            write_blocks(stored, random_blocks(stored.numel, number, place, DTYPES[sizes.dtype]))


def random_blocks(numel: int, number: int, place: int, dtype: torch.dtype) -> Iterator[Tensor]:
    """The tensor at that ``place`` of checkpoint ``number``, flat, block by block."""
    shared = torch.Generator().manual_seed(place)
    own = torch.Generator().manual_seed(1_000_000 * number + place)
    for start in range(0, numel, BLOCK_ENTRIES):
        block = torch.empty(min(BLOCK_ENTRIES, numel - start)).normal_(0, 0.02, generator=shared)
        if number:
            block.add_(torch.empty_like(block).normal_(0, 0.001, generator=own))
        yield block.to(dtype)


def in_a_process(work: Work, folder: Path, density: float) -> tuple[float, int]:
    """What ``work`` returns, its seconds, and the peak memory of a fresh process that did nothing else."""
    # not fork: a forked child begins with the parent's memory
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), quiet) as pool:
        return pool.submit(_with_peak, work, folder, density).result()


def _with_peak(work: Work, folder: Path, density: float) -> tuple[float, int]:
    seconds = work(folder, density)
    return seconds, peak_bytes(torch.device("cpu"))


def bare_loop(folder: Path) -> float:
    """Read the three files side by side and write the last one's bytes anew, by one thread; the seconds."""
    with new_folder(folder / "copied", argument="checkpoints") as output, ExitStack() as files:
        sources = [files.enter_context((folder / name / SINGLE_FILE).open("rb", buffering=0)) for name in NAMES]
        buffers = [bytearray(BLOCK_BYTES) for _ in sources]
        began = time.perf_counter()
        with (output / SINGLE_FILE).open("wb", buffering=0) as target:
            while read := [source.readinto(buffer) for source, buffer in zip(sources, buffers, strict=True)][-1]:
                target.write(memoryview(buffers[-1])[:read])
        seconds = time.perf_counter() - began
    shutil.rmtree(folder / "copied")
    return seconds


def merge_by_ties(folder: Path, density: float) -> float:
    """Merge the two over the base; the seconds."""
    base, *others = (folder / name for name in NAMES)
    output = folder / "merged"
    began = time.perf_counter()
    merge_checkpoints(base, others, output, method="ties", density=density)
    seconds = time.perf_counter() - began
    shutil.rmtree(output)
    return seconds


def merge_by_mergekit(folder: Path, density: float) -> float:
    """The same merge by mergekit, in the checkpoints' number type; the seconds."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge

    dtype = json.loads((folder / NAMES[0] / "config.json").read_text(encoding="utf-8"))["dtype"]
    parameters = {"weight": 1.0, "density": density}
    config = {
        "merge_method": "ties",
        "base_model": str(folder / NAMES[0]),
        "models": [{"model": str(folder / name), "parameters": parameters} for name in NAMES[1:]],
        "parameters": {"normalize": True},
        "dtype": dtype,
    }
    output = folder / "merged"
    options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True)  # there is none to copy
    began = time.perf_counter()
    run_merge(MergeConfiguration.model_validate(config), str(output), options)
    seconds = time.perf_counter() - began
    shutil.rmtree(output)
    return seconds
