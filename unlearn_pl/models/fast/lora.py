"""A linear layer with LoRA as one autograd function, which keeps its input and nothing else of its size."""

from typing import Any

import torch
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import Tensor, nn
from torch.nn import functional as F

from unlearn_pl.models.fast.dropout import DropoutMask
from unlearn_pl.models.fast.linear import frozen_linear


class LoraLinear(PeftLinear):
    """PEFT's LoRA layer; only how it is computed differs.

    PEFT's own forward keeps its input a second time behind the dropout and adds the two branches in new tensors; on a
    CPU its dropout alone takes a tenth of a training step. Anything unusual (several active adapters, a variant such
    as DoRA, autocast, biases of the adapter, a quantised or trained base layer) goes to PEFT.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args or kwargs or not self.is_plain(x):
            return super().forward(x, *args, **kwargs)
        return self._delta(x, None)

    def forward_gated(self, gate: Tensor, up: Tensor) -> Tensor:
        """The layer at ``silu(gate) * up``, of which the product is not kept: the backward pass forms it again."""
        if not self.is_plain(up):
            return self.forward(F.silu(gate) * up)
        return self._delta(up, gate)

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
            and not torch.is_autocast_enabled(x.device.type)
            and type(base) is nn.Linear
            and not base.weight.requires_grad
            and (base.bias is None or not base.bias.requires_grad)
        )

    def _delta(self, x: Tensor, gate: Tensor | None) -> Tensor:
        name = self.active_adapters[0]
        dropout = self.lora_dropout[name]
        rate = dropout.p if self.training and isinstance(dropout, nn.Dropout) else 0.0
        mask = DropoutMask(rate) if rate else None
        base, a, b = self.base_layer, self.lora_A[name].weight, self.lora_B[name].weight
        return AddDelta.apply(
            x, gate, base.weight, base.bias, a, b, mask, self.scaling[name] / (mask.keep if mask else 1.0)
        )


class AddDelta(torch.autograd.Function):
    """``z W' + bias + factor * (z * mask) A' B'``, W and bias frozen, where ``z`` is ``x`` or ``silu(gate) * x``."""

    @staticmethod
    def forward(ctx: Any, x, gate, weight, bias, a, b, mask, factor):  # type: ignore[no-untyped-def]
        z = gated(x, gate)
        low = masked(z, mask, a.dtype) @ a.t()
        low *= factor
        out = frozen_linear(z, weight, bias)
        if out.dtype == b.dtype:
            out.addmm_(low, b.t())
        else:
            out = (out + low @ b.t()).to(out.dtype)
        ctx.save_for_backward(x, gate, weight, a, b, low)
        ctx.mask, ctx.factor = mask, factor
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad):  # type: ignore[no-untyped-def]
        x, gate, weight, a, b, low = ctx.saved_tensors
        mask = ctx.mask
        grad = grad.reshape(-1, grad.shape[-1])
        fine = grad.to(b.dtype)
        grad_low = fine @ b
        grad_low *= ctx.factor
        grad_a = grad_low.t() @ masked(gated(x, gate), mask, a.dtype)
        grad_b = fine.t() @ low
        grad_x = grad_gate = None
        if any(ctx.needs_input_grad[:2]):
            grad_z = frozen_linear(grad, weight.t())
            if mask is None and grad_z.dtype == a.dtype:
                grad_z.addmm_(grad_low, a)
            else:
                through_a = frozen_linear(grad_low, a.t())
                grad_z += through_a if mask is None else mask.zero_(through_a)
            grad_x, grad_gate = through_gate(grad_z.view(x.shape), x, gate)
        return grad_x, grad_gate, None, None, grad_a, grad_b, None, None


def gated(x: Tensor, gate: Tensor | None) -> Tensor:
    """[N, K]: ``x``, or ``silu(gate) * x``."""
    z = x if gate is None else F.silu(gate).mul_(x)
    return z.reshape(-1, x.shape[-1])


def masked(values: Tensor, mask: DropoutMask | None, dtype: torch.dtype) -> Tensor:
    """[N, K] ``values`` in ``dtype``; with a mask, a copy with zeros where that has them."""
    if mask is None:
        return values.to(dtype)
    return mask.zero_(values.to(dtype, copy=True, memory_format=torch.contiguous_format))


def through_gate(grad_z: Tensor, x: Tensor, gate: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The gradients of ``x`` and ``gate`` from that of ``silu(gate) * x``."""
    if gate is None:
        return grad_z, None
    grad_gate = torch.ops.aten.silu_backward(grad_z * x, gate)
    return grad_z.mul_(F.silu(gate)), grad_gate
