"""The merge kernels: how several tensors of one shape become one. Three steps each: prune, weigh, combine.

Pruning works in place on whole tensors, as it needs to know all entries; of a tensor smaller than 1 / density one
entry is kept. Weighing turns the user's weights into the coefficients, from the inner products of what is left (or of
selected entries). Combining is entry by entry, so it goes block by block and no temporary is larger than a block.
Adding a kernel is one row of `KERNELS`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from unlearn_pl.merging.top_k import keep_band_, keep_largest_, magnitude_threshold

Space = Literal["factors", "delta", "checkpoint"]
MAJORITY_SIGNS = ("total", "frequency")
VOTES = ("plain", "weighted")
BLOCK = 1 << 16
"""Entries that are combined at once: a few such blocks stay in a core's cache."""


@dataclass(frozen=True)
class KernelOptions:
    """The numbers that kernels take beside the weights; what a kernel has no use for is None."""

    density: float | None = None
    """Share of the entries that is kept, in (0, 1]."""
    majority_sign: str | None = None
    """``total`` (sign of the sum) or ``frequency`` (the sign that most adapters have)."""
    vote: str | None = None
    """What a weight does where signs are elected. ``plain``: all tensors vote alike, and the mean of weight x tensor
    divides by their number (PEFT's rule); ``weighted``: weight x tensor votes, and the mean divides by the weights of
    those in it (mergekit's rule)."""
    epsilon: float | None = None
    """Spread of the drop rates of DELLA around 1 - ``density``, in [0, 1)."""
    outliers: float | None = None
    """Share of the largest entries that Model Breadcrumbs drops, in [0, 1)."""


Prune = Callable[[list[Tensor], KernelOptions, torch.Generator | None], None]
Select = Callable[[Sequence[Tensor], KernelOptions], Tensor | None]
Weigh = Callable[[Tensor, Sequence[float]], list[float]]
Combine = Callable[[Sequence[Tensor], Sequence[float], KernelOptions], Tensor]


# --- prune: in place, tensors of one shape in float32 --------------------------------------------------------------


def trim_(tensors: list[Tensor], options: KernelOptions, generator: torch.Generator | None) -> None:
    """Keep the int(density n) entries of largest magnitude of each tensor (TIES, arXiv 2306.01708, step 1)."""
    for tensor in tensors:
        keep_largest_(tensor, kept_entries(tensor.numel(), options))


def kept_entries(entries: int, options: KernelOptions) -> int:
    """The share ``density`` of so many entries, rounded down, at least one."""
    assert options.density is not None
    return max(1, int(options.density * entries))


def drop_(tensors: list[Tensor], options: KernelOptions, generator: torch.Generator | None) -> None:
    """Keep each entry with probability ``density`` and divide it by that (DARE, arXiv 2311.03099, equation 1)."""
    assert options.density is not None
    if options.density == 1:
        return
    for tensor in tensors:
        for block in tensor.view(-1).split(BLOCK):
            block.mul_(bernoulli(block, options.density, generator)).div_(options.density)


def bernoulli(like: Tensor, chance: float | Tensor, generator: torch.Generator | None) -> Tensor:
    """A mask of the shape of ``like``, true with ``chance``: what `torch.bernoulli` draws, in less time."""
    numbers = torch.empty(like.shape, device=None if generator is None else generator.device)
    return (numbers.uniform_(generator=generator).to(like.device)) < chance


