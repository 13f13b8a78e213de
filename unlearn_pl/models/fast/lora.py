"""A linear layer with LoRA as one autograd function, which keeps its input and nothing else of its size."""

from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import Tensor, nn

from unlearn_pl.models.fast.attention import HALF
from unlearn_pl.models.fast.dropout import DropoutMask
from unlearn_pl.models.fast.linear import frozen_linear


class LoraLinear(PeftLinear):
    """PEFT's LoRA layer; only how it is computed differs.

    PEFT's own forward keeps its input a second time behind the dropout and adds the two branches in new tensors; on a
    CPU its dropout alone takes a tenth of a training step. Anything unusual (several active adapters, a variant such
    as DoRA, autocast to another type than the base's, biases of the adapter, a trained base layer) goes to PEFT.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args or kwargs or not self.is_plain(x):
            return super().forward(x, *args, **kwargs)
        return self._delta(x)

    def is_plain(self, x: Tensor) -> bool:
        """Whether the layer is one active LoRA adapter without a bias, in training, on a frozen, unquantised layer."""
        adapters, base = self.active_adapters, self.base_layer
        return (
            torch.is_grad_enabled()
            and not (self.disable_adapters or self.merged)
            and len(adapters) == 1
            and adapters[0] in self.lora_A
            and adapters[0] not in self.lora_variant
            and self.lora_B[adapters[0]].bias is None
            and self.is_frozen_linear(base)
            and suits_autocast(x, base.weight)
        )

    @staticmethod
    def is_frozen_linear(base: nn.Module) -> bool:
        """Whether the layer below the adapter is one whose product is computed here."""
        frozen = type(base) is nn.Linear and not base.weight.requires_grad
        return frozen and (base.bias is None or not base.bias.requires_grad)

    def _delta(self, x: Tensor) -> Tensor:
        """[..., M] from [..., K]."""
        name = self.active_adapters[0]
        dropout = self.lora_dropout[name]
        rate = dropout.p if self.training and isinstance(dropout, nn.Dropout) else 0.0
        mask = DropoutMask(rate) if rate else None
        base, a, b = self.base_layer, self.lora_A[name].weight, self.lora_B[name].weight
        factor = self.scaling[name] / (mask.keep if mask else 1.0)
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(base.weight.dtype)
        out = AddDelta.apply(x, self.frozen_weight(x), base.bias, a, b, mask, factor)
        return out.view(*x.shape[:-1], -1)

    def frozen_weight(self, x: Tensor) -> Tensor | Callable[[], Tensor]:
        """The base layer's weight [M, K], or what makes it of codes each time that it is asked."""
        return self.base_layer.weight


class AddDelta(torch.autograd.Function):
    """``x W' + bias + factor * (x * mask) A' B'``: x [..., K], W [M, K] and bias [M] or None, both frozen, A [R, K],
    B [M, R], and a mask for N x K entries or None, N the product of x's other dimensions; gives [N, M]. In place of W
    a function may be given, which is called once for each direction, so that W is not kept.

    That is no view: models that overwrite what a linear layer gave (OLMo clips queries and keys) could not be
    differentiated.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | Callable[[], Tensor], bias: Tensor | None, a: Tensor, b: Tensor,
        mask: DropoutMask | None, factor: float,
    ) -> Tensor:  # fmt: skip
        rows, dtype = x.reshape(-1, x.shape[-1]), adapter_type(x, a)
        low = masked(rows, mask, dtype) @ a.to(dtype).t()  # [N, R]
        low *= factor
        ctx.make = None if isinstance(weight, Tensor) else weight
        out = frozen_linear(rows, numbers(weight), bias)
        if out.dtype == dtype:
            out.addmm_(low, b.to(dtype).t())
        else:
            out = (out + low @ b.t()).to(out.dtype)
        ctx.save_for_backward(x, weight if isinstance(weight, Tensor) else None, a, b, low)
        ctx.mask, ctx.factor = mask, factor
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, low = ctx.saved_tensors
        mask, factors = ctx.mask, a.to(low.dtype)
        grad = grads[0]  # [N, M]
        fine = grad.to(low.dtype)
        grad_low = fine @ b.to(low.dtype)  # [N, R], of x A' before the factor
        grad_low *= ctx.factor
        grad_a = grad_low.t() @ masked(x.reshape(-1, x.shape[-1]), mask, low.dtype)
        grad_b = fine.t() @ low
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = frozen_linear(grad, numbers(weight if ctx.make is None else ctx.make).t())
            if mask is None and grad_x.dtype == low.dtype:
                grad_x.addmm_(grad_low, factors)
            else:
                through_a = frozen_linear(grad_low, factors.t())
                grad_x += through_a if mask is None else mask.zero_(through_a)
            grad_x = grad_x.view(x.shape)
        return grad_x, None, None, grad_a.to(a.dtype), grad_b.to(b.dtype), None, None


def suits_autocast(x: Tensor, weight: Tensor) -> bool:
    """Whether no autocast is on, or one to the type of the base's weights, on a GPU: there our products are in that
    type by themselves (``adapter_type``), and only ``x`` is left to be cast."""
    device = x.device.type
    return not torch.is_autocast_enabled(device) or (
        device == "cuda" and torch.get_autocast_dtype(device) == weight.dtype
    )


def adapter_type(x: Tensor, a: Tensor) -> torch.dtype:
    """The type in which the adapter multiplies: that of its factors; on a GPU the half precision of its input, if it is
    in one, as under autocast: sums are in float32 there all the same, and products in float32 take ten times as long.
    """
    return x.dtype if x.dtype in HALF and x.device.type == "cuda" else a.dtype


def numbers(weight: Tensor | Callable[[], Tensor]) -> Tensor:
    """The weight, made now if it is not there."""
    return weight if isinstance(weight, Tensor) else weight()


def masked(values: Tensor, mask: DropoutMask | None, dtype: torch.dtype) -> Tensor:
    """[N, K] ``values`` in ``dtype``; with a mask, a copy with zeros where that has them."""
    if mask is None:
        return values.to(dtype)
    return mask.zero_(values.to(dtype, copy=True, memory_format=torch.contiguous_format))
