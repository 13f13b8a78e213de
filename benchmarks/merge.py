"""Merging, ours beside PEFT's: the same two adapters by every type that PEFT has, in turn.

python -m benchmarks.merge --json OUT
"""

import copy
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from peft import PeftModel
from peft.utils import merge_utils
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.command import run, shown, tell
from benchmarks.measure import Call, measured
from benchmarks.merge_checkpoints import Sizes, check_folder, compare_checkpoints
from benchmarks.merge_path import compare_path_step
from benchmarks.random_adapters import NAMES, one_layer, random_parents, with_peft
from unlearn_pl.errors import InputError
from unlearn_pl.files import write_json
from unlearn_pl.merging.adapters import Adapter
from unlearn_pl.merging.factors import Delta, Factors
from unlearn_pl.merging.merge import merge_modules
from unlearn_pl.merging.methods import METHODS
from unlearn_pl.merging.options import MergeOptions, MergeSettings
from unlearn_pl.models.load import load_base, load_tokenizer, resolve
from unlearn_pl.provenance import provenance

Tell = Callable[[str], None]

PEFT_TYPES = (
    "linear", "cat", "svd", "ties", "ties_svd", "dare_linear", "dare_ties", "dare_linear_svd", "dare_ties_svd",
    "magnitude_prune", "magnitude_prune_svd",
)  # fmt: skip
MERGED = "merged"
# Unequal, so that exchanged or forgotten weights would show
WEIGHTS = (0.7, 1.2)


@dataclass(frozen=True)
class Repeats:
    """How often each way merges; the seconds are medians."""

    ours: int = 5
    peft: int = 1
    """Of PEFT's svd types, either way; its other types go as often as ours."""


def compare_merging(
    model: PreTrainedModel,
    parents: Sequence[Adapter],
    density: float,
    seed: int,
    repeats: Repeats,
    tell: Tell,
    types: Sequence[str] = PEFT_TYPES,
) -> dict[str, Any]:
    """Type of PEFT -> its figures, and ``peft_empty_adapter_seconds``; JSON-ready. ``model`` is left as it was."""
    figures: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]):  # PEFT draws from the global generator
        torch.manual_seed(seed)
        adapted = with_peft(model, parents)
        try:
            for name in types:
                wanted = density if "density" in METHODS[name].kernel.parameters else None
                options = MergeOptions(method=name, weights=list(WEIGHTS), density=wanted, seed=seed)
                settings = options.settings(len(parents))
                figures[name] = compare_type(adapted, parents, settings, repeats)
                seconds, theirs = figures[name]["seconds"], figures[name]["competent_seconds"]
                tell(f"{name}: PEFT {theirs:.3g} s, ours {seconds:.3g} s")
            figures["peft_empty_adapter_seconds"] = empty_adapter_seconds(adapted, repeats.ours)
        finally:
            adapted.unload()
    return figures


def compare_type(
    adapted: PeftModel, parents: Sequence[Adapter], settings: MergeSettings, repeats: Repeats
) -> dict[str, Any]:
    """Time, memory and result of one type by all ways, which take turns: ours, PEFT's as it is called by those who know
    it (``competent``) and PEFT's defaults, which differ in the types that truncate alone. A random type draws its own
    mask while PEFT is timed; for the comparison of results PEFT merges once more, with our mask."""
    method, order = settings.method, list(parents[0].factors)
    ways: dict[str, tuple[Callable[[], Any], int]] = {
        "competent": (partial(merge_by_peft, adapted, settings), repeats.peft if method.truncates else repeats.ours),
        "ours": (partial(merge_modules, parents, settings, order), repeats.ours),
    }
    if method.truncates:
        ways["peft"] = partial(merge_by_peft, adapted, settings, whole=True), repeats.peft
    calls: dict[str, list[Call]] = {way: [] for way in ways}
    for turn in range(max(count for _, count in ways.values())):
        for way, (call, count) in ways.items():
            if turn < count:
                calls[way].append(measured(call, memory=turn == 0))
                if way != "ours":
                    found = take_merged(adapted, order)
    if method.random:
        with seeded_masks(settings.seed):
            merge_by_peft(adapted, settings)
        found = take_merged(adapted, order)
    figures = seconds_of(calls | {"peft": calls.get("peft", calls["competent"])})
    figures["relative_error"] = relative_distance(calls["ours"][0].result, found)
    if method.truncates and not method.kernel.linear:
        figures |= reconstruction(adapted, parents, settings, calls["ours"][0].result, found)
    return figures


def seconds_of(calls: Mapping[str, Sequence[Call]]) -> dict[str, Any]:
    """Medians, how many times faster ours is, and memory, of each way's calls."""
    figures: dict[str, Any] = {}
    for way, key in (("ours", ""), ("competent", "competent_"), ("peft", "peft_")):
        figures[f"{key}seconds"] = statistics.median(call.seconds for call in calls[way])
        figures[f"all_{key}seconds"] = [call.seconds for call in calls[way]]
        figures[f"{key}peak_bytes"] = calls[way][0].peak_bytes
    figures["ratio_competent"] = figures["competent_seconds"] / figures["seconds"]
    figures["ratio"] = figures["peft_seconds"] / figures["seconds"]
    return figures


