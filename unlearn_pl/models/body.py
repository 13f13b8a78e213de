"""A causal language model taken apart: the transformer body, and the vocabulary head only where it is asked for."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from unlearn_pl.errors import InputError, one_line
from unlearn_pl.models.head import Head

# Head and model are compared at logits as large as the first, or states so many times their size: near zero a cap does
# not show.
LOUD, MOST_LOUD = 100.0, 1e3


def causal_model(model: nn.Module) -> PreTrainedModel:
    """The Hugging Face model inside a PEFT wrapper (its linear layers carry the adapters), or ``model`` itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]


def text_config(model: nn.Module) -> PreTrainedConfig:
    """The configuration of the language model proper, also where it is one part of a model of several modalities."""
    return causal_model(model).config.get_text_config(decoder=True)


def body_of(model: nn.Module) -> nn.Module:
    """The transformer below the vocabulary head; of a model of several modalities the part that reads text."""
    causal = causal_model(model)
    if is_wrapped(causal):
        return causal.get_decoder()
    # Llama 4's text model names as its body what only the whole model has
    return causal.model if causal.base_model is causal and hasattr(causal, "model") else causal.base_model


def is_wrapped(model: nn.Module) -> bool:
    """Whether the language model is one part of a model of several modalities."""
    return text_config(model) is not causal_model(model).config


def parts_beside_text(model: nn.Module) -> list[str]:
    """Names of the outermost modules that text does not go through, such as a vision tower; none of a text model."""
    if not is_wrapped(model):
        return []
    causal = causal_model(model)
    used = {id(module) for part in (body_of(model), causal.get_output_embeddings()) for module in part.modules()}
    beside: list[str] = []
    for name, module in causal.named_modules():
        known = any(name == other or name.startswith(f"{other}.") for other in beside)
        if name and not known and used.isdisjoint(map(id, module.modules())):
            beside.append(name)
    return beside


def hidden_states(model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """[B, T, H] final hidden states, after the last norm, of ``input_ids`` [B, T]."""
    return body_of(model)(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state


def vocabulary_head(model: nn.Module) -> Head:
    """The head behind the body, which must be frozen and linear but for scale and cap; ``check_head`` makes sure."""
    layer = causal_model(model).get_output_embeddings()
    return Head(layer.weight, layer.bias, *logit_changes(text_config(model)))


def logit_changes(config: PreTrainedConfig) -> tuple[float, float | None]:
    """What a configuration says that logits are multiplied with, and the cap they then get."""
    scale = 1.0
    for name, power in (("logit_scale", 1), ("lm_head_multiplier", 1), ("logits_scaling", -1)):
        scale *= (getattr(config, name, None) or 1.0) ** power
    caps = (getattr(config, name, None) for name in ("final_logit_softcapping", "logits_soft_cap"))
    return scale, next(filter(None, caps), None)


@torch.no_grad()
def head_is_right(model: nn.Module) -> bool:
    """Whether ``vocabulary_head`` on the body's states gives the model's own logits, compared on a few tokens.

    The states are turned up, so that the logits are as large as those of a trained model.
    Raises whatever a model raises whose body does not run on token ids alone.
    """
    causal = causal_model(model)
    layer = causal.get_output_embeddings()
    input_ids = torch.arange(4, device=causal.get_input_embeddings().weight.device)[None]
    head, states = vocabulary_head(model), hidden_states(model, input_ids)
    turn_up = min(LOUD / largest(layer(states.to(layer.weight.dtype))), MOST_LOUD)
    hook = layer.register_forward_pre_hook(lambda _, inputs: (inputs[0] * turn_up, *inputs[1:]))
    try:
        whole = causal(input_ids=input_ids, use_cache=False).logits.float()
    finally:
        hook.remove()
    apart = head.logits(states.to(head.weight.dtype) * turn_up).float()
    tolerance = max(1e-3, 4 * torch.finfo(head.weight.dtype).eps)
    return torch.allclose(apart, whole, rtol=tolerance, atol=tolerance * largest(whole), equal_nan=True)


def largest(values: Tensor) -> float:
    """The largest finite absolute value, above 0."""
    return max(float(values.nan_to_num(0, 0, 0).abs().max()), torch.finfo(torch.float32).tiny)


def head_is_plain(model: nn.Module) -> bool:
    """Whether the model's logits are those of a linear head on its body's states, and nothing else."""
    if type(causal_model(model).get_output_embeddings()) is not nn.Linear or not vocabulary_head(model).is_linear:
        return False
    try:
        return head_is_right(model)
    except Exception:  # its body does not run alone; each fails in its own way
        return False


def check_head(model: nn.Module) -> None:
    """Refuse a model that could not be trained through ``vocabulary_head``: that would optimise something else than
    its logits. A head with an adapter of its own is one. Raises InputError.
    """
    causal = causal_model(model)
    name, head = type(causal).__name__, causal.get_output_embeddings()
    if type(head) is not nn.Linear or head.weight.requires_grad:
        raise InputError(f"the vocabulary head must stay frozen, got {type(head).__name__}", "lora.target_modules")
    try:
        right = head_is_right(model)
    except Exception as error:  # each fails in its own way
        raise InputError(
            f"model: {name} with this adapter does not run on token ids alone: {one_line(error)}"
        ) from error
    if not right:
        raise InputError(
            f"model: {name} changes its logits after the vocabulary head in a way that is not known here (known: "
            "scaling and soft-capping by its configuration), so its loss would not be the model's own"
        )
