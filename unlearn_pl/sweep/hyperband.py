"""Hyperband: which trials end before their end, by W&B's rule for `early_terminate`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from unlearn_pl.errors import InputError
from unlearn_pl.sweep.parameter import is_number, told

KEYS = {"type", "min_iter", "max_iter", "s", "eta", "strict"}
MOST_BANDS = 100
MOST_MEASUREMENTS = 1e9


@dataclass(frozen=True, kw_only=True)
class Hyperband:
    """At each band, a number of measurements, a trial ends that is not among the best 1/``eta`` of those that came so
    far."""

    bands: Sequence[int]
    """In rising order."""
    eta: float
    strict: bool = False
    """Judge a trial by its score at the band, not by its best so far."""

    def ends(self, history: Sequence[float], histories: Sequence[Sequence[float]]) -> bool:
        """Whether the trial with this ``history`` is to end; ``histories`` are those of all trials, also its own. All
        are such that lower is better."""
        reached = [band for band in self.bands if band <= len(history)]
        if not reached:
            return False
        rivals = sorted(one[reached[-1] - 1] for one in histories if len(one) >= reached[-1])
        threshold = rivals[min(int(len(rivals) / self.eta), len(rivals) - 1)]
        return (history[reached[-1] - 1] if self.strict else min(history)) > threshold


def hyperband_of(given: Any) -> Hyperband:
    """That of a sweep file's ``early_terminate``. Raises InputError for what it cannot do."""
    place = "early_terminate"
    if not isinstance(given, dict) or given.get("type") != "hyperband":
        raise InputError(f"must be a mapping with type: hyperband, got {given!r:.80}", place)
    if unknown := {*given} - KEYS:
        raise InputError(f"takes {', '.join(sorted(KEYS))}, got {told(unknown)}", place)
    eta, strict = given.get("eta", 3), given.get("strict", False)
    if not is_number(eta) or eta <= 1:
        raise InputError(f"must be a number above 1, got {eta!r:.80}", f"{place}.eta")
    if not isinstance(strict, bool):
        raise InputError(f"must be true or false, got {strict!r:.80}", f"{place}.strict")
    return Hyperband(bands=bands_of(given, eta, place), eta=eta, strict=strict)


def bands_of(given: dict[str, Any], eta: float, place: str) -> list[int]:
    """The numbers of measurements at which trials are compared."""
    if ("min_iter" in given) == ("max_iter" in given):
        raise InputError("needs either min_iter, or max_iter and s", place)
    for key in ("min_iter", "max_iter", "s"):
        if key in given and (not is_number(given[key]) or given[key] < 1):
            raise InputError(f"must be a number of at least 1, got {given[key]!r}", f"{place}.{key}")
    if "min_iter" in given:
        return powers(given["min_iter"], eta, MOST_BANDS)
    if "s" not in given:
        raise InputError("needed beside max_iter", f"{place}.s")
    bands = powers(given["max_iter"] / eta, 1 / eta, min(int(given["s"]), MOST_BANDS))
    if not bands:
        raise InputError(f"leaves nothing of max_iter {given['max_iter']}; take a smaller eta", f"{place}.eta")
    return bands


def powers(first: float, factor: float, count: int) -> list[int]:
    """Whole numbers in rising order: ``first``, ``first`` times ``factor`` and so on, as long as that is a number of
    measurements."""
    found: set[int] = set()
    for _ in range(count):
        if not 1 <= first <= MOST_MEASUREMENTS:
            break
        found.add(int(first))
        first *= factor
    return sorted(found)
