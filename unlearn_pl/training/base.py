"""The base model of a fit: one that is loaded by its name, or one that is in memory already."""

import copy
from pathlib import Path
from typing import TypeVar

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from unlearn_pl.errors import InputError
from unlearn_pl.models.load import CPU, DTYPES, BaseModel, blamed_on

Given = TypeVar("Given")


def as_name(given: Given | Path) -> Given | str:
    """A path as the text by which models and tokenizers are called; anything else as it is."""
    return str(given) if isinstance(given, Path) else given


class Base:
    """A base model as it was given: ``name`` and ``dtype`` say which, ``load`` brings it.

    One in memory is not copied: its linear layers get the adapter. Raises InputError if it cannot be a base.
    """

    def __init__(self, given: str | PreTrainedModel, dtype: str, trust_remote_code: bool) -> None:
        self._given: BaseModel | PreTrainedModel
        self.in_memory = not isinstance(given, str)
        if isinstance(given, str):
            self._given = BaseModel(given, dtype=dtype, trust_remote_code=trust_remote_code)
            self.name, self.dtype = given, dtype
        else:
            refuse_unfit(given)
            self._given = given
            self.name = given.name_or_path or type(given).__name__
            self.dtype = str(given.dtype).removeprefix("torch.")

    def load(self, device: torch.device = CPU) -> PreTrainedModel:
        """The model, in eval mode; the one in memory can be lent once, since a fit changes its layers. Codes are made
        on ``device``; everything else is loaded on the CPU."""
        if isinstance(self._given, BaseModel):
            with blamed_on("base"):
                return self._given.load(device)
        refuse_unfit(self._given)
        return self._given.eval()

    def fresh(self, model: PeftModel) -> PreTrainedModel:
        """Another copy on the CPU (of codes, where ``model`` is): loaded again, or that of ``model``, which was made of
        this base, without adapter."""
        if isinstance(self._given, BaseModel):
            return self._given.load(next(model.parameters()).device)
        return copy.deepcopy(model).cpu().unload().eval()


def refuse_unfit(model: object) -> None:
    """Raise InputError unless ``model`` is a causal language model of transformers without an adapter."""
    if isinstance(model, PeftModel):
        raise InputError("must be without an adapter, got a PeftModel; give model.unload(), or merge it first", "base")
    if not isinstance(model, PreTrainedModel):
        raise InputError(f"must be a path, a hub name or a transformers model, got {type(model).__name__}", "base")
    if not isinstance(model.get_output_embeddings(), nn.Module):
        raise InputError(f"must be a causal language model, got {type(model).__name__}, which has no head", "base")
    if any(isinstance(layer, LoraLayer) for layer in model.modules()):
        raise InputError(
            "this model has an adapter in its layers, from an earlier fit perhaps: give module.model.unload(), or a "
            "copy.deepcopy taken before",
            "base",
        )
    if str(model.dtype).removeprefix("torch.") not in DTYPES:
        raise InputError(f"must be in {', '.join(DTYPES)}, got {model.dtype}", "base")
