"""Matrix products by the fastest library at hand: of frozen weights outside of autograd, and of trained ones."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unlearn_pl.stopping import surely

# (x [N, K], weight [M, K], bias [M] or None) -> [N, M]
Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]
# torch sends float32 products to MKL. oneDNN, which torch carries as well and calls from compiled code, is faster at
# the shapes of a training step on AMD cores, and more exact where few rows meet a long inner dimension (the gradient
# of a vocabulary head). Not public, hence the default.
_ONEDNN_LINEAR = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
# It needs some 10 microseconds to begin, which products of fewer multiplications than that do not win back.
ONEDNN_FROM = 1 << 20
_torch_alone: ContextVar[bool] = ContextVar("torch_alone", default=False)


@contextmanager
def torch_products(alone: bool = True) -> Iterator[None]:
    """In the block ``frozen_linear`` is torch's own product, if ``alone``; also where it is called far below."""
    token = _torch_alone.set(alone)
    try:
        yield
    finally:
        _torch_alone.reset(token)


def frozen_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x W' + bias``, [N, K] with [M, K] gives [N, M]; no gradient is recorded on this way."""
    served = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and not torch.is_grad_enabled()
    there = torch.backends.mkldnn.is_available() and not _torch_alone.get()
    if _ONEDNN_LINEAR is not None and served and there:
        return _ONEDNN_LINEAR(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def short_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``frozen_linear`` where x [N, K] may be a row or two: a small product is torch's own."""
    few = x.shape[0] * weight.numel() < ONEDNN_FROM
    return F.linear(x, weight, bias) if few else frozen_linear(x, weight, bias)


def trained_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``frozen_linear`` with gradients for all of ``x`` [N, K], ``weight`` [M, K] and ``bias`` [M] or None."""
    return TrainedLinear.apply(x, weight, bias)


class TrainedLinear(torch.autograd.Function):
    """The autograd function behind ``trained_linear``; differentiable once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return frozen_linear(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (x, weight) = upstream, ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            frozen_linear(grad, weight.t()) if of_x else None,
            frozen_linear(grad.t(), x.t()) if of_weight else None,
            grad.sum(0) if of_bias else None,
        )


def frozen_linears(model: nn.Module) -> AbstractContextManager[None]:
    """Inside the block the linear layers of ``model`` compute by ``short_linear``, where that is another way."""
    return linears_by(short_linear, model)


def trained_linears(model: nn.Module) -> AbstractContextManager[None]:
    """Inside the block the linear layers of ``model`` compute by ``trained_linear``, where that is another way."""
    return linears_by(trained_linear, model)


@contextmanager
def linears_by(product: Product, model: nn.Module) -> Iterator[None]:
    """Inside the block the linear layers of ``model`` compute by ``product``, but for those of another type than
    float32 or on another device than a CPU."""
    layers = [module for module in model.modules() if type(module) is nn.Linear and "forward" not in vars(module)]
    layers = [layer for layer in layers if layer.weight.dtype == torch.float32 and layer.weight.device.type == "cpu"]

    def forward(layer: nn.Linear, x: Tensor) -> Tensor:
        return product(x.reshape(-1, x.shape[-1]), layer.weight, layer.bias).view(*x.shape[:-1], -1)

    def put_back() -> None:
        for layer in layers:
            vars(layer).pop("forward", None)

    try:
        for layer in layers:
            layer.forward = MethodType(forward, layer)  # type: ignore[method-assign]
        yield
    finally:
        surely(put_back)
