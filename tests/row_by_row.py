"""Models that few tokens tie in, and what they say one row at a time by transformers' own ``generate``."""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

Model = TypeVar("Model", bound=nn.Module)


def sharpened(model: Model) -> Model:
    """``model`` with larger random weights than fresh ones, the same each time, so that rows differ."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn_like(parameter) * 0.2)
    return model


@torch.no_grad()
def one_by_one(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], new: int
) -> list[str]:
    """The greedy text after each prompt."""
    texts = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False, pad_token_id=0
        )
        texts.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
    return texts
