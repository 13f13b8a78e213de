"""Whether the layers of a base that is stored quantised can be trained through, tried on this device."""

import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from unlearn_pl.errors import InputError
from unlearn_pl.models.load import quantisation

# Codes of 4 and 8 bits round what goes through them; a wrong gradient is off by its whole size.
TOLERANCE = 0.1


def check_gradients(model: nn.Module) -> None:
    """Raise InputError if an adapted base layer of ``model``, once it was evaluated, gives another gradient than its
    values have: bitsandbytes 4 bit on a CPU does. Models of plain weights are not looked at."""
    method = quantisation(model)
    if method is None:
        return
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer) and hasattr(layer, "in_features") and not gradient_is_right(layer):
            raise InputError(
                f"base: its layers are stored quantised ({method}), and their gradients are wrong on this device "
                f"(first {name}); save it dequantised (model.dequantize().save_pretrained(...)) and give that"
            )


def gradient_is_right(layer: LoraLayer) -> bool:
    """Whether x . gradient of (w . y) is w . (y(x) - y(0)), as it must be of any linear y(x)."""
    base = layer.get_base_layer()
    place = next(base.parameters()).device
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(4, size, generator=generator).to(place) for size in (layer.in_features, layer.out_features))
    training = base.training
    with torch.no_grad():
        zero = base.eval()(torch.zeros_like(x))
        base(x)
    base.train(training)
    x.requires_grad_()
    with torch.enable_grad():
        y = base(x)
    if not y.requires_grad:
        return False
    (gradient,) = torch.autograd.grad(y, x, w.to(y.dtype), materialize_grads=True)
    found, wanted = (gradient * x).sum(-1), (w * (y - zero)).sum(-1)
    return bool(((found - wanted).norm() <= TOLERANCE * w.norm() * (y - zero).norm()).item())
