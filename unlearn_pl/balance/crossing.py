"""Where a curve that is costly to evaluate crosses a level: bracketed root search without any assumption of order.

A value that is not finite is on neither side of the level.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Crossing:
    """A place where a curve meets its level."""

    at: float
    value: float
    reached: bool
    """False if the curve changes sides here without a value within the tolerance, and by more than one step: it jumps,
    or the budget ran out."""


def find_crossings(
    curve: Callable[[float], float],
    grid: Sequence[float],
    level: float = 0.5,
    *,
    tolerance: float = 0.01,
    evaluations: int = 8,
    step: float = 0.0,
) -> list[Crossing]:
    """Every crossing of ``level`` that ``grid`` (ascending) shows, in order: at a grid point within ``tolerance``, and
    between two neighbours on different sides of the level, where at most ``evaluations`` further values are taken, none
    once the values on the two sides differ by no more than ``step``, the least by which the curve can change.

    A curve that leaves a side and comes back between two neighbours is not seen: a finer grid would show it.
    """
    values = [curve(place) for place in grid]
    near = [abs(value - level) <= tolerance for value in values]
    found = []
    for index, (place, value) in enumerate(zip(grid, values, strict=True)):
        if near[index]:
            found.append(Crossing(place, value, reached=True))
        if index + 1 < len(grid) and not near[index] and not near[index + 1] and _finite(*values[index : index + 2]):
            ends = ((place, value), (grid[index + 1], values[index + 1]))
            if (value < level) != (values[index + 1] < level):
                found.append(refine(curve, ends, level, tolerance=tolerance, evaluations=evaluations, step=step))
    found = [one for index, one in enumerate(found) if not index or one.at != found[index - 1].at]  # ends are shared
    assert all(one.at < other.at for one, other in pairwise(found))
    return found


def refine(
    curve: Callable[[float], float],
    ends: tuple[tuple[float, float], tuple[float, float]],
    level: float,
    *,
    tolerance: float,
    evaluations: int,
    step: float = 0.0,
) -> Crossing:
    """The crossing between two (place, value) on different sides of ``level``.

    Straight-line steps and halving in turn: the AUC of few documents moves in steps, on which straight lines alone
    creep.
    """
    (low, low_value), (high, high_value) = ends
    assert (low_value < level) != (high_value < level)
    assert evaluations >= 1
    tried: list[tuple[float, float]] = []
    least = step * (1 + 1e-9)  # whatever the quotients round to
    for turn in range(evaluations):
        if abs(high_value - low_value) <= least:
            break
        share = (level - low_value) / (high_value - low_value) if turn % 2 == 0 else 0.5
        place = low + (high - low) * min(max(share, 0.1), 0.9)
        value = curve(place)
        if not _finite(value):
            break
        tried.append((place, value))
        if abs(value - level) <= tolerance:
            break
        if (value < level) == (low_value < level):
            low, low_value = place, value
        else:
            high, high_value = place, value
    best = min([*tried, (low, low_value), (high, high_value)], key=lambda one: abs(one[1] - level))
    return Crossing(*best, abs(best[1] - level) <= tolerance or abs(high_value - low_value) <= least)


def _finite(*values: float) -> bool:
    return all(map(math.isfinite, values))
