"""Coefficients of a merge: from the weights [N] of N tensors and their inner products [N, N] to N factors."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

BLOCK = 1 << 16
"""Entries that are computed with at once: a few such blocks stay in a core's cache."""


def shares(inner: Tensor, weights: Sequence[float]) -> list[float]:
    """The weights divided by their sum, which must not be 0."""
    return [weight / sum(weights) for weight in weights]


def spherical(inner: Tensor, weights: Sequence[float]) -> list[float]:
    """Along the great circle between two tensors at angle O: sin((1 - t) O) / sin O and sin(t O) / sin O, where t is
    the share of the second weight (Shoemake 1985). Where the angle is 0, 180 degrees or unknown: 1 - t and t."""
    first, second = shares(inner, weights)
    norms = inner.diagonal().clamp(min=0).sqrt()
    cosine = (inner[0, 1] / (norms[0] * norms[1])).item() if norms.all() else 1.0
    angle = math.acos(max(-1.0, min(1.0, cosine)))
    if math.sin(angle) < 1e-6:
        return [first, second]
    return [math.sin(first * angle) / math.sin(angle), math.sin(second * angle) / math.sin(angle)]


def by_energy(inner: Tensor, weights: Sequence[float]) -> list[float]:
    """Each tensor's share of the squared entries (SCE, arXiv 2408.07990, step Calculate); equal ones if all are 0."""
    energy = inner.diagonal()
    total = energy.sum().item()
    return [value / total if total else 1 / len(weights) for value in energy.tolist()]


def inner_products(tensors: Sequence[Tensor], selected: Tensor | None = None) -> Tensor:
    """[N, N] float64 inner products of N tensors of one shape [...], summed block by block; of the ``selected``
    entries, if a mask [...] is given."""
    flat = [tensor.view(-1) for tensor in tensors]
    total = torch.zeros(len(flat), len(flat), dtype=torch.float64)
    for start in range(0, flat[0].numel(), BLOCK):
        block = torch.stack([tensor[start : start + BLOCK].double() for tensor in flat])
        if selected is not None:
            block *= selected.view(-1)[start : start + BLOCK]
        total += (block @ block.T).cpu()
    return total
