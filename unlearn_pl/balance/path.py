"""Paths between an over- and an under-forgetting adapter: a point on one is a merge of the two."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from unlearn_pl.merging.adapters import Adapter, check_shared_start, check_sizes
from unlearn_pl.merging.factors import Delta, norm, scaled
from unlearn_pl.merging.merge import MergedAdapter, merge_modules
from unlearn_pl.merging.methods import find_method
from unlearn_pl.merging.options import MergeOptions, MergeSettings

EXACT = "cat"
LEAST_MIX = 0.02
"""Methods that elect signs count an adapter however small its weight, so they are not asked for less than this."""


@dataclass(frozen=True)
class Point:
    """One merge of the two adapters."""

    mix: float
    """Share of the under-forgetting adapter, in [0, 1]: the weights are 1 - mix and mix."""
    scale: float = 1.0
    """Size of the delta, as a multiple of the exact interpolation (1 - mix) D_over + mix D_under at the same mix."""
    method: str = EXACT
    """A name of `METHODS`. Another method than `cat` gets the norm of the interpolation, so that methods are compared
    and not their scales."""
    density: float | None = None
    """Share of the entries that the method keeps; None for its default."""
    shifts: tuple[float, ...] = ()
    """What is added to the mix in each group of layers, from the first layers to the last; none for no groups."""

    def mixes(self) -> list[float]:
        """The mix of each group, one if there are none."""
        low = LEAST_MIX if find_method(self.method).kernel.elects_sign else 0.0
        return [min(max(self.mix + shift, low), 1 - low) for shift in self.shifts or (0.0,)]

    @property
    def identity(self) -> tuple[Any, ...]:
        """Equal for points that are one merge in other words: shifts beyond a mix of 0 or 1, or groups of one mix."""
        mixes = tuple(round(mix, 12) for mix in self.mixes())
        if find_method(self.method) is find_method(EXACT) and len(set(mixes)) == 1:
            mixes = mixes[:1]  # other methods get the norm of each group for itself
        return self.method, self.density, self.scale, mixes

    def facts(self) -> dict[str, Any]:
        """The point, ready for JSON."""
        return asdict(self) | {"shifts": list(self.shifts), "weights": [[1 - mix, mix] for mix in self.mixes()]}


@dataclass(frozen=True)
class MergePath:
    """All merges of two adapters that have been read and checked."""

    over: Adapter
    under: Adapter
    order: tuple[str, ...]
    """The adapted modules in the order of the base's."""
    seed: int = 42
    """Of the random pruning of the methods that have it."""

    @property
    def parents(self) -> tuple[Adapter, Adapter]:
        return self.over, self.under

    def check(self, method: str, density: float | None) -> None:
        """Raise InputError if the adapters cannot be merged by this method."""
        settings = self.settings(Point(0.5, method=method, density=density), 0.5)
        check_sizes(self.parents, settings)
        if settings.method.space == "factors":
            check_shared_start(self.parents)

    def settings(self, point: Point, mix: float) -> MergeSettings:
        """Those of the merge at one mix, before it is brought to its norm."""
        weights = [1 - mix, mix] if find_method(point.method).kernel.takes_weights else None
        options = MergeOptions(method=point.method, weights=weights, density=point.density, seed=self.seed)
        return options.settings(2)

    def merge(self, point: Point) -> tuple[dict[str, Delta], list[float]]:
        """The deltas at a point, and the scale that each group's merge was given."""
        deltas: dict[str, Delta] = {}
        scales = []
        for modules, mix in zip(self.groups(len(point.shifts) or 1), point.mixes(), strict=True):
            part = self._merge_group(modules, self.settings(point, mix))
            scale = point.scale
            if find_method(point.method) is not find_method(EXACT):
                exact = self._merge_group(modules, self.settings(Point(mix), mix))
                scale *= norm(exact) / (norm(part) or 1.0)
            deltas |= {name: scaled(delta, scale) for name, delta in part.items()}
            scales.append(scale)
        return deltas, scales

    def merged(self, point: Point, base: str) -> MergedAdapter:
        """The merge at a point, ready to be written."""
        deltas, scales = self.merge(point)
        settings = [
            replace(self.settings(point, mix), scale=scale)
            for mix, scale in zip(point.mixes(), scales, strict=True)
        ]  # fmt: skip
        groups = [
            {"layers": self._layers(modules), "weights": list(one.weights), "scale": one.scale}
            for modules, one in zip(self.groups(len(settings)), settings, strict=True)
        ]
        facts = {"balance": point.facts()} | ({"groups": groups} if len(groups) > 1 else {})
        return MergedAdapter(
            base=base, adapters=self.parents, settings=settings[0], deltas=deltas, more_facts=facts
        )  # fmt: skip

    def groups(self, count: int) -> list[list[str]]:
        """The modules in ``count`` groups of neighbouring layers, of nearly equal size; at most one a layer."""
        numbers = sorted(set(self._numbers.values()))
        assert 1 <= count <= len(numbers)
        place = {number: index * count // len(numbers) for index, number in enumerate(numbers)}
        return [[name for name in self.order if place[self._numbers[name]] == group] for group in range(count)]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        """Module -> layer; a module outside of the layers counts to the first."""
        found = {name: re.search(r"\.(\d+)\.", name) for name in self.order}
        return {name: int(match[1]) if match else 0 for name, match in found.items()}

    @property
    def layers(self) -> int:
        """How many layers are adapted."""
        return len(set(self._numbers.values()))

    def _layers(self, modules: Sequence[str]) -> list[int]:
        return sorted({self._numbers[name] for name in modules})

    def _merge_group(self, modules: Sequence[str], settings: MergeSettings) -> dict[str, Delta]:
        parts = [
            replace(parent, factors={name: parent.factors[name] for name in modules}) for parent in self.parents
        ]  # fmt: skip
        return merge_modules(parts, settings, modules)
