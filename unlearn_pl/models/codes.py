"""Frozen linear layers whose weights are kept as codes of 4 or 8 bits (bitsandbytes) and multiplied as numbers.

A layer computes ``x W' + bias``, with W what its codes stand for, in training and in evaluation alike: only so is the
model without its adapter the reference of the one that is trained, and a row independent of its company.
"""

import copy
import warnings
from importlib.util import find_spec
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from unlearn_pl.errors import InputError
from unlearn_pl.models.fast.linear import frozen_linear

CODES = ("nf4", "fp4", "int8")
"""Types of codes: NormalFloat 4 and float 4 in blocks of 64 whose scales are quantised again (QLoRA, Dettmers et al.
2023, arXiv 2305.14314), and integers of 8 bits with a scale a row (Dettmers et al. 2022, arXiv 2208.07339)."""
COMPUTED = torch.bfloat16
"""What is multiplied, and the type of all weights that are no codes: embedding, head, norms."""
# What the largest integer of 8 bits stands for is the scale of its row.
LARGEST = 127
# Rows that a kernel for codes of 4 bits is faster with; a text's next tokens are so few, and no batch of training.
FEW = 32
# More weights of a model than such a share that are no codes are told of. Norms and biases are a thousandth.
MOST_PLAIN = 0.05


def loading_options(codes: str, device: torch.device) -> dict[str, Any]:
    """What ``from_pretrained`` takes to make ``codes`` of a plain model's linear layers, but for the vocabulary head,
    on ``device``. Raises InputError if bitsandbytes is missing."""
    if find_spec("bitsandbytes") is None:
        raise InputError(f"{codes} needs the package bitsandbytes: pip install 'unlearn-pl[quantised]'", "dtype")
    if codes == "int8":
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=codes,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=COMPUTED,
        )
    return {"quantization_config": config, "device_map": {"": device}}


def is_coded(layer: nn.Module) -> bool:
    """Whether the weights of a linear layer are codes of bitsandbytes."""
    return type(getattr(layer, "weight", None)).__name__ in ("Params4bit", "Int8Params")


def warn_of_plain(model: PreTrainedModel, codes: str) -> None:
    """Warn if weights beside embedding and head are no codes, such as experts that are bare parameters. Raises
    InputError if there are no codes at all."""
    outside = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    inside = [weight for weight in model.parameters() if id(weight) not in outside]
    plain = sum(weight.numel() for weight in inside if weight.is_floating_point())
    coded = sum(layer.in_features * layer.out_features for layer in model.modules() if is_coded(layer))
    if not coded:
        raise InputError(f"bitsandbytes takes no layer of {type(model).__name__}, got {codes}", "dtype")
    if plain > MOST_PLAIN * (plain + coded):
        share = plain / (plain + coded)
        warnings.warn(
            f"dtype {codes}: {share:.0%} of the weights beside embedding and head are in no linear layer "
            f"({type(model).__name__}) and stay in {str(COMPUTED).removeprefix('torch.')}",
            stacklevel=3,
        )


def compute_plainly(model: nn.Module) -> None:
    """Let each coded layer of ``model`` compute what the file's first lines say. By themselves those of 8 bits round
    what goes in too, and those of 4 bits, on a CPU, pack their codes anew in evaluation, which breaks the gradient
    afterwards, and read blocks that go beyond a row with another block's scale."""
    layers: list[Any] = [layer for layer in model.modules() if is_coded(layer)]
    for layer in layers:
        if hasattr(layer.weight, "quant_state"):
            if getattr(layer.weight.quant_state, "packing_format_for_cpu", False):
                layer.state_dict()  # which undoes that
            layer.support_avx512bf16_for_cpu = False
        elif layer.weight.SCB is None:  # of a model that has computed
            layer.weight.SCB = layer.state.SCB
        layer.forward = MethodType(multiply, layer)


def multiply(layer: Any, x: Tensor) -> Tensor:
    """[..., M] from ``x`` [..., K], through a coded layer; what is kept for the gradient is no number of the weight."""
    if not torch.is_grad_enabled() and x.is_cuda and x.numel() <= FEW * x.shape[-1] and has_kernel(layer):
        return type(layer).forward(layer, x)  # which reads the codes alone
    return CodedProduct.apply(x, layer).view(*x.shape[:-1], -1)


def has_kernel(layer: Any) -> bool:
    """Whether a GPU multiplies few rows with the codes of a layer without making numbers of them all."""
    weight = layer.weight
    return hasattr(weight, "quant_state") and layer.in_features % weight.quant_state.blocksize == 0


def dequantised(layer: nn.Module, dtype: torch.dtype) -> Tensor:
    """[M, K] in ``dtype``: what the codes of a layer stand for."""
    weight: Any = layer.weight
    if hasattr(weight, "quant_state"):
        from bitsandbytes import functional  # who has such a layer has the package

        flat = copy.copy(weight.quant_state)
        flat.shape = (weight.quant_state.shape.numel(),)  # blocks go from one row into the next
        return functional.dequantize_4bit(weight.data, flat).view(weight.quant_state.shape).to(dtype)
    if weight.SCB.device != weight.device:  # the model was moved, and its scales were not
        weight.SCB = weight.SCB.to(weight.device)
    return weight.data.to(dtype).mul_((weight.SCB / LARGEST)[:, None])


def scales(weight: Any) -> dict[str, Tensor]:
    """All tensors beside the codes of ``weight`` that say which numbers they stand for; of a plain one none."""
    if hasattr(weight, "quant_state"):
        return {f".{name}": value for name, value in weight.quant_state.as_dict(packed=True).items()}
    return {".SCB": weight.SCB} if hasattr(weight, "SCB") else {}


class CodedProduct(torch.autograd.Function):
    """``x W' + bias`` [N, M] of x [..., K] through a frozen coded layer, N the product of x's other dimensions. W is
    there twice for a moment: in the forward pass, and for the gradient of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Any) -> Tensor:
        autocast = torch.is_autocast_enabled(x.device.type)
        ctx.layer, ctx.of_x = layer, (x.dtype, x.shape)
        ctx.computed = torch.get_autocast_dtype(x.device.type) if autocast else x.dtype
        weight = dequantised(layer, ctx.computed)
        bias = None if layer.bias is None else layer.bias.to(ctx.computed)
        return frozen_linear(x.reshape(-1, x.shape[-1]).to(ctx.computed), weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        grad = frozen_linear(upstream[0].to(ctx.computed), dequantised(ctx.layer, ctx.computed).t())
        dtype, shape = ctx.of_x
        return grad.to(dtype).view(shape), None
