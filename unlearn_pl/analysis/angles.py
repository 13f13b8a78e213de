"""Directions of training: the angles between the weight displacements before and after a pivot step.

ZJUKLAB (arXiv 2503.21088) looks at the displacements 0 -> 165, 165 -> final and 0 -> final. Here they are
measured in factor space (all entries of A and B as one vector) and in delta space (scaling * B A).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from unlearn_pl.analysis.layers import by_layer
from unlearn_pl.errors import InputError
from unlearn_pl.merging.factors import Factors, angle_degrees, factors_of, inner

# A displacement by the positions of its two ends among the snapshots (start, pivot, final).
MOVES = {"before": (0, 1), "after": (1, 2), "total": (0, 2)}
ANGLES = (("before", "after"), ("before", "total"), ("after", "total"))


def angle_report(
    states: Sequence[Mapping[str, Tensor]], steps: Sequence[int], scaling: float | Mapping[str, float] = 1.0
) -> dict[str, Any]:
    """Norms and angles of the displacements between three snapshots of one adapter.

    ``states`` hold the factors at the start, the pivot and the end, ``steps`` are their optimizer steps, ``scaling``
    is alpha / rank, or that number by module name.

    Returns ``{"steps": [0, 165, 700], "factors": {"overall": G, "layers": {"0": G, ...}}, "delta": ...}``, JSON-ready.
    G has ``norms`` of ``before`` (start to pivot), ``after`` (pivot to end) and ``total`` (start to end), and
    ``angles`` in degrees, [0, 180], of ``before_after``, ``before_total`` and ``after_total``; an angle with a zero
    vector is None. Since total = before + after, the last two angles add up to the first. The layer of a module is
    the first number in its name; modules without one are under ``other``.

    Raises InputError if the snapshots are not three, differ in modules or shapes, or hold NaN or infinities.
    """
    paths = snapshot_paths(states, steps)
    scales = scaling if isinstance(scaling, Mapping) else dict.fromkeys(paths, scaling)
    return {
        "steps": [int(step) for step in steps],
        "factors": _summary({module: factor_products(path) for module, path in paths.items()}),
        "delta": _summary({module: delta_products(path, scales[module]) for module, path in paths.items()}),
    }


def snapshot_paths(states: Sequence[Mapping[str, Tensor]], steps: Sequence[int]) -> dict[str, list[Factors]]:
    """For each module its factors at the three snapshots, in float64."""
    if len(states) != 3 or len(steps) != 3:
        raise InputError(f"need 3 snapshots and 3 steps, got {len(states)} and {len(steps)}", "states")
    snapshots = [factors_of(state, f"snapshot at step {step}") for state, step in zip(states, steps, strict=True)]
    shapes = [{module: (f.a.shape, f.b.shape) for module, f in snapshot.items()} for snapshot in snapshots]
    if any(shape != shapes[0] for shape in shapes):
        raise InputError(f"the snapshots at steps {list(steps)} differ in modules or shapes", "states")
    for state, step in zip(states, steps, strict=True):
        bad = [name for name, value in state.items() if not value.isfinite().all()]
        if bad:
            raise InputError(f"the snapshot at step {step} has NaN or infinite numbers in {bad[0]}", "states")
    return {m: [Factors(s[m].a.double(), s[m].b.double()) for s in snapshots] for m in snapshots[0]}


def factor_products(path: Sequence[Factors]) -> Tensor:
    """Inner products [3, 3] of the displacements of one module, its A and B taken as one vector."""
    points = [torch.cat([f.a.flatten(), f.b.flatten()]) for f in path]
    moves = torch.stack([points[end] - points[start] for start, end in MOVES.values()])
    return moves @ moves.T


def delta_products(path: Sequence[Factors], scaling: float) -> Tensor:
    """Inner products [3, 3] of the displacements of ``scaling * B A`` of one module.

    A displacement is a product of factors of twice the rank, B1 A1 - B0 A0 = [B1 - B0, B0] [A1; A1 - A0]: the small
    differences are taken before any product, so two near snapshots lose no digits.
    """
    moves = []
    for start, end in ((path[i], path[j]) for i, j in MOVES.values()):
        b = torch.cat([end.b - start.b, start.b], dim=1)
        moves.append(Factors(torch.cat([end.a, end.a - start.a], dim=0), scaling * b))
    return torch.stack([torch.stack([inner(x, y) for y in moves]) for x in moves])


def geometry(products: Tensor) -> dict[str, dict[str, float | None]]:
    """Norms and angles from the inner products [3, 3] of the displacements in the order of ``MOVES``."""
    norms = {name: math.sqrt(max(products[i, i].item(), 0.0)) for i, name in enumerate(MOVES)}
    names = list(MOVES)
    angles = {
        f"{x}_{y}": angle_degrees(products[names.index(x), names.index(y)].item(), norms[x], norms[y])
        for x, y in ANGLES
    }
    return {"norms": dict(norms), "angles": angles}


def _summary(products: Mapping[str, Tensor]) -> dict[str, Any]:
    overall = torch.stack(list(products.values())).sum(dim=0)
    layers = {
        layer: sum((products[module] for module in modules), torch.zeros_like(overall))
        for layer, modules in by_layer(products).items()
    }
    return {"overall": geometry(overall), "layers": {layer: geometry(found) for layer, found in layers.items()}}