def merge_by_peft(adapted: PeftModel, settings: MergeSettings, *, whole: bool = False) -> None:
    """PEFT's merge: a new adapter in the model, of the largest rank. Where it truncates, by singular value
    decompositions of as many vectors as there are values, or, with ``whole`` and by its default, of full matrices."""
    adapted.base_model.add_weighted_adapter(
        list(NAMES), list(settings.weights), MERGED, settings.method.name, density=settings.options.density,
        svd_full_matrices=whole,
    )  # fmt: skip


def empty_adapter_seconds(adapted: PeftModel, repeats: int) -> float:
    """What an adapter that nothing is merged into takes: the part of PEFT's seconds that is not merging. A median."""
    config = adapted.peft_config[NAMES[0]]
    calls = []
    for _ in range(repeats):
        calls.append(measured(partial(adapted.add_adapter, MERGED, copy.deepcopy(config)), memory=False))
        adapted.delete_adapter(MERGED)
    return statistics.median(call.seconds for call in calls)


def take_merged(adapted: PeftModel, order: Sequence[str]) -> dict[str, Factors]:
    """The factors that PEFT merged, with their scaling in them; they are taken out of the model."""
    found = {}
    for name in order:
        layer: Any = adapted.get_submodule(name)
        a, b = (getattr(layer, side)[MERGED].weight.data for side in ("lora_A", "lora_B"))
        found[name] = Factors(a, b * layer.scaling[MERGED])
    adapted.delete_adapter(MERGED)
    return found


@contextmanager
def seeded_masks(seed: int | None) -> Iterator[None]:
    """PEFT's masks come from a generator with that seed, as ours do. None: nothing is drawn."""
    if seed is None:
        yield
        return
    draw, generator = torch.bernoulli, torch.Generator().manual_seed(seed)
    with patch.object(torch, "bernoulli", lambda chances: draw(chances, generator=generator)):
        yield


def reconstruction(
    adapted: PeftModel,
    parents: Sequence[Adapter],
    settings: MergeSettings,
    ours: Mapping[str, Delta],
    theirs: Mapping[str, Factors],
) -> dict[str, float]:
    """How near both truncated results are to the dense merged delta D, which both ways must agree on.

    ``reconstruction_ratio`` is |D - ours| / |D - PEFT's| of the worst module, PEFT's being the best approximation of
    its rank; ``reconstruction_error`` is |D - ours| / |D| over all modules.
    """
    method = METHODS[settings.method.name.replace("_svd", "_dense")]
    whole = merge_modules(parents, replace(settings, method=method), list(parents[0].factors))
    kernel = getattr(merge_utils, method.kernel.name)
    ratios, merged_by_peft = [], {}
    with seeded_masks(settings.seed):
        for name in whole:
            layer: Any = adapted.get_submodule(name)
            deltas = [layer.get_delta_weight(adapter).detach() for adapter in NAMES]
            merged_by_peft[name] = kernel(deltas, torch.tensor(settings.weights), settings.options.density)
    for name, delta in whole.items():
        missed, least = ((dense(delta) - dense(cut[name])).norm().item() for cut in (ours, theirs))
        ratios.append(missed / least)
    return {
        "reconstruction_ratio": max(ratios),
        "reconstruction_error": relative_distance(ours, whole),
        "dense_relative_difference": relative_distance(whole, merged_by_peft),
    }


def dense(delta: Delta) -> Tensor:
    """[out, in] in float64."""
    return delta.b.double() @ delta.a.double() if isinstance(delta, Factors) else delta.double()


