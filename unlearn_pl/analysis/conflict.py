"""What a merge method meets in the adapters: entries of opposite sign, and how much its pruning takes away."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from unlearn_pl.merging.adapters import Adapter
from unlearn_pl.merging.coefficients import BLOCK
from unlearn_pl.merging.options import MergeSettings


class Conflict(NamedTuple):
    """Of some adapted modules together, in the space of the method (factors, or deltas)."""

    signs: float
    """Share in [0, 1], of the entries that after pruning are not 0 in at least two adapters, where two signs differ; 0
    if there are none."""
    trimmed: float
    """Share in [0, 1] of the sum of magnitudes that pruning set to zero; 0 for methods that do not prune."""


class Counts(NamedTuple):
    """The same of the tensors that are merged with each other, before it is divided."""

    shared: int
    """Entries that after pruning are not 0 in at least two adapters."""
    differing: int
    """Those of them where two signs differ."""
    mass: float
    """Sum of magnitudes before pruning."""
    kept: tuple[float, ...]
    """Sum of magnitudes after it, of each adapter."""


def measure_conflict(parents: Sequence[Adapter], settings: MergeSettings, order: Iterable[str]) -> Conflict:
    """See `Conflict`, of all modules of ``order``."""
    return conflict_of(counts for _, counts in count_conflicts(parents, settings, order))


def conflict_of(parts: Iterable[Counts]) -> Conflict:
    """What the counts of several tensors come to."""
    shared = differing = 0
    mass = kept = 0.0
    for part in parts:
        shared, differing, mass = shared + part.shared, differing + part.differing, mass + part.mass
        for one in part.kept:
            kept += one
    return Conflict(differing / max(shared, 1), 1 - kept / mass if mass else 0.0)


def count_conflicts(
    parents: Sequence[Adapter], settings: MergeSettings, order: Iterable[str]
) -> Iterator[tuple[str, Counts]]:
    """Module and counts of each tensors that are merged with each other; random methods prune as `merge_modules` does
    with the same settings and order."""
    generator = None if settings.seed is None else torch.Generator().manual_seed(settings.seed)
    for name in order:
        for tensors in _tensors(parents, settings, name):
            yield name, _counts(tensors, settings, generator)


def _counts(tensors: list[Tensor], settings: MergeSettings, generator: torch.Generator | None) -> Counts:
    before = [tensor.clone() for tensor in tensors]
    if settings.method.kernel.prune is not None:
        settings.method.kernel.prune(tensors, settings.options, generator)
    mass = sum(tensor.abs().sum(dtype=torch.float64).item() for tensor in before)
    kept = tuple(
        whole.mul_(tensor != 0).abs().sum(dtype=torch.float64).item()
        for tensor, whole in zip(tensors, before, strict=True)
    )
    shared = differing = 0
    for blocks in zip(*(tensor.view(-1).split(BLOCK) for tensor in tensors), strict=True):
        signs = torch.stack([block.sign() for block in blocks])
        several = signs.abs().sum(dim=0) >= 2
        shared += int(several.sum())
        differing += int((several & (signs.sum(dim=0).abs() < signs.abs().sum(dim=0))).sum())
    return Counts(shared, differing, mass, kept)


def _tensors(parents: Sequence[Adapter], settings: MergeSettings, name: str) -> list[list[Tensor]]:
    """What is merged with each other in one module: the A and the B factors, or the deltas."""
    pairs = [parent.factors[name] for parent in parents]
    if settings.method.space == "factors":
        return [[pair[side].float().clone() for pair in pairs] for side in (0, 1)]
    return [
        [(pair.b.float() @ pair.a.float()) * parent.scaling[name] for pair, parent in zip(pairs, parents, strict=True)]
    ]
