"""Matrix products of frozen weights outside of autograd, by the fastest library at hand."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import MethodType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unlearn_pl.stopping import surely

# torch sends float32 products to MKL. oneDNN, which torch carries as well and calls from compiled code, is faster at
# the shapes of a training step on AMD cores, and more exact where few rows meet a long inner dimension (the gradient
# of a vocabulary head). Not public, hence the default.
_ONEDNN_LINEAR = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
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


@contextmanager
def frozen_linears(model: nn.Module) -> Iterator[None]:
    """Inside the block the linear layers of ``model`` compute by ``frozen_linear``, where that is another way."""
    layers = [module for module in model.modules() if type(module) is nn.Linear and "forward" not in vars(module)]
    layers = [layer for layer in layers if layer.weight.dtype == torch.float32 and layer.weight.device.type == "cpu"]

    def put_back() -> None:
        for layer in layers:
            vars(layer).pop("forward", None)

    try:
        for layer in layers:
            layer.forward = MethodType(_forward, layer)  # type: ignore[method-assign]
        yield
    finally:
        surely(put_back)


def _forward(layer: nn.Linear, x: Tensor) -> Tensor:
    """[..., M] from [..., K]."""
    return frozen_linear(x.reshape(-1, x.shape[-1]), layer.weight, layer.bias).view(*x.shape[:-1], -1)
