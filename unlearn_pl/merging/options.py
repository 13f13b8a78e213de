"""How a merge is asked for, and the check of it: nothing given is ignored."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from unlearn_pl.errors import InputError
from unlearn_pl.merging.kernels import KERNELS, PARAMETERS, KernelOptions
from unlearn_pl.merging.methods import CHECKPOINT_METHODS, METHODS, Method, find_method


@dataclass(frozen=True, kw_only=True)
class MergeOptions(KernelOptions):
    """How two or more adapters, or checkpoints, become one."""

    method: str = "ties"
    """A name from `unlearn-pl merge --list`."""
    weights: list[float] | None = None
    """One number for each adapter or checkpoint; 1 each if not given. May be negative where that subtracts."""
    scale: float = 1.0
    """Factor of the merged delta."""
    svd_rank: int | None = None
    """Rank of the merged adapter for the methods ending in svd; the largest rank of the adapters if not given."""
    seed: int = 42
    """Seed of the random pruning of the dare and della kinds."""

    def settings(self, count: int, checkpoints: bool = False) -> "MergeSettings":
        """The checked choice for the merge of ``count`` adapters (or ``checkpoints``), with the defaults filled in.

        Raises InputError for anything that the method has no use for, or cannot use.
        """
        method = find_method(self.method, CHECKPOINT_METHODS if checkpoints else METHODS)
        kind = "checkpoint" if checkpoints else "adapter"
        if count < 2:
            raise InputError(f"a merge needs at least 2 {kind}s, got {count}", f"{kind}s")
        if method.kernel.only not in (None, count):
            raise InputError(f"{method.name} merges exactly {method.kernel.only}, got {count}", f"{kind}s")
        if not math.isfinite(self.scale) or self.scale == 0:
            raise InputError(f"must be a finite number other than 0, got {self.scale}", "scale")
        return MergeSettings(
            method=method,
            weights=_checked_weights(method, self.weights, count, kind),
            options=_checked_options(method, self),
            seed=self.seed if method.random else None,
            svd_rank=_checked_rank(method, self.svd_rank),
            scale=float(self.scale),
        )


@dataclass(frozen=True, kw_only=True)
class MergeSettings:
    """A checked choice, made by `MergeOptions.settings`: what does not apply to the method is None."""

    method: Method
    weights: tuple[float, ...]
    options: KernelOptions
    seed: int | None
    svd_rank: int | None
    scale: float
    """Factor of the merged delta."""

    def facts(self) -> dict[str, Any]:
        """The choice, ready for JSON."""
        rest = {name: getattr(self, name) for name in ("scale", "seed", "svd_rank")}
        return {"method": self.method.name, "weights": list(self.weights), **asdict(self.options), **rest}


def _checked_weights(method: Method, weights: Sequence[float] | None, count: int, kind: str) -> tuple[float, ...]:
    """One finite weight each, not all zero, negative only where that means subtraction."""
    if weights is None:
        return (1.0,) * count
    if not method.kernel.takes_weights:
        raise InputError(f"{method.name} finds its own from the {kind}s, got {weights}", "weights")
    if len(weights) != count:
        raise InputError(f"{count} {kind}s need {count} weights, got {len(weights)}", "weights")
    given = " ".join(f"{w:g}" for w in weights)
    if not all(math.isfinite(w) for w in weights) or not any(weights):
        raise InputError(f"must be finite numbers, at least one not 0, got {given}", "weights")
    if min(weights) < 0 and method.why_unsigned:
        other = "linear" if method.space == "checkpoint" else "svd or cat"
        raise InputError(f"{method.name} {method.why_unsigned}; use {other} to subtract, got {given}", "weights")
    if 0 in weights and method.kernel.elects_sign:
        raise InputError(
            f"under {method.name} one of weight 0 would still vote for the sign and count in the mean; leave it out "
            f"instead, got {given}",
            "weights",
        )
    if method.kernel.divides_by_sum and abs(sum(weights)) < 1e-9 * max(map(abs, weights)):
        raise InputError(f"{method.name} divides by their sum, which must not be 0, got {given}", "weights")
    return tuple(float(w) for w in weights)


def _checked_options(method: Method, given: KernelOptions) -> KernelOptions:
    """The numbers that the kernel takes, or their defaults; each in its range, and all together as it can use them."""
    kernel = method.kernel
    values: dict[str, Any] = {}
    for name, parameter in PARAMETERS.items():
        value = getattr(given, name)
        if name in kernel.parameters:
            values[name] = parameter.default if value is None else value
            if not parameter.allows(values[name]):
                raise InputError(f"must be in {parameter.range}, got {value}", name)
        elif value is not None:
            users = ", ".join(key for key, other in KERNELS.items() if name in other.parameters)
            raise InputError(f"{method.name} has no use for it (the kernels {users} have), got {value}", name)
    options = KernelOptions(**values)
    for check in kernel.checks:
        check(options, method.space)
    return options


def _checked_rank(method: Method, svd_rank: int | None) -> int | None:
    """A positive rank, or None for the largest rank among the adapters; only for the methods that truncate."""
    if svd_rank is None:
        return None
    if not method.truncates:
        raise InputError(f"{method.name} does not truncate (methods ending in svd do), got {svd_rank}", "svd_rank")
    if svd_rank < 1:
        raise InputError(f"must be at least 1, got {svd_rank}", "svd_rank")
    return svd_rank
