"""One row at a time through transformers' own ``generate``, and what a model's generation config says of text."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteriaList

from unlearn_pl.errors import InputError, one_line
from unlearn_pl.models.body import causal_model
from unlearn_pl.models.rope import forget_length, remembers_length

# Of a generation config: what changes greedy text, and the values that change nothing.
ACTING: dict[str, tuple[Any, ...]] = {
    "bad_words_ids": (None, []),
    "begin_suppress_tokens": (None, []),
    "constraints": (None, []),
    "dola_layers": (None,),
    "encoder_no_repeat_ngram_size": (None, 0),
    "encoder_repetition_penalty": (None, 1),
    "exponential_decay_length_penalty": (None,),
    "force_words_ids": (None, []),
    "forced_bos_token_id": (None,),
    "forced_decoder_ids": (None, []),
    "forced_eos_token_id": (None,),
    "guidance_scale": (None, 1),
    "max_time": (None,),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "no_repeat_ngram_size": (None, 0),
    "num_beams": (None, 1),
    "penalty_alpha": (None, 0),
    "remove_invalid_values": (None, False),
    "repetition_penalty": (None, 1),
    "sequence_bias": (None, {}, []),
    "stop_strings": (None, []),
    "suppress_tokens": (None, []),
    "token_healing": (None, False),
    "watermarking_config": (None,),
}


def acting_settings(model: nn.Module) -> dict[str, Any]:
    """What the model's generation config, beside the EOS ids, makes of greedy text: names and values."""
    config = getattr(causal_model(model), "generation_config", None)
    given = {name: getattr(config, name, None) for name in ACTING}
    return {name: value for name, value in given.items() if value not in ACTING[name]}


def warn_of_ignored(model: nn.Module) -> None:
    """Name what the model's generation config would change in a text, and does not here."""
    if settings := acting_settings(model):
        told = ", ".join(f"{name} {value!s:.40}" for name, value in settings.items())
        warnings.warn(
            f"not used of the model's generation config: {told}; transformers' generate and the official script apply "
            "that. With generation.own_config it is applied here too, a row at a time",
            stacklevel=3,
        )


def eos_ids(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The token ids that end a row: the model's own if it names any, else the tokenizer's. Raises InputError if neither
    names one: no text would have an end."""
    given = getattr(getattr(causal_model(model), "generation_config", None), "eos_token_id", None)
    if given is None:
        given = tokenizer.eos_token_id
    if given is None:
        raise InputError("it has no EOS token, nor has the model's generation config: no text would end", "tokenizer")
    listed = list(given) if isinstance(given, list | tuple) else [given]
    if not listed or not all(isinstance(one, int) for one in listed):
        raise InputError(f"eos_token_id of its generation config must be token ids, got {given!r:.80}", "model")
    ids = frozenset(listed)
    if tokenizer.eos_token_id not in ids:
        warnings.warn(
            f"generation ends at the model's EOS ids {sorted(ids)}; the tokenizer's, {tokenizer.eos_token_id}, is none",
            stacklevel=2,
        )
    return ids


@contextmanager
def generating_with(causal: PreTrainedModel, config: GenerationConfig | None) -> Iterator[None]:
    """Inside the block ``config`` is the model's generation config, from which ``generate`` takes what it is not
    given; None leaves the model's own."""
    own = causal.generation_config
    causal.generation_config = own if config is None else config
    try:
        yield
    finally:
        causal.generation_config = own


def generate_alone(
    model: nn.Module,
    prompt: Sequence[int],
    new_tokens: int,
    eos: frozenset[int],
    stop: Callable[[list[int]], bool] | None = None,
    own_config: bool = False,
) -> tuple[list[int], Tensor]:
    """The greedy continuation of ``prompt``, up to and with an EOS, and the logits [tokens, V] before each token.

    ``stop`` says of the tokens so far whether nothing that follows matters. With ``own_config`` all settings of the
    model's generation config act, without it none. Raises InputError if the model cannot generate.
    """
    causal = causal_model(model)
    ids = torch.tensor([list(prompt)], device=causal.get_input_embeddings().weight.device)
    options: dict[str, Any] = {"max_new_tokens": new_tokens, "do_sample": False, "pad_token_id": int(ids[0, 0])}
    if eos:
        options["eos_token_id"] = sorted(eos)
    if stop is not None:
        own_stop = stop
        options["stopping_criteria"] = StoppingCriteriaList(
            [lambda rows, _: torch.tensor([own_stop(row[ids.shape[1] :].tolist()) for row in rows], device=rows.device)]
        )
    if remembers_length(model):
        forget_length(causal)
    try:
        with generating_with(causal, None if own_config else GenerationConfig()):
            found = causal.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                output_logits=True,
                return_dict_in_generate=True,
                **options,
            )
    except Exception as error:  # each architecture fails in its own way
        raise InputError(f"model: {type(causal).__name__} does not generate: {one_line(error)}") from error
    return found.sequences[0, ids.shape[1] :].tolist(), torch.cat(found.logits[:])
