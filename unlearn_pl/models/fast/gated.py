"""The gated feed-forward block of Llama and its kin, without keeping its inner product for the backward pass."""

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from unlearn_pl.models.fast.lora import LoraLinear


def enable_gated(model: nn.Module) -> int:
    """Let each feed-forward block that is ``down(silu(gate(x)) * up(x))`` hand gate and up to its last layer, if that
    has an adapter; gives the number of blocks. A block whose own forward computes anything else is left alone."""
    blocks = [module for module in model.modules() if is_gated(module)]
    for block in blocks:
        block.forward = MethodType(gated_forward, block)
    return len(blocks)


def gated_forward(block: Any, x: Tensor) -> Tensor:
    """``down(silu(gate(x)) * up(x))``."""
    return block.down_proj.forward_gated(block.gate_proj(x), block.up_proj(x))


@torch.no_grad()
def is_gated(module: nn.Module) -> bool:
    """Whether ``module`` has the layers of such a block and gives, bit for bit, what ``gated_forward`` gives, also in
    training, when it may have a dropout of its own."""
    layers = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    if not (isinstance(layers[2], LoraLinear) and all(isinstance(layer, nn.Module) for layer in layers)):
        return False
    weight = layers[2].base_layer.weight
    if not weight.is_floating_point():  # quantised
        return False
    x = torch.randn(2, layers[2].out_features, generator=torch.Generator().manual_seed(0))
    x = x.to(weight.device, weight.dtype)
    training = module.training
    same = []
    with torch.random.fork_rng([weight.device] if weight.device.type == "cuda" else []):
        for mode in (False, True):
            module.train(mode)
            for layer in layers:
                layer.eval()  # type: ignore[union-attr]  # the adapters' dropout draws anew in each forward
            same.append(torch.equal(module(x), gated_forward(module, x)))
    module.train(training)
    return all(same)