def drop_by_rank_(tensors: list[Tensor], options: KernelOptions, generator: torch.Generator | None) -> None:
    """Drop small entries oftener than large ones (DELLA's MagPrune, arXiv 2406.11617, section 3.1).

    In each row the i-th largest of n magnitudes (i from 0) is dropped with probability 1 - density - epsilon / 2 +
    epsilon (i + 1/2) / n, which is 1 - density on average, and divided by its chance to stay.
    """
    assert options.density is not None
    assert options.epsilon is not None
    for tensor in tensors:
        rows = tensor.view(-1, tensor.shape[-1])
        n = rows.shape[1]
        steps = torch.arange(n, device=rows.device, dtype=torch.float32)
        kept = (options.density + options.epsilon / 2 - options.epsilon * (steps + 0.5) / n).clamp(max=1)
        for block in rows.split(max(1, BLOCK // n)):
            order = block.abs().argsort(dim=1, descending=True, stable=True)
            chance = torch.empty_like(block).scatter_(1, order, kept.expand_as(block))
            block.mul_(bernoulli(block, chance, generator)).div_(chance)


def drop_outliers_(tensors: list[Tensor], options: KernelOptions, generator: torch.Generator | None) -> None:
    """Drop the largest magnitudes and the smallest ones (Model Breadcrumbs, arXiv 2312.06795, section 3)."""
    assert options.density is not None
    assert options.outliers is not None
    for tensor in tensors:
        n = tensor.numel()
        keep_band_(tensor, int(options.outliers * n), kept_entries(n, options))


# --- select: which entries the coefficients are found from ---------------------------------------------------------


def most_varied(tensors: Sequence[Tensor], options: KernelOptions) -> Tensor | None:
    """Mask of the share ``density`` of the entries that vary at all between the tensors, those that vary most (SCE,
    arXiv 2408.07990, step Select); None for all entries.

    Entries that vary as much as the last one selected are selected too; a share of less than one entry selects all.
    """
    assert options.density is not None
    if options.density == 1:
        return None
    variance = torch.zeros_like(tensors[0])
    flat = [tensor.view(-1) for tensor in tensors]
    for start in range(0, variance.numel(), BLOCK):
        blocks = [tensor[start : start + BLOCK] for tensor in flat]
        mean = sum(blocks[1:], blocks[0]) / len(blocks)
        into = variance.view(-1)[start : start + BLOCK]
        for block in blocks:
            into.add_((block - mean).square_())
    count = int(options.density * int(variance.count_nonzero()))
    return variance >= magnitude_threshold(variance, count) if count else None


# --- weigh: inner products [N, N] of the pruned tensors, weights -> coefficients -----------------------------------


def as_given(inner: Tensor, weights: Sequence[float]) -> list[float]:
    """The weights themselves."""
    return list(weights)


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


# --- combine: entry by entry ---------------------------------------------------------------------------------------


def weighted_sum(tensors: Sequence[Tensor], weights: Sequence[float], options: KernelOptions) -> Tensor:
    """Sum of weight x tensor (task arithmetic, arXiv 2212.04089)."""
    total = tensors[0] * weights[0]
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        total.add_(tensor * weight)
    return total


def elected_sign(tensors: Sequence[Tensor], majority_sign: str | None) -> Tensor:
    """+1 where the sum of the entries (``total``) or of their signs (``frequency``) is not below 0, -1 elsewhere.

    Where all entries are 0 it may be either.
    """
    votes = tensors if majority_sign == "total" else [tensor.sign() for tensor in tensors]
    return torch.copysign(torch.ones(()), sum(votes[1:], votes[0]))


def disjoint_mean(tensors: Sequence[Tensor], weights: Sequence[float], options: KernelOptions) -> Tensor:
    """Mean of weight x tensor over those tensors whose entry has the elected sign (TIES, arXiv 2306.01708, steps 2
    and 3); 0 where none has. ``options.vote`` says what the weights do beside that."""
    if options.vote == "weighted":
        votes = [tensor * weight for tensor, weight in zip(tensors, weights, strict=True)]
        return agreeing_mean(tensors, elected_sign(votes, options.majority_sign), weights, weights)
    return agreeing_mean(tensors, elected_sign(tensors, options.majority_sign), weights, [1.0] * len(weights))


def agreeing_mean(tensors: Sequence[Tensor], sign: Tensor, weights: Sequence[float], parts: Sequence[float]) -> Tensor:
    """Of the tensors whose entry has the ``sign``, the sum of weight x tensor over the sum of ``parts``, none of which
    is negative; 0 where none has it, or the parts are 0."""
    total, whole = torch.zeros_like(sign), torch.zeros_like(sign)
    for tensor, weight, part in zip(tensors, weights, parts, strict=True):
        # no boolean masks: a product of floats and booleans takes longer than one of floats
        agreeing = (tensor * sign).relu_()
        total.add_(agreeing, alpha=weight)
        whole.add_(agreeing.sign_(), alpha=part)
    least = min((part for part in parts if part), default=1.0)
    return total.mul_(sign).div_(whole.clamp_(min=least))


def majority_mean(tensors: Sequence[Tensor], weights: Sequence[float], options: KernelOptions) -> Tensor:
    """Sum of weight x tensor over those tensors whose entry has the elected sign, divided by the sum of their weights
    (SCE, arXiv 2408.07990, step Erase, with the division of the authors' release)."""
    return agreeing_mean(tensors, elected_sign(tensors, "total"), weights, weights)


def consensus_mean(tensors: Sequence[Tensor], weights: Sequence[float], options: KernelOptions) -> Tensor:
    """Mean of weight x tensor where all tensors have one sign, 0 elsewhere (NegMerge, arXiv 2410.05583, equation
    4)."""
    agree = sum((tensor.sign() for tensor in tensors[1:]), tensors[0].sign()).abs() == len(tensors)
    return weighted_sum(tensors, weights, options).div_(len(tensors)).masked_fill_(~agree, 0.0)


# --- the table -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kernel:
    """How several tensors of one shape become one."""

    name: str
    paper: str
    combine: Combine
    prune: Prune | None = None
    weigh: Weigh = as_given
    select: Select | None = None
    """The entries that ``weigh`` gets the inner products of; None for all."""
    parameters: tuple[str, ...] = ()
    """Fields of `KernelOptions` that it takes."""
    scale: Literal["sum", "mean", "disjoint mean", "energy mean"] = "sum"
    """What two equal tensors with weights 1 and 1 become: twice the tensor (``sum``), or itself (the means)."""
    signed_weights: bool = False
    """True if a negative weight subtracts."""
    takes_weights: bool = True
    in_factors: bool = True
    """True if it can merge A with A and B with B, where a weight is divided between the two."""
    only: int | None = None
    """The number of tensors that it takes; None for any from two on."""

    @property
    def elects_sign(self) -> bool:
        """True if a tensor votes for the sign of an entry, whatever its weight."""
        return self.combine is not weighted_sum

    @property
    def random(self) -> bool:
        return self.prune in (drop_, drop_by_rank_)

    @property
    def linear(self) -> bool:
        """True if the result is a linear combination of whole tensors: then low rank stays low, exactly."""
        return self.prune is None and self.combine is weighted_sum


KERNELS = {
    kernel.name: kernel
    for kernel in (
        Kernel("linear", "Ilharco et al. 2023, arXiv 2212.04089", weighted_sum, signed_weights=True),
        Kernel(
            "average", "Wortsman et al. 2022, arXiv 2203.05482", weighted_sum,
            weigh=shares, scale="mean", signed_weights=True, in_factors=False,
        ),
        Kernel(
            "slerp", "Shoemake 1985, doi 10.1145/325334.325242", weighted_sum,
            weigh=spherical, scale="mean", in_factors=False, only=2,
        ),
        Kernel(
            "ties", "Yadav et al. 2023, arXiv 2306.01708", disjoint_mean,
            trim_, parameters=("density", "majority_sign", "vote"), scale="disjoint mean",
        ),
        Kernel(
            "magnitude_prune", "Yadav et al. 2023, arXiv 2306.01708 (trim step)", weighted_sum,
            trim_, parameters=("density",), signed_weights=True,
        ),
        Kernel(
            "dare_linear", "Yu et al. 2024, arXiv 2311.03099", weighted_sum,
            drop_, parameters=("density",), signed_weights=True,
        ),
        Kernel(
            "dare_ties", "Yu et al. 2024, arXiv 2311.03099", disjoint_mean,
            drop_, parameters=("density", "majority_sign", "vote"), scale="disjoint mean",
        ),
        Kernel(
            "della_linear", "Deep et al. 2024, arXiv 2406.11617", weighted_sum,
            drop_by_rank_, parameters=("density", "epsilon"), signed_weights=True,
        ),
        Kernel(
            "della", "Deep et al. 2024, arXiv 2406.11617", disjoint_mean,
            drop_by_rank_, parameters=("density", "epsilon", "majority_sign", "vote"), scale="disjoint mean",
        ),
        Kernel(
            "breadcrumbs", "Davari & Belilovsky 2024, arXiv 2312.06795", weighted_sum,
            drop_outliers_, parameters=("density", "outliers"), signed_weights=True,
        ),
        Kernel(
            "sce", "Wan et al. 2024, arXiv 2408.07990", majority_mean,
            weigh=by_energy, select=most_varied, parameters=("density",), scale="energy mean",
            takes_weights=False, in_factors=False,
        ),
        Kernel("negmerge", "Kim et al. 2025, arXiv 2410.05583", consensus_mean, scale="mean"),
    )
}  # fmt: skip


def merge_tensors_(
    kernel: Kernel,
    tensors: list[Tensor],
    weights: Sequence[float],
    options: KernelOptions,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Merge float32 ``tensors`` of one shape (contiguous), which are used up: the first of them holds the result.

    Random kernels draw from ``generator``, tensor by tensor, entry by entry.
    """
    assert len(tensors) == len(weights)
    assert all(tensor.dtype == torch.float32 and tensor.is_contiguous() for tensor in tensors)
    if kernel.prune is not None:
        kernel.prune(tensors, options, generator)
    if kernel.weigh is as_given:
        coefficients = list(weights)
    else:
        selected = None if kernel.select is None else kernel.select(tensors, options)
        coefficients = kernel.weigh(inner_products(tensors, selected), weights)
    flat = [tensor.view(-1) for tensor in tensors]
    for start in range(0, flat[0].numel(), BLOCK):
        blocks = [tensor[start : start + BLOCK] for tensor in flat]
        blocks[0].copy_(kernel.combine(blocks, coefficients, options))
    return tensors[0]


def inner_products(tensors: Sequence[Tensor], selected: Tensor | None = None) -> Tensor:
    """[N, N] float64 inner products of tensors of one shape, summed block by block; of the ``selected`` entries, if a
    mask is given."""
    flat = [tensor.view(-1) for tensor in tensors]
    total = torch.zeros(len(flat), len(flat), dtype=torch.float64)
    for start in range(0, flat[0].numel(), BLOCK):
        block = torch.stack([tensor[start : start + BLOCK].double() for tensor in flat])
        if selected is not None:
            block *= selected.view(-1)[start : start + BLOCK]
        total += (block @ block.T).cpu()
    return total
