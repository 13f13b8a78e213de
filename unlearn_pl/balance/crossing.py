"""Where a curve that is costly to evaluate is at a level, with a cheap guess of it that says where to look.

The curve is asked at places 0, 1, ..., n. A value that is not finite is on neither side of the level.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

# Every so many measurements the gap is halved: where the curve jumps, guesses creep
HALVING = 3
# Of a gap between two measured places, the least share on either side of the next one
MARGIN = 0.1


def find_crossings(
    curve: Callable[[int], float],
    guess: Callable[[], Sequence[float]],
    known: Mapping[int, float],
    level: float = 0.5,
    *,
    tolerance: float,
    evaluations: int,
) -> list[int]:
    """The measured places, in order, where the curve is within ``tolerance`` of the ``level``: of those between which
    it is not expected to leave it, that which is nearest. At most ``evaluations`` are measured beside those ``known``.

    ``guess`` gives the curve at all places, from all that was measured so far. It is measured wherever the guess is at
    the level and no measured place is; a curve that comes to the level and leaves it between two such guesses is not
    seen. Where all places are on one side of the level, the two ends are measured before it is given up.
    """
    values = dict(known)
    for turn in range(evaluations):
        place = next_place(values, guess(), level, tolerance, halve=turn % HALVING == HALVING - 1)
        if place is None:
            break
        values[place] = curve(place)
    offsets = _offsets(values, guess(), level)
    runs = [[place for place in run if place in values] for run in _runs(offsets, tolerance)]
    return [min(run, key=lambda place: abs(offsets[place])) for run in runs if run]


def next_place(
    values: Mapping[int, float], guessed: Sequence[float], level: float, tolerance: float, *, halve: bool = False
) -> int | None:
    """Where to measure next, None if there is nothing more to be found. ``halve``: in the middle of the gap between the
    measured places on the two sides, so that a guess that is wrong again and again cannot go on for ever."""
    offsets = _offsets(values, guessed, level)
    for place in _meetings(offsets, tolerance, values):
        below = max((one for one in values if one < place), default=None)
        above = min((one for one in values if one > place), default=None)
        if not all(math.isfinite(values[one]) for one in (below, above) if one is not None):
            continue
        if below is None or above is None:
            return place
        margin = max(1, int(MARGIN * (above - below)))
        return (below + above) // 2 if halve else min(max(place, below + margin), above - margin)
    near = any(abs(value - level) <= tolerance for value in values.values())
    if near or {value > level for value in values.values() if math.isfinite(value)} == {True, False}:
        return None  # a crossing, or a jump
    ends = [place for place in (0, len(guessed) - 1) if place not in values]
    return min(ends, key=lambda place: abs(offsets[place]), default=None)


def _offsets(values: Mapping[int, float], guessed: Sequence[float], level: float) -> list[float]:
    """How far from the level the curve is at each place, as measured or else as guessed."""
    return [values.get(place, guess) - level for place, guess in enumerate(guessed)]


def _runs(offsets: Sequence[float], tolerance: float) -> list[range]:
    """The places within the tolerance, neighbours together."""
    runs: list[range] = []
    for place, offset in enumerate(offsets):
        if abs(offset) <= tolerance:
            follows = bool(runs) and runs[-1].stop == place
            runs.append(range(runs.pop().start if follows else place, place + 1))
    return runs


def _meetings(offsets: Sequence[float], tolerance: float, known: Mapping[int, float]) -> list[int]:
    """Places that are not ``known`` where a curve is at its level: the middle of each run within the tolerance that has
    no known place, and the nearer side of each jump over it."""
    found = [(run.start + run.stop - 1) // 2 for run in _runs(offsets, tolerance) if known.keys().isdisjoint(run)]
    for place, (one, other) in enumerate(pairwise(offsets)):
        sides = {side: offset for side, offset in ((place, one), (place + 1, other)) if side not in known}
        if one * other < 0 and min(abs(one), abs(other)) > tolerance and sides:
            found.append(min(sides, key=lambda side: abs(sides[side])))
    return sorted(found)
