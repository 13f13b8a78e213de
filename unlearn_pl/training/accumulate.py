"""Gradients of a sum, one summand at a time, so that the activations of only one of them are in memory."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def sum_one_by_one(summands: Sequence[Callable[[], Tensor]], parameters: Sequence[Tensor]) -> Tensor:
    """The sum of scalars, differentiable once with respect to ``parameters``.

    Each summand is computed and differentiated before the next begins; their gradients are added up in one buffer of
    the size of the parameters and handed on when the caller's own backward pass comes, so hooks on the parameters
    (DDP's among them), loss scaling and accumulation work as always.
    """
    if not torch.is_grad_enabled():
        return torch.stack([summand() for summand in summands]).sum()
    return SumOneByOne.apply(summands, *parameters)


class SumOneByOne(torch.autograd.Function):
    """The autograd function behind ``sum_one_by_one``."""

    @staticmethod
    def forward(ctx: Any, summands: Sequence[Callable[[], Tensor]], *parameters: Tensor) -> Tensor:
        # allocated before any activation, so that it does not sit among their freed places
        ctx.grads = [torch.zeros_like(parameter) for parameter in parameters]
        ctx.used = [False] * len(parameters)
        values = [add_gradients(summand, parameters, ctx.grads, ctx.used) for summand in summands]
        return torch.stack(values).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
        assert ctx.grads is not None, "differentiated twice"
        grads, ctx.grads = ctx.grads, None  # handed over, not copied: they are as large as the adapter
        return None, *(grad.mul_(upstream[0]) if used else None for grad, used in zip(grads, ctx.used, strict=True))


def add_gradients(
    summand: Callable[[], Tensor], parameters: Sequence[Tensor], sums: Sequence[Tensor], used: list[bool]
) -> Tensor:
    """The value of ``summand``, whose gradients are added to ``sums``; nothing else of it stays in memory. ``used``
    remembers which parameters have had a gradient at all."""
    with torch.enable_grad():
        value = summand()
        grads = torch.autograd.grad(value, parameters, allow_unused=True)
    places = [place for place, grad in enumerate(grads) if grad is not None]
    for place in places:
        used[place] = True
    if places:  # in one kernel on a GPU
        torch._foreach_add_([sums[place] for place in places], [grads[place] for place in places])
    return value.detach()
