"""The merge methods: every kernel in every space that it can merge in, under the names that a user gives."""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from unlearn_pl.errors import InputError
from unlearn_pl.merging.kernels import KERNELS, Kernel, Space

Form = Literal["factors", "stacked", "truncated", "dense", "weights"]


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
    def why_unsigned(self) -> str:
        """Why a negative weight cannot subtract an adapter; empty where it does."""
        if self.space == "factors" and not self.kernel.why_unsigned:
            # PEFT puts the sign on A alone: with a shared A, weights 1 and -1 give (A - A)(B1 + B2) = 0, not (B1 - B2)A
            return "adds A and B apart, so a negative weight would cancel a shared A instead of subtracting the adapter"
        return self.kernel.why_unsigned

    @property
    def scale(self) -> str:
        """What two equal adapters with weights 1 and 1 become."""
        if self.kernel.scale != "sum":
            return self.kernel.scale
        # A and B double each
        return "sum of A and of B: 4 x the delta" if self.space == "factors" else "sum: 2 x the delta"


def _adapter_methods(kernel: Kernel) -> Iterator[Method]:
    svd_name = kernel.svd_name or f"{kernel.name}_svd"
    if kernel.in_factors:
        yield Method(kernel.name, kernel, "factors", "factors")
    if kernel.linear:
        for name in kernel.exact_names or (kernel.name,):
            yield Method(name, kernel, "delta", "stacked")
    yield Method(svd_name, kernel, "delta", "truncated")
    if not kernel.linear:
        yield Method(f"{kernel.name}_dense", kernel, "delta", "dense")


METHODS = {method.name: method for kernel in KERNELS.values() for method in _adapter_methods(kernel)}
"""How adapters can be merged."""

CHECKPOINT_METHODS = {
    name: Method(name, kernel, "checkpoint", "weights")
    for kernel in KERNELS.values()
    for name in (kernel.name, *kernel.checkpoint_names)
}
"""How full checkpoints can be merged."""


def find_method(name: str, methods: Mapping[str, Method] = METHODS, argument: str = "method") -> Method:
    """The row of that name. Raises InputError, about the parameter ``argument``, with the nearest name."""
    if name in methods:
        return methods[name]
    near = difflib.get_close_matches(str(name), methods, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise InputError(f"must be one of {', '.join(methods)}, got {name}{hint}", argument)
