"""What a trial's parameters are: by the file, the seed and its number alone; with `bayes`, by the trials before it."""

import math
from collections.abc import Sequence
from random import Random
from typing import Any

from unlearn_pl.errors import InputError
from unlearn_pl.sweep.bayes import suggested
from unlearn_pl.sweep.file import SweepFile
from unlearn_pl.sweep.trial import Trial


def count(sweep: SweepFile, runs: int | None) -> int:
    """How many trials there are to be: as many as asked for, but no more than the file and its grid have."""
    size = math.prod(len(one.grid) for one in sweep.parameters) if sweep.method == "grid" else None
    limits = [limit for limit in (runs, sweep.run_cap, size) if limit is not None]
    if not limits:
        raise InputError(f"needed: {sweep.method} has no last trial, and the file has no run_cap", "runs")
    return min(limits)


def drawn(sweep: SweepFile, seed: int, number: int, known: Sequence[Trial]) -> dict[str, Any]:
    """The parameters of trial ``number`` (from 1), in the order of the file."""
    if sweep.method == "grid":
        return grid_point(sweep, number - 1)
    if sweep.method == "random":
        # of each parameter by its own name: one more in the file leaves the others as they were
        return {one.name: one.draw(Random(f"{seed}/{number}/{one.name}")) for one in sweep.parameters}
    return suggested(sweep, seed, number, known)


def grid_point(sweep: SweepFile, place: int) -> dict[str, Any]:
    """The point of a grid at a place; the last parameter changes first."""
    point = {}
    for one in reversed(sweep.parameters):
        place, index = divmod(place, len(one.grid))
        point[one.name] = one.grid[index]
    return {one.name: point[one.name] for one in sweep.parameters}
