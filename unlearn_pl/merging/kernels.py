"""The merge kernels: how several tensors of one shape become one. Three steps each: prune, weigh, combine.

Pruning works in place on whole tensors, as it needs to know all entries; of a tensor smaller than 1 / density one
entry is kept. Weighing turns the user's weights into the coefficients, from the inner products of what is left (or of
selected entries). Combining is entry by entry, so it goes block by block and no temporary is larger than a block.

Below, a kernel merges N ``tensors``, all float32 and of one shape [...], with one weight each.
Adding a kernel is one row of `KERNELS`; a number of its own is one field of `KernelOptions`. Names, flags, ranges,
defaults, checks and the listing follow from these two.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from unlearn_pl.errors import InputError
from unlearn_pl.merging.coefficients import BLOCK, by_energy, shares, spherical
from unlearn_pl.merging.top_k import keep_band_, keep_largest_, magnitude_threshold

Space = Literal["factors", "delta", "checkpoint"]
"""What is merged: A with A and B with B; the products B A; or the differences of full weights to the base's."""


class Parameter(NamedTuple):
    """A number or word that some kernels take."""

    default: float | str
    range: str
    """An interval, such as (0, 1], or the words that are allowed, in parentheses."""

    def allows(self, value: float | str) -> bool:
        """Whether ``value`` is in the range."""
        ends = self.range[1:-1].split(", ")
        if isinstance(self.default, str):
            return value in ends
        number, low, high = float(value), float(ends[0]), float(ends[1])
        return (
            low < number < high
            or (number == low and self.range[0] == "[")
            or (number == high and self.range[-1] == "]")
        )


def parameter(default: float | str, range: str) -> Any:
    """A field of `KernelOptions`; None stands for "not given" before the check, and for "no use for it" after it."""
    return field(default=None, metadata={"parameter": Parameter(default, range)})


@dataclass(frozen=True, kw_only=True)
class KernelOptions:
    """What kernels take beside the weights; what a kernel has no use for is None."""

    density: float | None = parameter(0.8, "(0, 1]")
    """Share of the entries that is kept before merging, in (0, 1]; 0.8 if not given. Only for methods that prune. Under
    the sce kinds, which prune nothing: the share that their weights are found from."""
    majority_sign: str | None = parameter("total", "(total, frequency)")
    """How the ties kinds elect the sign of an entry: total (of the magnitudes, the default) or frequency."""
    vote: str | None = parameter("plain", "(plain, weighted)")
    """What a weight does under the ties kinds: plain (all vote alike, the mean divides by their number: PEFT's rule,
    and the default, also for checkpoints) or weighted (weight x entry votes, the mean divides by the weights of those
    in it: mergekit's rule; for weight deltas and checkpoints)."""
    epsilon: float | None = parameter(0.1, "[0, 1)")
    """How far the drop rates of the della kinds spread around 1 - density, in [0, 1); 0.1 if not given."""
    outliers: float | None = parameter(0.01, "[0, 1)")
    """Share of the largest entries that breadcrumbs drops, in [0, 1); 0.01 if not given."""


PARAMETERS: dict[str, Parameter] = {one.name: one.metadata["parameter"] for one in fields(KernelOptions)}

Prune = Callable[[list[Tensor], KernelOptions, torch.Generator | None], None]
Select = Callable[[Sequence[Tensor], KernelOptions], Tensor | None]
Weigh = Callable[[Tensor, Sequence[float]], list[float]]
Combine = Callable[[Sequence[Tensor], Sequence[float], KernelOptions], Tensor]
Check = Callable[[KernelOptions, Space], None]


# --- prune: in place ------------------------------------------------------------------------------------------------


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
    """A mask of the shape of ``like``, true with ``chance`` (a number, or a tensor of that shape): what
    `torch.bernoulli` draws, in less time."""
    numbers = torch.empty(like.shape, device=None if generator is None else generator.device)
    return (numbers.uniform_(generator=generator).to(like.device)) < chance


