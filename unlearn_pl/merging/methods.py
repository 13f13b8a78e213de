"""The merge methods as a table (kernel x space), and the checks of a user's choice among them."""

import difflib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from unlearn_pl.errors import InputError
from unlearn_pl.merging.kernels import KERNELS, MAJORITY_SIGNS, VOTES, Kernel, KernelOptions, Space

Form = Literal["factors", "stacked", "truncated", "dense", "weights"]


@dataclass(frozen=True)
class Parameter:
    """A number that some kernels take."""

    flag: str
    default: float | str
    range: str


PARAMETERS = {
    "density": Parameter("--density", 0.8, "(0, 1]"),
    "majority_sign": Parameter("--majority-sign", "total", f"({', '.join(MAJORITY_SIGNS)})"),
    "vote": Parameter("--vote", "plain", f"({', '.join(VOTES)})"),
    "epsilon": Parameter("--epsilon", 0.1, "[0, 1)"),
    "outliers": Parameter("--outliers", 0.01, "[0, 1)"),
}


@dataclass(frozen=True)
class Method:
    """A kernel in a space: ``factors`` merges A with A and B with B, ``delta`` merges the products B A, ``checkpoint``
    the differences of full weights to the base's."""

    name: str
    kernel: Kernel
    space: Space
    form: Form
    """What comes out: merged ``factors``; the delta exactly, as ``stacked`` factors at the sum of the ranks; the delta
    ``truncated`` to ``svd_rank``; the delta ``dense``, which only a merged model can hold; whole ``weights``."""

    @property
    def random(self) -> bool:
        return self.kernel.random

    @property
    def equal_ranks(self) -> bool:
        """True if every adapter must have the same rank."""
        return self.space == "factors"

    @property
    def truncates(self) -> bool:
        return self.form == "truncated"

    @property
    def signed_weights(self) -> bool:
        """True if a negative weight subtracts an adapter."""
        return self.space != "factors" and self.kernel.signed_weights

    @property
    def scale(self) -> str:
        """What two equal adapters with weights 1 and 1 become."""
        if self.kernel.scale != "sum":
            return self.kernel.scale
        # A and B double each
        return "sum of A and of B: 4 x the delta" if self.space == "factors" else "sum: 2 x the delta"


def _adapter_methods() -> dict[str, Method]:
    rows = []
    for name, kernel in KERNELS.items():
        if kernel.in_factors:
            rows.append(Method(name, kernel, "factors", "factors"))
        if not kernel.linear:
            rows.append(Method(f"{name}_svd", kernel, "delta", "truncated"))
            rows.append(Method(f"{name}_dense", kernel, "delta", "dense"))
        elif name == "linear":
            # PEFT's names; task arithmetic is the signed sum of deltas
            rows += [Method(other, kernel, "delta", "stacked") for other in ("cat", "task_arithmetic")]
            rows.append(Method("svd", kernel, "delta", "truncated"))
        else:
            rows.append(Method(name, kernel, "delta", "stacked"))
            rows.append(Method(f"{name}_svd", kernel, "delta", "truncated"))
    return {row.name: row for row in rows}


METHODS = _adapter_methods()
"""How adapters can be merged."""

CHECKPOINT_METHODS = {name: Method(name, kernel, "checkpoint", "weights") for name, kernel in KERNELS.items()}
CHECKPOINT_METHODS["task_arithmetic"] = Method("task_arithmetic", KERNELS["linear"], "checkpoint", "weights")
"""How full checkpoints can be merged."""


@dataclass(frozen=True)
class MergeSettings:
    """A checked choice: what does not apply to the method is None."""

    method: Method
    weights: tuple[float, ...]
    options: KernelOptions
    seed: int | None
    svd_rank: int | None
    scale: float = 1.0
    """Factor of the merged delta."""

    def facts(self) -> dict[str, Any]:
        """The choice, ready for JSON."""
        rest = {name: getattr(self, name) for name in ("scale", "seed", "svd_rank")}
        return {"method": self.method.name, "weights": list(self.weights), **asdict(self.options), **rest}


def merge_settings(
    parents: int,
    method: str = "ties",
    weights: Sequence[float] | None = None,
    density: float | None = None,
    majority_sign: str | None = None,
    seed: int = 42,
    svd_rank: int | None = None,
    epsilon: float | None = None,
    outliers: float | None = None,
    scale: float = 1.0,
    checkpoints: bool = False,
    vote: str | None = None,
) -> MergeSettings:
    """Check a user's choice for so many ``parents`` (adapters or ``checkpoints``) and fill in the defaults.

    The defaults are weights 1 and those of `PARAMETERS`. Raises InputError for anything that the method has no use for
    or cannot use: nothing given is ignored.
    """
    row = find_method(method, CHECKPOINT_METHODS if checkpoints else METHODS)
    kind = "checkpoint" if checkpoints else "adapter"
    if parents < 2:
        raise InputError(f"--{kind}s: a merge needs at least 2 {kind}s, got {parents}")
    if row.kernel.only not in (None, parents):
        raise InputError(f"--{kind}s: {row.name} merges exactly {row.kernel.only}, got {parents}")
    if not math.isfinite(scale) or scale == 0:
        raise InputError(f"--scale: must be a finite number other than 0, got {scale}")
    given = {
        "density": density, "majority_sign": majority_sign, "vote": vote, "epsilon": epsilon, "outliers": outliers,
    }  # fmt: skip
    return MergeSettings(
        method=row,
        weights=check_weights(row, weights, parents, kind),
        options=check_options(row, given),
        seed=seed if row.random else None,
        svd_rank=check_svd_rank(row, svd_rank),
        scale=float(scale),
    )


