"""A causal language model taken apart: the transformer body, and the vocabulary head only where it is asked for."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from unlearn_pl.errors import InputError
from unlearn_pl.objectives.head import Head

# Of a configuration: what caps or scales the logits, which near zero shows too little to be seen by trying.
LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "logits_scaling")


def causal_model(model: nn.Module) -> PreTrainedModel:
    """The Hugging Face model inside a PEFT wrapper (its linear layers carry the adapters), or ``model`` itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]


def text_config(model: nn.Module) -> PreTrainedConfig:
    """The configuration of the language model proper, also where it is one part of a model of several modalities."""
    return causal_model(model).config.get_text_config(decoder=True)


def hidden_states(model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """[B, T, H] final hidden states, after the last norm, of ``input_ids`` [B, T]."""
    body = causal_model(model).base_model
    return body(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state


def vocabulary_head(model: nn.Module) -> Head:
    """The head behind the body, which must be a plain, frozen linear layer; ``check_head`` makes sure of it."""
    layer = causal_model(model).get_output_embeddings()
    return Head(layer.weight, layer.bias)


@torch.no_grad()
def head_is_plain(model: nn.Module) -> bool:
    """Whether the model's logits are those of a linear head on its body's states, compared on a few tokens.

    Some architectures scale or cap their logits after the head.
    """
    causal = causal_model(model)
    changed = [getattr(causal.config, name, None) not in (None, 1, 1.0) for name in LOGIT_CHANGES]
    if any(changed) or type(causal.get_output_embeddings()) is not nn.Linear:
        return False
    device = causal.get_input_embeddings().weight.device
    input_ids = torch.arange(4, device=device)[None]
    apart = vocabulary_head(model).logits(hidden_states(model, input_ids))
    whole = causal(input_ids=input_ids, use_cache=False).logits
    return torch.allclose(apart.float(), whole.float(), rtol=1e-3, atol=1e-3, equal_nan=True)


def check_head(model: nn.Module) -> None:
    """Refuse a model that could not be trained through ``vocabulary_head``: that would optimise something else than
    its logits. A head with an adapter of its own is one. Raises InputError.
    """
    causal = causal_model(model)
    head = causal.get_output_embeddings()
    if type(head) is not nn.Linear or head.weight.requires_grad:
        raise InputError(
            f"--model.lora.target_modules: the vocabulary head must stay frozen, got {type(head).__name__}"
        )
    if not head_is_plain(model):
        raise InputError(
            f"model: {type(causal).__name__} changes its logits after the vocabulary head (soft-capping or scaling), "
            "which is not supported"
        )
