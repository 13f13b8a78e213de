"""LoRA on a linear layer whose weights are codes."""

from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

import bitsandbytes
from torch import Tensor, nn

from unlearn_pl.errors import InputError
from unlearn_pl.models.codes import dequantised
from unlearn_pl.models.fast.lora import LoraLinear


class CodedLoraLinear(LoraLinear):
    """``LoraLinear`` on a layer of ``models/codes.py``: its weight is numbers twice a step, for a moment, and what is
    kept for the backward pass is the input in its own type. PEFT's layers keep that in float32 too, and again behind
    the dropout."""

    @staticmethod
    def is_frozen_linear(base: nn.Module) -> bool:
        return base.bias is None or not base.bias.requires_grad

    def frozen_weight(self, x: Tensor) -> Callable[[], Tensor]:
        return partial(dequantised, self.base_layer, x.dtype)

    def merge(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise InputError("a weight delta would be rounded away in codes; merge it in the plain base", "base")


LAYERS = {bitsandbytes.nn.Linear4bit: CodedLoraLinear, bitsandbytes.nn.Linear8bitLt: CodedLoraLinear}
"""By the layer that gets the adapter."""
