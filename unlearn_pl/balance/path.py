"""Paths between an over- and an under-forgetting adapter: a point on one is a merge of the two."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from unlearn_pl.errors import InputError, check_distinct
from unlearn_pl.merging.adapters import Adapter, check_base, check_shared_start, check_sizes, read_adapters
from unlearn_pl.merging.factors import Delta, norm, scaled
from unlearn_pl.merging.merge import MergedAdapter, merge_modules
from unlearn_pl.merging.methods import find_method
from unlearn_pl.merging.options import MergeOptions, MergeSettings
from unlearn_pl.models.adapter_folder import PREFIX

EXACT = "cat"
LEAST_COEFFICIENT = 0.02
"""Methods that elect signs count an adapter however small its weight, so they are not asked for less than this."""


@dataclass(frozen=True)
class Ray:
    """A way from the over- to the under-forgetting adapter: how the two are merged, but not their shares."""

    method: str = EXACT
    """A name of `METHODS`. Another method than `cat` gets the norm of the interpolation, so that methods are compared
    and not their scales."""
    scale: float = 1.0
    """Size of the delta, as a multiple of the exact interpolation (1 - c) D_over + c D_under at the same coefficient
    c."""
    density: float | None = None
    """Share of the entries that the method keeps; None for its default."""

    @property
    def least(self) -> float:
        """The smallest coefficient of either adapter."""
        return LEAST_COEFFICIENT if find_method(self.method).kernel.elects_sign else 0.0

    @property
    def prunes(self) -> bool:
        """Whether the method takes a density."""
        return "density" in find_method(self.method).kernel.parameters


@dataclass(frozen=True)
class Point:
    """One merge of the two adapters."""

    ray: Ray
    coefficient: float
    """Share of the under-forgetting adapter, in [0, 1]: the weights are 1 - coefficient and coefficient."""
    offsets: tuple[float, ...] = ()
    """What is added to the coefficient in each group of layers, from the first layers to the last; none for no
    groups."""

    def coefficients(self) -> list[float]:
        """The coefficient of each group, one if there are none."""
        least = self.ray.least
        return [min(max(self.coefficient + offset, least), 1 - least) for offset in self.offsets or (0.0,)]

    def shares(self, groups: int) -> list[float]:
        """Of each of so many groups how much of either adapter is in it, at the scale: where the point is among all."""
        coefficients = self.coefficients() if self.offsets else self.coefficients() * groups
        return [self.ray.scale * share for one in coefficients for share in (1 - one, one)]

    @property
    def identity(self) -> tuple[Ray, tuple[float, ...]]:
        """Equal for points that are one merge in other words: offsets beyond a coefficient of 0 or 1, or groups of one
        coefficient."""
        coefficients = tuple(round(one, 12) for one in self.coefficients())
        if self.ray.method == EXACT and len(set(coefficients)) == 1:
            coefficients = coefficients[:1]  # other methods get the norm of each group for itself
        return self.ray, coefficients

    def __str__(self) -> str:
        """The point in a few words."""
        density = "" if self.ray.density is None else f", density {self.ray.density:g}"
        offsets = f", offsets {' '.join(f'{offset:+g}' for offset in self.offsets)}" if self.offsets else ""
        return f"{self.ray.method} coefficient {self.coefficient:.4f} scale {self.ray.scale:g}{density}{offsets}"

    def to_json(self) -> dict[str, Any]:
        """The point as the files have it."""
        return {
            "mix": self.coefficient,
            "scale": self.ray.scale,
            "method": self.ray.method,
            "density": self.ray.density,
            "shifts": list(self.offsets),
            "weights": [[1 - one, one] for one in self.coefficients()],
        }


OVER, UNDER = Point(Ray(), 0.0), Point(Ray(), 1.0)
"""The two adapters alone."""


@dataclass(frozen=True)
class MergePath:
    """All merges of two adapters that have been read and checked."""

    base: str
    """Name of the base model, for the configuration of a merged adapter."""
    over: Adapter
    under: Adapter
    order: tuple[str, ...]
    """The adapted modules in the order of the base's."""
    seed: int = 42
    """Of the random pruning of the methods that have it."""

    @property
    def parents(self) -> tuple[Adapter, Adapter]:
        return self.over, self.under

    @property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of the weights of both adapters."""
        return {"over": self.over.sha256, "under": self.under.sha256}

    def check(self, ray: Ray) -> None:
        """Raise InputError if the adapters cannot be merged by this method."""
        settings = self.settings(ray, 0.5)
        check_sizes(self.parents, settings)
        if settings.method.space == "factors":
            check_shared_start(self.parents)

    def settings(self, ray: Ray, coefficient: float | None = None) -> MergeSettings:
        """Those of the merge at one coefficient (None: of weights 1 and 1), before it is brought to its norm."""
        weighted = coefficient is not None and find_method(ray.method).kernel.takes_weights
        weights = [1 - coefficient, coefficient] if coefficient is not None and weighted else None
        options = MergeOptions(method=ray.method, weights=weights, density=ray.density, seed=self.seed)
        return options.settings(2)

    def merge(self, point: Point) -> tuple[dict[str, Delta], list[float]]:
        """The deltas [out, in] at a point, and the scale that each group's merge was given."""
        deltas: dict[str, Delta] = {}
        scales = []
        for modules, coefficient in zip(self.groups(len(point.offsets) or 1), point.coefficients(), strict=True):
            part = self._merge_group(modules, self.settings(point.ray, coefficient))
            scale = point.ray.scale
            if point.ray.method != EXACT:
                exact = self._merge_group(modules, self.settings(Ray(), coefficient))
                scale *= norm(exact) / (norm(part) or 1.0)
            deltas |= {name: scaled(delta, scale) for name, delta in part.items()}
            scales.append(scale)
        return deltas, scales

    def merge_plainly(self, ray: Ray) -> dict[str, Delta]:
        """The deltas [out, in] of weights 1 and 1, at the scale that the method's definition gives them."""
        return merge_modules(self.parents, self.settings(ray), self.order)

    def merged(self, point: Point) -> MergedAdapter:
        """The merge at a point, ready to be written."""
        deltas, scales = self.merge(point)
        settings = [
            replace(self.settings(point.ray, coefficient), scale=scale)
            for coefficient, scale in zip(point.coefficients(), scales, strict=True)
        ]
        groups = [
            {"layers": self._layers(modules), "weights": list(one.weights), "scale": one.scale}
            for modules, one in zip(self.groups(len(settings)), settings, strict=True)
        ]
        facts = {"balance": point.to_json()} | ({"groups": groups} if len(groups) > 1 else {})
        return MergedAdapter(
            base=self.base, adapters=self.parents, settings=settings[0], deltas=deltas, more_facts=facts
        )

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
        parts = [replace(parent, factors={name: parent.factors[name] for name in modules}) for parent in self.parents]
        return merge_modules(parts, settings, modules)


def open_path(base: PreTrainedModel, adapters: Sequence[str | Path], seed: int = 42) -> MergePath:
    """The merges of the over- and the under-forgetting adapter (folders, in this order).

    Raises InputError unless there are two adapters, and as `read_adapters` and `check_base` do.
    """
    if len(adapters) != 2:
        raise InputError(f"two are needed, the over- and the under-forgetting one, got {len(adapters)}", "adapters")
    check_distinct([str(Path(adapter).expanduser().resolve()) for adapter in adapters], "adapters")
    # what any method needs; each method asks for more when it is used
    over, under = read_adapters(adapters, MergeOptions(method=EXACT).settings(2))
    check_base(base, [over, under])
    order = [PREFIX + name for name, _ in base.named_modules() if PREFIX + name in over.factors]
    return MergePath(base.name_or_path, over, under, tuple(order), seed)