def find_method(name: str, methods: dict[str, Method] = METHODS, argument: str = "--method") -> Method:
    """The row of that name. Raises InputError with the nearest name."""
    if name in methods:
        return methods[name]
    near = difflib.get_close_matches(str(name), methods, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise InputError(f"{argument}: must be one of {', '.join(methods)}, got {name}{hint}")


def check_weights(
    method: Method, weights: Sequence[float] | None, parents: int, kind: str = "adapter"
) -> tuple[float, ...]:
    """One finite weight a parent, not all zero, negative only where that means subtraction."""
    if weights is None:
        return (1.0,) * parents
    if not method.kernel.takes_weights:
        raise InputError(f"--weights: {method.name} finds its own from the {kind}s, got {weights}")
    if len(weights) != parents:
        raise InputError(f"--weights: {parents} {kind}s need {parents} weights, got {len(weights)}")
    given = " ".join(f"{w:g}" for w in weights)
    if not all(math.isfinite(w) for w in weights) or not any(weights):
        raise InputError(f"--weights: must be finite numbers, at least one not 0, got {given}")
    if min(weights) < 0 and not method.signed_weights:
        subtract = "linear" if method.space == "checkpoint" else "svd or cat"
        raise InputError(f"--weights: {method.name} {_why_unsigned(method)}; use {subtract} to subtract, got {given}")
    if 0 in weights and method.kernel.elects_sign:
        raise InputError(
            f"--weights: under {method.name} a parent of weight 0 would still vote for the sign and count in the "
            f"mean; leave it out instead, got {given}"
        )
    if method.kernel.scale == "mean" and abs(sum(weights)) < 1e-9 * max(map(abs, weights)):
        raise InputError(f"--weights: {method.name} divides by their sum, which must not be 0, got {given}")
    return tuple(float(w) for w in weights)


def _why_unsigned(method: Method) -> str:
    if method.kernel.elects_sign:
        return "elects signs before it weighs, so a negative weight would turn against the elected sign"
    if method.kernel.name == "slerp":
        return "goes from one to the other, with shares that are not negative"
    # PEFT puts the sign on A alone: with a shared A, weights 1 and -1 give (A - A)(B1 + B2) = 0, not (B1 - B2) A.
    return "adds A and B apart, so a negative weight would cancel a shared A instead of subtracting the adapter"


def check_options(method: Method, given: dict[str, float | str | None]) -> KernelOptions:
    """The numbers that the kernel takes, or their defaults; each in its range."""
    for name, value in given.items():
        if value is not None and name not in method.kernel.parameters:
            users = ", ".join(key for key, kernel in KERNELS.items() if name in kernel.parameters)
            flag = PARAMETERS[name].flag
            raise InputError(f"{flag}: {method.name} has no use for it (the kernels {users} have), got {value}")
    values = {
        name: PARAMETERS[name].default if given[name] is None else given[name] for name in method.kernel.parameters
    }
    options = KernelOptions(**values)  # type: ignore[arg-type]
    allowed = {
        "density": options.density is None or 0 < options.density <= 1,
        "majority_sign": options.majority_sign in (None, *MAJORITY_SIGNS),
        "vote": options.vote in (None, *VOTES),
        "epsilon": options.epsilon is None or 0 <= options.epsilon < 1,
        "outliers": options.outliers is None or 0 <= options.outliers < 1,
    }
    for name, fine in allowed.items():
        if not fine:
            parameter = PARAMETERS[name]
            raise InputError(f"{parameter.flag}: must be in {parameter.range}, got {getattr(options, name)}")
    _check_together(method, options)
    return options


def _check_together(method: Method, options: KernelOptions) -> None:
    if options.vote == "weighted" and method.space == "factors":
        raise InputError(
            f"--vote: weighted is for weight deltas and checkpoints; {method.name} merges A and B apart, each with the "
            f"root of weight x scaling, which that division would take out; use {method.name}_svd"
        )
    if options.epsilon is not None:
        half, density = options.epsilon / 2, options.density or 0
        if density - half <= 0 or density + half > 1:
            raise InputError(
                f"--epsilon: under {method.name} rows keep from density - epsilon / 2 to density + epsilon / 2, which "
                f"must lie in (0, 1]; got density {density:g} and epsilon {options.epsilon:g}"
            )
    if options.outliers is not None and (options.density or 0) + options.outliers > 1:
        raise InputError(
            f"--outliers: density + outliers must be at most 1, got {options.density:g} and {options.outliers:g}"
        )


def check_svd_rank(method: Method, svd_rank: int | None) -> int | None:
    """A positive rank, or None for the largest rank among the adapters; only for the methods that truncate."""
    if svd_rank is None:
        return None
    if not method.truncates:
        raise InputError(f"--svd-rank: {method.name} does not truncate (methods ending in svd do), got {svd_rank}")
    if svd_rank < 1:
        raise InputError(f"--svd-rank: must be at least 1, got {svd_rank}")
    return svd_rank