def drop_by_rank_(tensors: list[Tensor], options: KernelOptions, generator: torch.Generator | None) -> None:
    """Drop small entries oftener than large ones (DELLA's MagPrune, arXiv 2406.11617, section 3.1).

    In each row [n] of a tensor [..., n] the i-th largest of n magnitudes (i from 0) is dropped with probability
    1 - density - epsilon / 2 + epsilon (i + 1/2) / n, which is 1 - density on average, and divided by its chance to
    stay.
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
    """Mask [...] of the share ``density`` of the entries that vary at all between the tensors, those that vary most
    (SCE, arXiv 2408.07990, step Select); None for all entries.

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


# --- combine: entry by entry, N flat blocks [n] -> one [n] -----------------------------------------------------------


def weighted_sum(tensors: Sequence[Tensor], weights: Sequence[float], options: KernelOptions) -> Tensor:
    """Sum of weight x tensor (task arithmetic, arXiv 2212.04089)."""
    total = tensors[0] * weights[0]
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        total.add_(tensor * weight)
    return total


def elected_sign(tensors: Sequence[Tensor], majority_sign: str | None) -> Tensor:
    """[n]: +1 where the sum of the entries (``total``) or of their signs (``frequency``) is not below 0, -1 elsewhere.

    Where all entries are 0 it may be either.
    """
    votes = tensors if majority_sign == "total" else [tensor.sign() for tensor in tensors]
    return torch.copysign(torch.ones(()), sum(votes[1:], votes[0]))


def disjoint_mean(tensors: Sequence[Tensor], weights: Sequence[float], options: KernelOptions) -> Tensor:
    """Mean of weight x tensor over those tensors whose entry has the elected sign (TIES, arXiv 2306.01708, steps 2
    and 3); 0 where none has.

    ``options.vote`` says what the weights do beside that. ``plain``: all tensors vote alike, and the mean divides by
    their number; ``weighted``: weight x tensor votes, and the mean divides by the weights of those in it.
    """
    if options.vote == "weighted":
        votes = [tensor * weight for tensor, weight in zip(tensors, weights, strict=True)]
        return agreeing_mean(tensors, elected_sign(votes, options.majority_sign), weights, weights)
    return agreeing_mean(tensors, elected_sign(tensors, options.majority_sign), weights, [1.0] * len(weights))


def agreeing_mean(tensors: Sequence[Tensor], sign: Tensor, weights: Sequence[float], parts: Sequence[float]) -> Tensor:
    """Of the tensors whose entry has the ``sign`` [n], the sum of weight x tensor over the sum of ``parts``, none of
    which is negative; 0 where none has it, or the parts are 0."""
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


# --- check: options, each in its range, that do not go together ------------------------------------------------------


def vote_fits(options: KernelOptions, space: Space) -> None:
    """Raise InputError where dividing by the weights would take out what the roots of weight x scaling put in."""
    if options.vote == "weighted" and space == "factors":
        raise InputError(
            "weighted is for weight deltas and checkpoints, not where A and B are merged apart, each with the root of "
            "weight x scaling: that division would take it out; use the method's _svd form",
            "vote",
        )


def spread_fits(options: KernelOptions, space: Space) -> None:
    """Raise InputError if DELLA's chances to stay would leave (0, 1]."""
    density, half = options.density or 0, (options.epsilon or 0) / 2
    if density - half <= 0 or density + half > 1:
        raise InputError(
            "rows keep from density - epsilon / 2 to density + epsilon / 2, which must lie in (0, 1]; got density "
            f"{density:g} and epsilon {2 * half:g}",
            "epsilon",
        )


def band_fits(options: KernelOptions, space: Space) -> None:
    """Raise InputError if Breadcrumbs would drop and keep more than there is."""
    density, outliers = options.density or 0, options.outliers or 0
    if density + outliers > 1:
        raise InputError(f"density + outliers must be at most 1, got {density:g} and {outliers:g}", "outliers")


# --- the table -----------------------------------------------------------------------------------------------------


