"""Several ways of the same work, timed in turn within one process."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

Tell = Callable[[str], None]
Calls = dict[str, list[Callable[[], Any]]]
"""Way -> what it does, in parts that are timed one by one."""


@dataclass
class Side:
    """What one way gave in one round, and the seconds it took, part by part."""

    results: list[Any] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


Round = dict[str, dict[str, Side]]
"""Kind of work -> way -> its side."""


def take_turns(calls: Calls, device: torch.device, swapped: bool, tell: Tell | None = None) -> dict[str, Side]:
    """The first part of every way, then the second, ...; the order turns round each time. ``swapped``: the last way
    begins."""
    sides = {way: Side() for way in calls}
    for part in range(max(map(len, calls.values()))):
        for way in list(calls)[::-1] if (part % 2 == 1) != swapped else list(calls):
            if part >= len(calls[way]):
                continue
            result, seconds = timed(calls[way][part], device)
            sides[way].results.append(result)
            sides[way].seconds.append(seconds)
            if tell is not None:
                tell(f"{way}, part {part + 1} of {len(calls[way])}: {seconds:.1f} s")
    return sides


def timed(call: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    """What ``call`` gives, and its seconds until the device has done it all."""
    finish = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    finish()
    began = time.perf_counter()
    result = call()
    finish()
    return result, time.perf_counter() - began


def time_figures(done: Sequence[Round], ratios: Mapping[str, tuple[str, Sequence[str]]]) -> dict[str, Any]:
    """Times faster, median over rounds, with its range, and all seconds behind it.

    ``ratios`` is name -> (kind of work, the ways that ours is compared with; the fastest of them in each round counts).
    """
    figures: dict[str, Any] = {"ranges": {}}
    for name, (kind, ways) in ratios.items():
        found = [min(total(sides[kind][way]) for way in ways) / total(sides[kind]["ours"]) for sides in done]
        figures[name] = statistics.median(found)
        figures["ranges"][name] = [min(found), max(found)]
    raw = [{kind: {way: side.seconds for way, side in sides.items()} for kind, sides in one.items()} for one in done]
    seconds: dict[str, dict[str, float]] = {}
    for kind, sides in done[0].items():
        for way in sides:
            seconds.setdefault(way, {})[kind] = statistics.median(total(one[kind][way]) for one in done)
    return figures | {"rounds": len(done), "seconds": seconds, "part_seconds": raw}


def total(side: Side) -> float:
    """Seconds of all parts."""
    return sum(side.seconds)
