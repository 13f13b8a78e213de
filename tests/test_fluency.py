"""Perplexities of generated texts against the loss of transformers, one row at a time."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from unlearn_pl.evaluation.fluency import perplexities, perplexity
from unlearn_pl.inference.model import LanguageModel

Build = Callable[[], LlamaForCausalLM]

PROMPTS = ["Who paints?", "7", "The old lighthouse keeper wrote", "Kто?", "A", "B"]
TEXTS = [" Anna Quill does.", "", "a", " 東京 🎉\n\n", " 0123456789" * 5, " "]


def exp_loss(model: LlamaForCausalLM, prompt: list[int], text: list[int]) -> float:
    """exp of the loss of transformers over the text alone, in float64."""
    with torch.no_grad():
        return math.exp(model(torch.tensor([prompt + text]), labels=torch.tensor([[-100] * len(prompt) + text])).loss)


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_perplexities_are_exp_of_the_loss(
    tiny_model: Build, tokenizer: PreTrainedTokenizerFast, batch_size: int
) -> None:
    """Row by row; None where nothing was written, as a mean over no token does not exist."""
    double = tiny_model().double()
    expected = [
        exp_loss(double, tokenizer(prompt).input_ids, tokenizer(text).input_ids) if text else None
        for prompt, text in zip(PROMPTS, TEXTS, strict=True)
    ]
    found = perplexities(LanguageModel(tiny_model(), tokenizer), PROMPTS, TEXTS, batch_size=batch_size)
    assert [value is None for value in found] == [text == "" for text in TEXTS]
    written = [value for value in expected if value is not None]
    assert [value for value in found if value is not None] == pytest.approx(written, rel=1e-5)
    assert min(written) > 1


def test_rows_without_any_text(tiny_model: Build, tokenizer: PreTrainedTokenizerFast) -> None:
    assert perplexities(LanguageModel(tiny_model(), tokenizer), PROMPTS[:2], ["", ""], batch_size=2) == [None, None]
    assert perplexities(LanguageModel(tiny_model(), tokenizer), [], [], batch_size=2) == []


def test_a_broken_base_has_no_perplexity(tiny_model: Build, tokenizer: PreTrainedTokenizerFast) -> None:
    """None for the row that it has no probability for, the usual number for the others."""
    model = tiny_model()
    (token,) = tokenizer("7").input_ids
    with torch.no_grad():
        model.model.embed_tokens.weight[token] = math.nan
    found = perplexities(LanguageModel(model, tokenizer), ["7", "A"], ["a", "a"], batch_size=2)
    assert found[0] is None
    assert found[1] == pytest.approx(
        perplexities(LanguageModel(tiny_model(), tokenizer), ["A"], ["a"], batch_size=1)[0], rel=1e-5
    )


@given(st.floats(max_value=0, allow_nan=False, allow_subnormal=False))
def test_perplexity_is_finite_and_at_least_one(logprob: float) -> None:
    value = perplexity(logprob)
    assert 1 <= value <= math.exp(600)
    if logprob > -600:
        assert value == pytest.approx(math.exp(-logprob))


def test_perplexity_by_hand() -> None:
    """A mean probability of one half a token is a choice of two."""
    assert perplexity(math.log(0.5)) == pytest.approx(2)
    assert perplexity(0.0) == 1
    assert perplexity(-math.inf) == perplexity(-601.0) == math.exp(600)
    assert perplexity(math.nan) is None


def test_a_text_beyond_the_positions_counts_as_far_as_it_fits(
    tiny_model: Build, tokenizer: PreTrainedTokenizerFast
) -> None:
    """A text of bytes that are no characters has three times the tokens that were generated: 500 + 30 exceed 512."""
    prompt = tokenizer.decode([23] * 500)
    text = tokenizer.decode([tokenizer("é").input_ids[0]] * 10)
    ids = tokenizer(text).input_ids
    assert (len(tokenizer(prompt).input_ids), len(ids)) == (500, 30)
    with pytest.warns(UserWarning, match="likelihood: 1 of 2 texts exceed the model's 512 positions; only what"):
        found = perplexities(LanguageModel(tiny_model(), tokenizer), [prompt, "A"], [text, "a"], batch_size=1)
    expected = exp_loss(tiny_model().double(), tokenizer(prompt).input_ids, ids[:12])
    assert found[0] == pytest.approx(expected, rel=1e-5)
    with pytest.warns(UserWarning, match="likelihood: 1 of 1 texts exceed"):
        assert perplexities(
            LanguageModel(tiny_model(), tokenizer), [tokenizer.decode([23] * 512)], ["a"], batch_size=1
        ) == [None]
