"""Merging, ours beside PEFT's: the same two adapters by every type that PEFT has, in turn."""

import copy
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from peft import PeftModel
from peft.utils import merge_utils
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.measure import peak_bytes, reset_peak, resident_bytes, settle
from benchmarks.random_adapters import NAMES, with_peft
from unlearn_pl.merging.adapters import Adapter
from unlearn_pl.merging.factors import Delta, Factors
from unlearn_pl.merging.merge import merge_modules
from unlearn_pl.merging.methods import METHODS
from unlearn_pl.merging.options import MergeOptions, MergeSettings

Tell = Callable[[str], None]

PEFT_TYPES = (
    "linear", "cat", "svd", "ties", "ties_svd", "dare_linear", "dare_ties", "dare_linear_svd", "dare_ties_svd",
    "magnitude_prune", "magnitude_prune_svd",
)  # fmt: skip
MERGED = "merged"
# Unequal, so that exchanged or forgotten weights would show
WEIGHTS = (0.7, 1.2)
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Repeats:
    """How often each way merges; the seconds are medians."""

    ours: int = 5
    peft: int = 1
    """Of PEFT's svd types; its other types go as often as ours."""


@dataclass(frozen=True)
class Call:
    """What a call gave and took; ``peak_bytes`` is above what was in use before, None if that was not measured."""

    result: Any
    seconds: float
    peak_bytes: int | None


def measured(call: Callable[[], Any], memory: bool) -> Call:
    """Run ``call``. With ``memory``, what earlier calls have freed is given back first, so that it counts again."""
    before = 0
    if memory:
        settle()
        before = resident_bytes(CPU)
        reset_peak(CPU)
    began = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - began
    return Call(result, seconds, peak_bytes(CPU) - before if memory else None)


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
                seconds, theirs = figures[name]["seconds"], figures[name]["peft_seconds"]
                tell(f"{name}: PEFT {theirs:.3g} s, ours {seconds:.3g} s")
            figures["peft_empty_adapter_seconds"] = empty_adapter_seconds(adapted, repeats.ours)
        finally:
            adapted.unload()
    return figures


def compare_type(
    adapted: PeftModel, parents: Sequence[Adapter], settings: MergeSettings, repeats: Repeats
) -> dict[str, Any]:
    """Time, memory and result of one type by both ways, which take turns. A random type draws its own mask while PEFT
    is timed; for the comparison of results PEFT merges once more, with our mask."""
    method, order = settings.method, list(parents[0].factors)
    add = partial(merge_by_peft, adapted, settings)
    merge = partial(merge_modules, parents, settings, order)
    theirs: list[Call] = []
    ours: list[Call] = []
    of_peft = repeats.peft if method.truncates else repeats.ours
    for turn in range(max(of_peft, repeats.ours)):
        if turn < of_peft:
            theirs.append(measured(add, memory=turn == 0))
            found = take_merged(adapted, order)
        if turn < repeats.ours:
            ours.append(measured(merge, memory=turn == 0))
    if method.random:
        with seeded_masks(settings.seed):
            add()
        found = take_merged(adapted, order)
    seconds, peft_seconds = (statistics.median(call.seconds for call in calls) for calls in (ours, theirs))
    figures = {
        "seconds": seconds,
        "peft_seconds": peft_seconds,
        "ratio": peft_seconds / seconds,
        "relative_error": relative_distance(ours[0].result, found),
        "all_seconds": [call.seconds for call in ours],
        "all_peft_seconds": [call.seconds for call in theirs],
        "peak_bytes": ours[0].peak_bytes,
        "peft_peak_bytes": theirs[0].peak_bytes,
    }
    if method.truncates and not method.kernel.linear:
        figures |= reconstruction(adapted, parents, settings, ours[0].result, found)
    return figures


def merge_by_peft(adapted: PeftModel, settings: MergeSettings) -> None:
    """PEFT's merge as it is called: a new adapter in the model, of the largest rank, by full singular value
    decompositions where it truncates (``svd_full_matrices``)."""
    adapted.base_model.add_weighted_adapter(
        list(NAMES), list(settings.weights), MERGED, settings.method.name, density=settings.options.density
    )


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
