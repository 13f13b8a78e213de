"""The merge methods as a table (kernel x space), and the checks of a user's choice among them."""

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from unlearn_pl.errors import InputError

Space = Literal["factors", "delta"]

DEFAULT_DENSITY = 0.8
MAJORITY_SIGNS = ("total", "frequency")


@dataclass(frozen=True)
class Kernel:
    """How several tensors of one shape become one."""

    paper: str
    prunes: Literal["magnitude", "random"] | None
    """Which entries are dropped first: all but the ``density`` largest, or a random 1 - ``density`` with the rest
    divided by ``density``; None keeps all."""
    elects_sign: bool
    """True: the mean over the adapters whose entry has the elected sign. False: the sum over all adapters."""


KERNELS = {
    "linear": Kernel("Ilharco et al. 2023, arXiv 2212.04089", None, False),
    "ties": Kernel("Yadav et al. 2023, arXiv 2306.01708", "magnitude", True),
    "dare_linear": Kernel("Yu et al. 2024, arXiv 2311.03099", "random", False),
    "dare_ties": Kernel("Yu et al. 2024, arXiv 2311.03099", "random", True),
    "magnitude_prune": Kernel("Yadav et al. 2023, arXiv 2306.01708 (trim step)", "magnitude", False),
}


@dataclass(frozen=True)
class Method:
    """A kernel in a space: ``factors`` merges A with A and B with B, ``delta`` merges the products B A."""

    name: str
    kernel: Kernel
    space: Space
    truncates: bool
    """True if the merged delta is cut to ``svd_rank`` by a singular value decomposition."""

    @property
    def uses_density(self) -> bool:
        return self.kernel.prunes is not None

    @property
    def random(self) -> bool:
        return self.kernel.prunes == "random"

    @property
    def equal_ranks(self) -> bool:
        """True if every adapter must have the same rank."""
        return self.space == "factors"

    @property
    def scale(self) -> Literal["sum", "disjoint mean"]:
        """``sum``: two equal adapters with weights 1 and 1 give twice the factor or delta (so four times the delta in
        factor space); ``disjoint mean``: they give it back."""
        return "disjoint mean" if self.kernel.elects_sign else "sum"

    @property
    def signed_weights(self) -> bool:
        """True if a negative weight subtracts an adapter."""
        return self.space == "delta" and not self.kernel.elects_sign


def _table() -> dict[str, Method]:
    rows = [Method(name, kernel, "factors", truncates=False) for name, kernel in KERNELS.items()]
    # Stacked factors multiply out to the exact sum of the deltas, at the sum of the ranks.
    rows.append(Method("cat", KERNELS["linear"], "delta", truncates=False))
    rows.append(Method("svd", KERNELS["linear"], "delta", truncates=True))
    rows += [Method(f"{n}_svd", kernel, "delta", truncates=True) for n, kernel in KERNELS.items() if n != "linear"]
    return {row.name: row for row in rows}


METHODS = _table()


@dataclass(frozen=True)
class MergeSettings:
    """A checked choice: what does not apply to the method is None."""

    method: Method
    weights: tuple[float, ...]
    density: float | None
    majority_sign: str | None
    seed: int | None
    svd_rank: int | None


def merge_settings(
    adapters: int,
    method: str = "ties",
    weights: Sequence[float] | None = None,
    density: float | None = None,
    majority_sign: str | None = None,
    seed: int = 42,
    svd_rank: int | None = None,
) -> MergeSettings:
    """Check a user's choice for so many ``adapters`` and fill in the defaults: weights 1, density .8, sign ``total``.

    Raises InputError for anything that the method has no use for or cannot use: nothing given is ignored.
    """
    row = find_method(method)
    if adapters < 2:
        raise InputError(f"--adapters: a merge needs at least 2 adapters, got {adapters}")
    return MergeSettings(
        method=row,
        weights=check_weights(row, weights, adapters),
        density=check_density(row, density),
        majority_sign=check_majority_sign(row, majority_sign),
        seed=seed if row.random else None,
        svd_rank=check_svd_rank(row, svd_rank),
    )


def find_method(name: str) -> Method:
    """The row of that name. Raises InputError with the nearest name."""
    if name in METHODS:
        return METHODS[name]
    near = difflib.get_close_matches(str(name), METHODS, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise InputError(f"--method: must be one of {', '.join(METHODS)}, got {name}{hint}")


def check_weights(method: Method, weights: Sequence[float] | None, adapters: int) -> tuple[float, ...]:
    """One finite weight an adapter, not all zero, negative only where that means subtraction."""
    if weights is None:
        return (1.0,) * adapters
    if len(weights) != adapters:
        raise InputError(f"--weights: {adapters} adapters need {adapters} weights, got {len(weights)}")
    given = " ".join(f"{w:g}" for w in weights)
    if not all(math.isfinite(w) for w in weights) or not any(weights):
        raise InputError(f"--weights: must be finite numbers, at least one not 0, got {given}")
    if min(weights) < 0 and not method.signed_weights:
        raise InputError(f"--weights: {method.name} {_why_unsigned(method)}; use svd or cat to subtract, got {given}")
    if 0 in weights and method.kernel.elects_sign:
        raise InputError(
            f"--weights: under {method.name} an adapter of weight 0 would still vote for the sign and count in the "
            f"mean; leave it out instead, got {given}"
        )
    return tuple(float(w) for w in weights)


def _why_unsigned(method: Method) -> str:
    if method.kernel.elects_sign:
        return "elects signs before it weighs, so a negative weight would turn against the elected sign"
    # PEFT puts the sign on A alone: with a shared A, weights 1 and -1 give (A - A)(B1 + B2) = 0, not (B1 - B2) A.
    return "adds A and B apart, so a negative weight would cancel a shared A instead of subtracting the adapter"


def check_density(method: Method, density: float | None) -> float | None:
    """A number in (0, 1] for the methods that prune (default .8), None for the others."""
    if not method.uses_density:
        if density is not None:
            users = ", ".join(row.name for row in METHODS.values() if row.uses_density)
            raise InputError(f"--density: {method.name} does not prune ({users} do), got {density}")
        return None
    if density is None:
        return DEFAULT_DENSITY
    if not 0 < density <= 1:
        raise InputError(f"--density: must be in (0, 1], got {density}")
    return float(density)


def check_majority_sign(method: Method, majority_sign: str | None) -> str | None:
    """``total`` (default) or ``frequency`` for the TIES kinds, None for the others."""
    if majority_sign is not None and majority_sign not in MAJORITY_SIGNS:
        raise InputError(f"--majority-sign: must be one of {', '.join(MAJORITY_SIGNS)}, got {majority_sign}")
    if majority_sign is not None and not method.kernel.elects_sign:
        users = ", ".join(row.name for row in METHODS.values() if row.kernel.elects_sign)
        raise InputError(f"--majority-sign: {method.name} elects no sign ({users} do), got {majority_sign}")
    return (majority_sign or "total") if method.kernel.elects_sign else None


def check_svd_rank(method: Method, svd_rank: int | None) -> int | None:
    """A positive rank, or None for the largest rank among the adapters; only for the methods that truncate."""
    if svd_rank is None:
        return None
    if not method.truncates:
        users = ", ".join(row.name for row in METHODS.values() if row.truncates)
        raise InputError(f"--svd-rank: {method.name} does not truncate ({users} do), got {svd_rank}")
    if svd_rank < 1:
        raise InputError(f"--svd-rank: must be at least 1, got {svd_rank}")
    return svd_rank
