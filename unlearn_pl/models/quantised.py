"""Whether the layers of a base that is stored quantised can be trained through, tried on this device."""

import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from unlearn_pl.errors import InputError
from unlearn_pl.models.codes import is_coded
from unlearn_pl.models.load import quantisation

# Codes of 4 and 8 bits round what goes through them; a wrong gradient is off by its whole size.
TOLERANCE = 0.1


def check_gradients(model: nn.Module) -> None:
    """Raise InputError if an adapted base layer of ``model``, once it was evaluated, gives another gradient than its
    values have. Models of plain weights are not looked at, nor those whose products are of this project."""
    method = quantisation(model)
    if method is None or any(map(is_coded, model.modules())):
        return
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer) and hasattr(layer, "in_features") and not gradient_is_right(layer):
            raise InputError(
                f"base: its layers are stored quantised ({method}), and their gradients are wrong on this device "
                f"(first {name}); save it dequantised (model.dequantize().save_pretrained(...)) and give that"
            )


def gradient_is_right(layer: LoraLayer) -> bool:
    """Whether x . gradient of (w . y) is w . (y(x) - y(0)), as it must be of any linear y(x); at w = y(x) - y(0)."""
    base = layer.get_base_layer()
    x = torch.randn(4, layer.in_features, generator=torch.Generator().manual_seed(0))
    x = x.to(next(base.parameters()).device)
    training = base.training
    with torch.no_grad():
        w = base.eval()(x) - base(torch.zeros_like(x))
    base.train(training)
    with torch.enable_grad():
        y = base(x.requires_grad_())
    if not y.requires_grad:
        return False
    (gradient,) = torch.autograd.grad(y, x, w.to(y.dtype), materialize_grads=True)
    found, wanted = (gradient * x).sum(-1).float(), w.square().sum(-1).float()
    return bool((found - wanted).norm() <= TOLERANCE * wanted.norm())
