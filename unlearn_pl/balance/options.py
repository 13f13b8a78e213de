"""Where to search for a balanced merge."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product

from unlearn_pl.balance.path import Ray
from unlearn_pl.errors import InputError, check_distinct
from unlearn_pl.merging.methods import find_method


def check_densities(densities: Sequence[float] | None) -> None:
    """Raise InputError unless all are in (0, 1]: in a recipe the merges come after hours of training."""
    for density in densities or ():
        if not 0 < density <= 1:
            raise InputError(f"must be in (0, 1], got {density}", "densities")


@dataclass(frozen=True, kw_only=True)
class BalanceOptions:
    """Where to search for the merge with a membership AUC of one half."""

    methods: list[str] = field(default_factory=lambda: ["cat", "ties"])
    """Merge methods (`unlearn-pl merge --list`); cat is the exact interpolation of the two deltas."""
    scales: list[float] = field(default_factory=lambda: [0.75, 1.0, 1.25])
    """Sizes of the merged delta, as multiples of the interpolation's; above 0."""
    densities: list[float] | None = None
    """Densities to try with the methods that prune, in (0, 1]; the default density alone without it."""
    grid: int = 5
    """Coefficients (shares of the under-forgetting adapter) from 0 to 1 at which the AUC is measured first, on the path
    whose scale is nearest to 1; at least 2. What the documents' losses are there says where to look on all others."""
    evaluations: int = 8
    """Further measurements at most on each path; at least 1. None is taken where a merge is near enough to one
    half."""
    tolerance: float = 0.01
    """A crossing is found when the AUC is this near to one half, or within half a step of it; in (0, 0.5)."""
    splits: int = 3
    """Splits of the documents into calibration and held-out halves: the search runs on the first, the method and scale
    found are calibrated again on each other one, to see how far the result depends on the split; at least 1."""
    groups: int = 1
    """Groups of neighbouring layers that get a coefficient of their own in the end; 1 for one coefficient in all."""

    def __post_init__(self) -> None:
        for name, least in (("grid", 2), ("evaluations", 1), ("splits", 1), ("groups", 1)):
            if getattr(self, name) < least:
                raise InputError(f"must be at least {least}, got {getattr(self, name)}", name)
        for name in ("methods", "scales", "densities"):
            if getattr(self, name) == []:
                raise InputError("at least one is needed, got none", name)
            check_distinct(getattr(self, name), name)
        for scale in self.scales:
            if not 0 < scale < math.inf:
                raise InputError(f"must be above 0 and finite, got {scale}", "scales")
        check_densities(self.densities)
        if not 0 < self.tolerance < 0.5:
            raise InputError(f"must be in (0, 0.5), got {self.tolerance}", "tolerance")
        for method in self.methods:
            if find_method(method, argument="methods").form == "dense":
                raise InputError(f"{method} gives no adapter; its _svd form does", "methods")

    def rays(self) -> list[Ray]:
        """The paths that are searched: every method at every scale and, if it prunes, every density."""
        rays = []
        for method, scale in product(self.methods, self.scales):
            densities = self.densities if self.densities and Ray(method).prunes else [None]
            rays += [Ray(method, scale, density) for density in densities]
        return rays
