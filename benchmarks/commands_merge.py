"""``unlearn-pl bench merge``: how fast and how exact merging is, measured beside PEFT's and beside a bare copy."""

from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.commands import _tell
from benchmarks.merge import PEFT_TYPES, WEIGHTS, Repeats, compare_merging
from benchmarks.merge_checkpoints import Sizes, check_folder, compare_checkpoints
from benchmarks.merge_path import compare_path_step
from benchmarks.random_adapters import one_layer, random_parents
from benchmarks.tables import shown
from unlearn_pl.errors import InputError
from unlearn_pl.files import write_json
from unlearn_pl.models.load import load_base, load_tokenizer, resolve
from unlearn_pl.provenance import provenance

TARGETS = {"svd": 500, "ties": 3, "magnitude_prune": 3} | dict.fromkeys(
    ("ties_svd", "dare_linear_svd", "dare_ties_svd", "magnitude_prune_svd"), 15
)
"""Times faster than PEFT that merging is meant to be, on two cores."""


def merge(
    json: str,
    types: list[str] | None = None,
    hidden: int = 2048,
    intermediate: int = 8192,
    rank: int = 32,
    density: float = 0.8,
    repeats: int = 5,
    peft_repeats: int = 1,
    seed: int = 42,
    path: str | None = None,
    documents: int = 32,
    checkpoints: str | None = None,
    layers: int = 16,
    vocabulary: int = 50304,
    dtype: str = "float32",
) -> None:
    """Merge two adapters by each of PEFT's eleven types, by PEFT and by ours in turn, and compare time and results.

    The adapters are random, on every linear layer of one transformer layer, by default of OLMo-1B's shapes; all in
    float32 on the CPU, with the weights 0.7 and 1.2. PEFT merges by add_weighted_adapter with its defaults, the whole
    call: it adds an adapter to the model, and its svd types decompose with full matrices. Ours gives the merged
    factors. About five minutes on two cores, nearly all of them PEFT's.

    Args:
        json: File for all figures.
        types: Which of PEFT's types; all eleven if not given.
        hidden: Width of the residual stream; at least 1.
        intermediate: Width inside the feed-forward block; at least 1.
        rank: Rank and alpha of both adapters; at least 1, and below both widths.
        density: Share of the entries that the pruning types keep, in (0, 1).
        repeats: How often to measure each part; the figures are medians. At least 1.
        peft_repeats: How often to measure PEFT's svd types, which are slow; at least 1.
        seed: Of the adapters, the masks and the documents.
        path: Model, such as smollm2-135m-instruct, to measure a step along a path on: other coefficients of two
            adapters folded into its weights, and the losses of documents, beside the losses alone. Null for none.
        documents: Documents of about 300 tokens of that step; at least 1.
        checkpoints: Folder on a disk with room for four checkpoints (19 GB in float32 by default), to merge two full
            ones over their base by TIES, beside a bare loop that reads three and writes one. They are made there and
            deleted afterwards; those already there (base, first, second) are used and left. Null for none.
        layers: Layers of the checkpoints; at least 1.
        vocabulary: Words of the checkpoints; at least 1.
        dtype: Type of the checkpoints: float32, bfloat16 or float16.
    """
    config = {**locals(), "weights": WEIGHTS, "threads": torch.get_num_threads(), "device": "cpu"}
    del config["json"]
    counts = {"hidden": hidden, "intermediate": intermediate, "rank": rank, "repeats": repeats}
    counts |= {"peft_repeats": peft_repeats, "documents": documents, "layers": layers, "vocabulary": vocabulary}
    _check_arguments(counts, density)
    names = PEFT_TYPES if types is None else types
    if unknown := [name for name in names if name not in PEFT_TYPES]:
        raise InputError(f"--types: must be among {', '.join(PEFT_TYPES)}, got {unknown[0]}")
    if path is not None:
        resolve(path)
    sizes = Sizes(layers, hidden, intermediate, vocabulary, dtype)
    if checkpoints is not None:  # said now and not after minutes
        check_folder(Path(checkpoints), sizes)
    model = one_layer(hidden, intermediate)
    parents = random_parents(model, rank, seed)
    figures = compare_merging(model, parents, density, seed, Repeats(repeats, peft_repeats), _tell, names)
    print_merging(figures)
    if path is not None:
        figures["path_step"] = compare_path_step(load_base(path), load_tokenizer(path), rank, documents, repeats, seed)
        print_beside("step along a path", figures["path_step"], "losses alone")
    if checkpoints is not None:
        figures["checkpoints"] = compare_checkpoints(Path(checkpoints), sizes, density, repeats, _tell)
        print_beside("two checkpoints over a base", figures["checkpoints"], "bare loop")
        print(f"peak memory of that process: {figures['checkpoints']['peak_bytes'] / 1e9:.2f} GB")
    write_json(json, provenance(**figures, config=config))
    print(f"wrote {json}")


def _check_arguments(counts: dict[str, int], density: float) -> None:
    """Raise InputError for what can be told to be wrong before anything is made."""
    for name, value in counts.items():
        if value < 1:
            raise InputError(f"--{name}: must be at least 1, got {value}")
    smallest = min(counts["hidden"], counts["intermediate"])
    if counts["rank"] >= smallest:  # at that rank nothing would be cut off
        raise InputError(f"--rank: must be below {smallest}, the smaller width, got {counts['rank']}")
    if not 0 < density < 1:
        raise InputError(f"--density: must be in (0, 1), got {density}")
    entries = counts["rank"] * smallest
    if int(density * entries) < 1:
        raise InputError(f"--density: must keep at least one of a factor's {entries} entries, got {density}")


def print_merging(figures: dict[str, Any]) -> None:
    """Print one line for each of PEFT's types."""
    table = Table("Type", "PEFT, s", "Ours, s", "Faster", "Meant", "From PEFT's", "Error / optimum", "PEFT, MB", "MB")
    for name in (name for name in PEFT_TYPES if name in figures):
        row = figures[name]
        numbers = [row[key] for key in ("peft_seconds", "seconds", "ratio")]
        numbers += [TARGETS.get(name), row["relative_error"]]
        peaks = [row[key] / 1e6 for key in ("peft_peak_bytes", "peak_bytes")]
        least = row.get("reconstruction_ratio")
        table.add_row(name, *map(shown, numbers), "-" if least is None else f"{least:.6f}", *map(shown, peaks))
    Console(width=120).print(table)
    print(f"of PEFT's seconds an empty adapter takes {shown(figures['peft_empty_adapter_seconds'])}; its svd types")
    print("decompose with full matrices, its default; MB are peak memory above what is loaded")


def print_beside(name: str, figures: dict[str, Any], other: str) -> None:
    """Print one line: ours, what it is measured beside, and the ratio."""
    seconds, bare = shown(figures["seconds"]), shown(figures["bare_seconds"])
    print(f"{name}: {seconds} s, {other}: {bare} s, ratio {figures['ratio']:.3f}")