ELECTS = "elects signs before it weighs, so a negative weight would turn against the elected sign"


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """How several tensors of one shape become one."""

    name: str
    paper: str
    prune: Prune | None = None
    random: bool = False
    """True if ``prune`` draws random numbers."""
    select: Select | None = None
    """The entries that ``weigh`` gets the inner products of; None for all."""
    weigh: Weigh | None = None
    """None for the weights as they are given."""
    combine: Combine = weighted_sum
    linear: bool = False
    """True if the result is a linear combination of whole tensors: then low rank stays low, exactly."""
    elects_sign: bool = False
    """True if a tensor votes for the sign of an entry, whatever its weight."""
    divides_by_sum: bool = False
    """True if weights that sum to 0 give nothing."""
    why_unsigned: str = ""
    """Why a negative weight cannot subtract; empty where it does."""
    takes_weights: bool = True
    parameters: tuple[str, ...] = ()
    """Fields of `KernelOptions` that it takes."""
    checks: tuple[Check, ...] = ()
    """They raise InputError for parameters, each in its range, that do not go together."""
    only: int | None = None
    """The number of tensors that it takes; None for any from two on."""
    scale: Literal["sum", "mean", "disjoint mean", "energy mean"] = "sum"
    """For the listing: what two equal tensors with weights 1 and 1 become, twice the tensor (``sum``), or itself (the
    means)."""
    in_factors: bool = True
    """True if it can merge A with A and B with B, where a weight is divided between the two."""
    exact_names: tuple[str, ...] = ()
    """What the exact merge of weight deltas is called, if not like the kernel; only of linear ones."""
    svd_name: str = ""
    """What the merge of weight deltas cut to a rank is called, if not ``NAME_svd``."""
    checkpoint_names: tuple[str, ...] = ()
    """What the merge of checkpoints is called, beside the kernel's name."""


TIES: Any = {"combine": disjoint_mean, "elects_sign": True, "why_unsigned": ELECTS, "scale": "disjoint mean"}
SIGN = ("majority_sign", "vote")

KERNELS = {
    kernel.name: kernel
    for kernel in (
        Kernel(name="linear", paper="Ilharco et al. 2023, arXiv 2212.04089", linear=True,
               # cat and svd are PEFT's names; task arithmetic is the signed sum of deltas
               exact_names=("cat", "task_arithmetic"), svd_name="svd", checkpoint_names=("task_arithmetic",)),
        Kernel(name="average", paper="Wortsman et al. 2022, arXiv 2203.05482", weigh=shares, linear=True,
               divides_by_sum=True, scale="mean", in_factors=False),
        Kernel(name="slerp", paper="Shoemake 1985, doi 10.1145/325334.325242", weigh=spherical, linear=True, only=2,
               divides_by_sum=True, scale="mean", in_factors=False,
               why_unsigned="goes from one to the other, with shares that are not negative"),
        Kernel(name="ties", paper="Yadav et al. 2023, arXiv 2306.01708", prune=trim_,
               parameters=("density", *SIGN), checks=(vote_fits,), **TIES),
        Kernel(name="magnitude_prune", paper="Yadav et al. 2023, arXiv 2306.01708 (trim step)", prune=trim_,
               parameters=("density",)),
        Kernel(name="dare_linear", paper="Yu et al. 2024, arXiv 2311.03099", prune=drop_, random=True,
               parameters=("density",)),
        Kernel(name="dare_ties", paper="Yu et al. 2024, arXiv 2311.03099", prune=drop_, random=True,
               parameters=("density", *SIGN), checks=(vote_fits,), **TIES),
        Kernel(name="della_linear", paper="Deep et al. 2024, arXiv 2406.11617", prune=drop_by_rank_, random=True,
               parameters=("density", "epsilon"), checks=(spread_fits,)),
        Kernel(name="della", paper="Deep et al. 2024, arXiv 2406.11617", prune=drop_by_rank_, random=True,
               parameters=("density", "epsilon", *SIGN), checks=(vote_fits, spread_fits), **TIES),
        Kernel(name="breadcrumbs", paper="Davari & Belilovsky 2024, arXiv 2312.06795", prune=drop_outliers_,
               parameters=("density", "outliers"), checks=(band_fits,)),
        Kernel(name="sce", paper="Wan et al. 2024, arXiv 2408.07990", select=most_varied, weigh=by_energy,
               combine=majority_mean, elects_sign=True, why_unsigned=ELECTS, takes_weights=False,
               parameters=("density",), scale="energy mean", in_factors=False),
        Kernel(name="negmerge", paper="Kim et al. 2025, arXiv 2410.05583", combine=consensus_mean, elects_sign=True,
               why_unsigned=ELECTS, scale="mean"),
    )
}  # fmt: skip