def relative_distance(one: Mapping[str, Delta], other: Mapping[str, Delta]) -> float:
    """|one - other| / |other|, Frobenius norms over all modules."""
    assert one.keys() == other.keys()
    apart = whole = 0.0
    for name, delta in other.items():
        matrix = dense(delta)
        apart += (dense(one[name]) - matrix).square().sum().item()
        whole += matrix.square().sum().item()
    return math.sqrt(apart / whole)


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
    float32 on the CPU, with the weights 0.7 and 1.2. PEFT merges by add_weighted_adapter, the whole call: it adds an
    adapter to the model. Its svd types go with svd_full_matrices=False, and once more by its default, with full
    matrices. Ours gives the merged factors. Some minutes on two cores, nearly all of them PEFT's.

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
        path: Model, such as smollm2-135m-instruct, to measure an evaluation of the balance search on: two adapters
            merged by cat and by ties and folded into its weights, and the losses of documents, beside the losses alone.
            Null for none.
        documents: Documents of about 300 tokens of that step; at least 1.
        checkpoints: Folder on a disk with room for four checkpoints (19 GB in float32 by default), to merge two full
            ones over their base by TIES, beside mergekit, if it is installed, and a bare loop that reads three and
            writes one. They are made there and deleted afterwards; those already there (base, first, second) are used
            and left. Null for none.
        layers: Layers of the checkpoints; at least 1.
        vocabulary: Words of the checkpoints; at least 1.
        dtype: Type of the checkpoints: float32, bfloat16 or float16.
    """
    config = {**locals(), "weights": WEIGHTS, "threads": torch.get_num_threads(), "device": "cpu"}
    del config["json"]
    counts = {"hidden": hidden, "intermediate": intermediate, "rank": rank, "repeats": repeats}
    counts |= {"peft_repeats": peft_repeats, "documents": documents, "layers": layers, "vocabulary": vocabulary}
    check_merging(counts, density)
    names = PEFT_TYPES if types is None else types
    if unknown := [name for name in names if name not in PEFT_TYPES]:
        raise InputError(f"must be among {', '.join(PEFT_TYPES)}, got {unknown[0]}", "types")
    if path is not None:
        resolve(path)
    sizes = Sizes(layers, hidden, intermediate, vocabulary, dtype)
    if checkpoints is not None:  # said now and not after minutes
        check_folder(Path(checkpoints), sizes)
    model = one_layer(hidden, intermediate)
    parents = random_parents(model, rank, seed)
    figures = compare_merging(model, parents, density, seed, Repeats(repeats, peft_repeats), tell, names)
    print_merging(figures)
    if path is not None:
        figures["path_step"] = compare_path_step(load_base(path), load_tokenizer(path), rank, documents, repeats, seed)
        print_beside(
            f"evaluation of the balance search ({figures['path_step']['slowest']})",
            figures["path_step"],
            "losses alone",
        )
    if checkpoints is not None:
        figures["checkpoints"] = compare_checkpoints(Path(checkpoints), sizes, density, repeats, tell)
        print_checkpoints(figures["checkpoints"])
    write_json(json, provenance(**figures, config=config))
    print(f"wrote {json}")


def check_merging(counts: dict[str, int], density: float) -> None:
    """Raise InputError for what can be told to be wrong before anything is made."""
    for name, value in counts.items():
        if value < 1:
            raise InputError(f"must be at least 1, got {value}", name)
    smallest = min(counts["hidden"], counts["intermediate"])
    if counts["rank"] >= smallest:  # at that rank nothing would be cut off
        raise InputError(f"must be below {smallest}, the smaller width, got {counts['rank']}", "rank")
    if not 0 < density < 1:
        raise InputError(f"must be in (0, 1), got {density}", "density")
    entries = counts["rank"] * smallest
    if int(density * entries) < 1:
        raise InputError(f"must keep at least one of a factor's {entries} entries, got {density}", "density")


def print_merging(figures: dict[str, Any]) -> None:
    """Print one line for each of PEFT's types."""
    heads = ("PEFT, s", "Defaults", "Ours", "Faster", "Than defaults", "From PEFT's", "Error / optimum")
    keys = ("competent_seconds", "peft_seconds", "seconds", "ratio_competent", "ratio", "relative_error")
    table = Table("Type", *heads, "PEFT, MB", "MB")
    for name in (name for name in PEFT_TYPES if name in figures):
        row = figures[name]
        peaks = [row[key] / 1e6 for key in ("competent_peak_bytes", "peak_bytes")]
        least = row.get("reconstruction_ratio")
        numbers = map(shown, (row[key] for key in keys))
        table.add_row(name, *numbers, "-" if least is None else f"{least:.6f}", *map(shown, peaks))
    Console(width=140).print(table)
    print(f"of PEFT's seconds an empty adapter takes {shown(figures['peft_empty_adapter_seconds'])}; its svd types go")
    print("with svd_full_matrices=False, and by default with full ones; MB are peak memory above what is loaded")


def print_checkpoints(figures: dict[str, Any]) -> None:
    """Print the lines of full checkpoints: beside mergekit, if it was there, and beside the bare loop."""
    name, peak = "two checkpoints over a base", f"{figures['peak_bytes'] / 1e9:.2f} GB"
    if "competent_seconds" in figures:
        beside = figures | {"bare_seconds": figures["competent_seconds"], "ratio": figures["ratio_competent"]}
        print_beside(name, beside, "mergekit")
        print(f"peak memory: {peak}, mergekit: {figures['competent_peak_bytes'] / 1e9:.2f} GB")
    else:
        print(f"mergekit is not installed, so it is left out; peak memory: {peak}")
    print_beside(name, figures, "bare loop")


def print_beside(name: str, figures: dict[str, Any], other: str) -> None:
    """Print one line: ours, what it is measured beside, and the ratio."""
    seconds, bare = shown(figures["seconds"]), shown(figures["bare_seconds"])
    print(f"{name}: {seconds} s, {other}: {bare} s, ratio {figures['ratio']:.3f}")


if __name__ == "__main__":
    run(merge)
