"""The merge of LoRA adapters, module by module: from the factors of the parents to those of the merged adapter."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import overload

import torch
from torch import Tensor

from unlearn_pl.merging.factors import Factors, inner
from unlearn_pl.merging.kernels import as_given, merge_tensors_
from unlearn_pl.merging.low_rank import compress, stack, truncate
from unlearn_pl.merging.methods import MergeSettings
from unlearn_pl.merging.parents import Parent

Delta = Factors | Tensor
"""What a merge adds to one module's weights [out, in]: as factors (the delta is B A), or as it is."""


def merge_deltas(
    parents: Sequence[Parent], settings: MergeSettings, order: Iterable[str] | None = None
) -> dict[str, Delta]:
    """Module -> merged delta, with the parents' scalings and ``settings.scale`` in it; float32 on the CPU.

    At most one module's dense delta is in memory for each parent. Random methods draw from one generator with the seed
    ``settings.seed``, in the ``order`` of the modules (all their names; default: as in the first parent), within a
    module in the order of the parents, for A before B: the same masks as those of PEFT's `torch.bernoulli` calls on
    such a generator, if the order is that of the base's modules.
    """
    assert len(parents) == len(settings.weights)
    generator = None if settings.seed is None else torch.Generator().manual_seed(settings.seed)
    names = list(order if order is not None else parents[0].factors)
    assert set(names) == parents[0].factors.keys()
    scalings = [parent.scaling for parent in parents]
    merged = {}
    for name in names:
        pairs = [parent.factors[name] for parent in parents]
        rank = settings.svd_rank or max(pair.a.shape[0] for pair in pairs)
        merged[name] = merge_module(pairs, [scaling[name] for scaling in scalings], settings, rank, generator)
    return merged


def merge_module(
    pairs: Sequence[Factors],
    scalings: Sequence[float],
    settings: MergeSettings,
    rank: int,
    generator: torch.Generator | None = None,
) -> Delta:
    """The merged delta of one module, of the parents' factors (float32) and the factors of their deltas."""
    pairs = [Factors(pair.a.float(), pair.b.float()) for pair in pairs]
    if settings.method.form == "factors":
        return scaled(merge_factors(pairs, scalings, settings, generator), settings.scale)
    if settings.method.kernel.linear:
        total = scaled(stack(pairs, coefficients(pairs, scalings, settings)), settings.scale)
        return compress(total, rank)[0] if settings.method.truncates else total
    deltas = [torch.mm(b, a).mul_(scaling) for (a, b), scaling in zip(pairs, scalings, strict=True)]
    dense = merge_tensors_(settings.method.kernel, deltas, settings.weights, settings.options, generator)
    dense.mul_(settings.scale)
    if not settings.method.truncates:
        return dense
    return truncate(dense, rank, start=torch.cat([pair.b for pair in pairs], dim=1))[0]


def merge_factors(
    pairs: Sequence[Factors], scalings: Sequence[float], settings: MergeSettings, generator: torch.Generator | None
) -> Factors:
    """A merged with A and B with B, the root of weight x scaling on either, as PEFT does."""
    roots = [math.sqrt(weight * scaling) for weight, scaling in zip(settings.weights, scalings, strict=True)]
    kernel, options = settings.method.kernel, settings.options
    a, b = (
        merge_tensors_(kernel, [pair[side].clone() for pair in pairs], roots, options, generator) for side in (0, 1)
    )
    return Factors(a, b)


def coefficients(pairs: Sequence[Factors], scalings: Sequence[float], settings: MergeSettings) -> list[float]:
    """Of each product B A in a linear merge: the kernel's coefficient of the delta, times the parent's scaling."""
    if settings.method.kernel.weigh is as_given:
        return [weight * scaling for weight, scaling in zip(settings.weights, scalings, strict=True)]
    deltas = [scaled(pair, scaling) for pair, scaling in zip(pairs, scalings, strict=True)]
    products = torch.stack([torch.stack([inner(one, other) for other in deltas]) for one in deltas])
    weights = settings.method.kernel.weigh(products, settings.weights)
    return [weight * scaling for weight, scaling in zip(weights, scalings, strict=True)]


@overload
def scaled(delta: Factors, scale: float) -> Factors: ...
@overload
def scaled(delta: Delta, scale: float) -> Delta: ...
def scaled(delta: Delta, scale: float) -> Delta:
    """``scale`` times a delta; of factors, B takes it."""
    if scale == 1:
        return delta
    return Factors(delta.a, delta.b * scale) if isinstance(delta, Factors) else delta * scale


def norm(deltas: Mapping[str, Delta]) -> float:
    """Frobenius norm over all modules."""
    squares = (
        inner(delta, delta).item() if isinstance(delta, Factors) else delta.double().square().sum().item()
        for delta in deltas.values()
    )
    return math.sqrt(max(sum(squares), 0.0))
