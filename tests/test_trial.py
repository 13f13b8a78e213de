"""Models whose rows change with their company, or that refuse our cache: found before they are measured."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from row_by_row import one_by_one, sharpened
from torch import nn
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedTokenizerFast,
)

from unlearn_pl.errors import InputError
from unlearn_pl.evaluation.membership import document_losses
from unlearn_pl.inference.engine import Engine
from unlearn_pl.inference.generation import Generation, Prompt
from unlearn_pl.inference.model import LanguageModel
from unlearn_pl.inference.token_scores import TIE
from unlearn_pl.inference.trial import tried
from unlearn_pl.models.rope import position_limit, switch_length

PROMPTS = ["Anna Quill", "What is the name of the painter?", "The capital of France is"]
Hook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], Any]


def hooked(model: LlamaForCausalLM, hook: Hook) -> LlamaForCausalLM:
    model.model.register_forward_hook(hook, with_kwargs=True)
    return model


def counts_rows(module: nn.Module, args: tuple[Any, ...], options: dict[str, Any], found: Any) -> Any:
    """A model whose states depend on how many rows it sees, as experts with a capacity do."""
    found.last_hidden_state = found.last_hidden_state + 0.5 * (len(found.last_hidden_state) - 1)
    return found


def counts_anew(module: nn.Module, args: tuple[Any, ...], options: dict[str, Any], found: Any) -> Any:
    """A model that is right only with the cache that its own generate makes."""
    if type(options.get("past_key_values")).__name__ == "Cache":
        found.last_hidden_state = found.last_hidden_state.flip(-1)
    return found


def test_a_plain_model_is_exact_in_all_ways(model: LlamaForCausalLM) -> None:
    """And is tried once."""
    trial = tried(model)
    assert (trial.reads, trial.continues, trial.together, trial.prefixes) == (True, True, True, True)
    assert 0 < trial.noise < 32
    assert tried(model) is trial
    assert Engine(model).tie_units == TIE


@pytest.mark.parametrize(
    ("hook", "found", "told"),
    [
        (counts_rows, (False, True, False, False), "rows read together differ"),
        (counts_anew, (True, False, False, False), "text by our cache would differ"),
    ],
)
def test_what_is_not_exact_goes_row_by_row(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, hook: Hook, found: tuple[bool, ...], told: str
) -> None:
    """Text as the model's own generate, with half of it expected, and the loss of whole texts as of each alone."""
    hooked(model, hook)
    own = one_by_one(model, tokenizer, PROMPTS, 12)
    with pytest.warns(UserWarning, match=f"LlamaForCausalLM: {told}"):
        trial = tried(model)
    assert (trial.reads, trial.continues, trial.together, trial.prefixes) == found
    prompts = [Prompt(text, answer[: len(answer) // 2]) for text, answer in zip(PROMPTS, own, strict=True)]
    assert [
        answer.text for answer in LanguageModel(model, tokenizer, joiner="").generate(prompts, Generation(12, 4))
    ] == own
    losses = []
    for text in PROMPTS:
        ids = torch.tensor([tokenizer(text).input_ids])
        with torch.no_grad():
            losses.append(model(ids, labels=ids).loss.item())
    assert document_losses(LanguageModel(model, tokenizer), PROMPTS, batch_size=4) == pytest.approx(losses, rel=1e-5)


def test_a_noisier_model_has_more_ties(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise of 1 in 10,000 of the largest logit is 839 units of float32's eps, of which 256 would see a third."""

    def noisy(module: nn.Module, args: tuple[Any, ...], options: dict[str, Any], found: Any) -> Any:
        found.last_hidden_state = found.last_hidden_state * (1 + 1e-4 * (len(found.last_hidden_state) - 1) / 2)
        return found

    engine = Engine(hooked(model, noisy))
    assert 700 < engine.trial.noise < 900
    assert engine.tie_units > 5000


def test_a_model_that_cannot_generate_is_refused(model: LlamaForCausalLM) -> None:
    def fails(module: nn.Module, args: tuple[Any, ...], options: dict[str, Any], found: Any) -> Any:
        if options["use_cache"]:
            raise KeyError("images")

    hooked(model, fails)
    with pytest.raises(InputError, match="model: LlamaForCausalLM does not generate: 'images'"):
        Engine(model)


def test_what_was_asked_before_does_not_count(tokenizer: PreTrainedTokenizerFast) -> None:
    """transformers keeps the angles of the longest text so far; a row of 30 after one of 60 must not get them."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=16,
        eos_token_id=tokenizer.eos_token_id,
        rope_parameters={"rope_type": "dynamic", "factor": 8.0, "rope_theta": 1e4},
    )
    model = sharpened(LlamaForCausalLM(config).eval())
    assert (position_limit(model), switch_length(model)) == (128, 16)
    short, long = "7 2 4" * 6, "9 1 5" * 12
    own = [one_by_one(sharpened(LlamaForCausalLM(config).eval()), tokenizer, [text], 8)[0] for text in (long, short)]
    asked = LanguageModel(model, tokenizer)
    assert [answer.text for answer in asked.generate([long, short], Generation(8, 1))] == own
    assert document_losses(asked, [long, short], batch_size=1)[1] == document_losses(asked, [short])[0]


def test_limits_of_a_model() -> None:
    """Of the text model inside of a wrapper; of longrope the whole length, and the switch within it."""
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**small, "head_dim": 8, "vocab_size": 64, "max_position_embeddings": 512}
    vision = {**small, "image_size": 16, "patch_size": 8}
    wrapped = Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision))
    assert (position_limit(wrapped), switch_length(wrapped)) == (512, None)
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
    ends = {"vocab_size": 64, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    config = Phi3Config(
        **small, **ends, rope_parameters=rope, max_position_embeddings=256, original_max_position_embeddings=64
    )
    phi = Phi3ForCausalLM(config)
    assert (position_limit(phi), switch_length(phi)) == (256, 64)
