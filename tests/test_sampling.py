"""Sampled answers: the distribution they are drawn from, and that a row's do not depend on the other rows."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from unlearn_pl.errors import InputError
from unlearn_pl.inference.generation import Generation
from unlearn_pl.inference.model import LanguageModel
from unlearn_pl.inference.sampling import Sampling, drawn_tokens, random_numbers

Build = Callable[[], LlamaForCausalLM]

PROMPTS = ["Where did she live?", "The painter", "7", "Anna Quill was born on 1984-12-31 in", "東京"]
OPTIONS = Sampling(samples=4, max_new_tokens=12, batch_size=64)
BELOW_ONE = 1 - 2**-53


def drawn(logits: list[float], numbers: list[float], temperature: float = 1.0) -> list[int]:
    """The tokens that ``numbers`` draw from one row of logits."""
    rows = torch.tensor(logits, dtype=torch.float64).expand(len(numbers), -1)
    return drawn_tokens(rows, torch.tensor(numbers, dtype=torch.float64), temperature).tolist()


def test_thresholds_by_hand() -> None:
    """Four even tokens have the stretches [0, .25), [.25, .5) and so on; 2 : 1 : 1 has [0, .5), [.5, .75), [.75, 1)."""
    below = [math.nextafter(border, 0) for border in (0.25, 0.5, 0.75, 1.0)]
    assert drawn([3.0] * 4, [0.0, 0.25, 0.5, 0.75]) == [0, 1, 2, 3]
    assert drawn([3.0] * 4, below) == [0, 1, 2, 3]
    assert drawn([math.log(2), 0, 0], [0.0, 0.499, 0.501, 0.749, 0.751, BELOW_ONE]) == [0, 0, 1, 1, 2, 2]


@settings(deadline=None)
@given(
    st.lists(st.integers(-40, 40), min_size=1, max_size=8),
    st.integers(0, 999),
    st.sampled_from([0.25, 0.5, 1.0, 3.0]),
)
def test_drawing_is_a_walk_along_the_chances(logits: list[int], thousandth: int, temperature: float) -> None:
    """Second implementation: subtract one chance after the other; but for a hair's breadth of rounding at the ends."""
    number = (thousandth + 0.5) / 1000
    weights = [math.exp((logit - max(logits)) / 4 / temperature) for logit in logits]
    token = drawn([logit / 4 for logit in logits], [number], temperature)[0]
    before = sum(weights[:token]) / sum(weights)
    assert before - 1e-12 <= number <= before + weights[token] / sum(weights) + 1e-12


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_the_softmax(temperature: float) -> None:
    """Chi-square with 5 degrees of freedom exceeds 25.7 once in 10 000 times; the numbers are those of 1250 samples."""
    logits = [1.0, 0.0, -1.0, 2.0, 0.5, -0.5]
    options = Sampling(max_new_tokens=16)
    numbers = np.concatenate(
        [random_numbers(f"prompt {row}", sample, options) for row in range(250) for sample in range(5)]
    )
    counts = np.bincount(drawn(logits, numbers.tolist(), temperature), minlength=6)
    weights = [math.exp(logit / temperature) for logit in logits]
    expected = np.array([len(numbers) * weight / sum(weights) for weight in weights])
    assert float(((counts - expected) ** 2 / expected).sum()) < 25.7


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-300])
def test_a_low_temperature_takes_the_best(temperature: float, dtype: torch.dtype) -> None:
    """However large logits / temperature would be; also with a token that is ruled out."""
    logits = torch.tensor([[1.0, 4.0, -2.0], [-300.0, -200.0, -100.0], [5.0, -math.inf, 4.0]], dtype=dtype)
    for number in (0.0, 0.3, BELOW_ONE):
        assert drawn_tokens(logits, torch.full((3,), number), temperature).tolist() == [1, 2, 0]


@pytest.mark.parametrize("odd", [[math.nan, 1.0, 2.0], [0.0, 1.0, math.nan], [math.nan] * 3, [0.0, math.inf, 1.0]])
@pytest.mark.parametrize("number", [0.0, 0.5, BELOW_ONE])
def test_a_broken_row_says_the_first_token_and_harms_no_other(odd: list[float], number: float) -> None:
    logits = torch.tensor([odd, [0.0, 0.0, 50.0]])
    assert drawn_tokens(logits, torch.tensor([number, 0.5])).tolist() == [0, 2]


def test_a_token_without_chance_is_never_drawn() -> None:
    """Neither at the first number nor beyond the sum of the chances, which rounding leaves below 1: the likeliest."""
    assert drawn([-math.inf, 0.0, 0.0], [0.0]) == [1]
    assert drawn([0.0, 2.0, 1.0, -math.inf], [1.0]) == [1]
    short = next(n for n in range(2, 1000) if torch.full((n,), 1 / n, dtype=torch.float64).cumsum(0)[-1] < BELOW_ONE)
    assert drawn([0.0] * short + [-math.inf], [BELOW_ONE])[0] < short


def test_random_numbers_depend_on_prompt_sample_and_seed() -> None:
    """A longer limit continues the same numbers; all lie in [0, 1)."""
    options = Sampling(max_new_tokens=50)
    numbers = random_numbers("a", 0, options)
    assert numbers.shape == (50,)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert (random_numbers("a", 0, replace(options, max_new_tokens=7, batch_size=1)) == numbers[:7]).all()
    others = [("b", 0, options), ("a", 1, options), ("a", 0, replace(options, seed=1))]
    assert not any((random_numbers(*other) == numbers).any() for other in others)


def one_by_one(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompt: str, sample: int, options: Sampling
) -> list[int]:
    """Second implementation: the whole row again for each token, up to and with EOS."""
    ids = list(tokenizer(prompt).input_ids)
    new: list[int] = []
    for number in random_numbers(prompt, sample, options):
        with torch.no_grad():
            logits = model(torch.tensor([ids + new])).logits[0, -1].double()
        chances = torch.softmax(logits / options.temperature, dim=-1).tolist()
        token = 0
        while token < len(chances) - 1 and number >= chances[token]:
            number -= chances[token]
            token += 1
        new.append(token)
        if token == tokenizer.eos_token_id:
            break
    return new


def ending(model: LlamaForCausalLM, eos: int) -> LlamaForCausalLM:
    """Ends at every token with a chance of some 10 %."""
    old = model.lm_head.weight
    model.lm_head = nn.Linear(old.shape[1], old.shape[0])
    with torch.no_grad():
        model.lm_head.weight.copy_(old)
        model.lm_head.bias.zero_()
        model.lm_head.bias[eos] = math.log(0.1 * len(old))
    return model


def test_answers_are_those_of_one_row_at_a_time(tiny_model: Build, tokenizer: PreTrainedTokenizerFast) -> None:
    """Nothing follows an EOS, nothing exceeds the limit; some answers end and some are cut."""
    model = ending(tiny_model(), tokenizer.eos_token_id)
    found = LanguageModel(model, tokenizer).sample(PROMPTS, OPTIONS)
    lengths = []
    for prompt, texts in zip(PROMPTS, found, strict=True):
        for sample, text in enumerate(texts):
            tokens = one_by_one(model, tokenizer, prompt, sample, OPTIONS)
            lengths.append(len(tokens))
            assert text == tokenizer.decode(tokens, skip_special_tokens=True)
    assert max(lengths) == OPTIONS.max_new_tokens
    assert len(set(lengths)) > 3


def test_other_rows_and_batches_change_nothing(tiny_model: Build, tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model()
    expected = dict(zip(PROMPTS, LanguageModel(model, tokenizer).sample(PROMPTS, OPTIONS), strict=True))
    assert all(len(set(texts)) == 4 for texts in expected.values()), "a row's samples differ from each other"
    for prompts, batch_size in ((PROMPTS, 1), (PROMPTS[::-1], 3), ([PROMPTS[2], PROMPTS[0], PROMPTS[2]], 7)):
        found = LanguageModel(model, tokenizer).sample(prompts, replace(OPTIONS, batch_size=batch_size))
        assert found == [expected[prompt] for prompt in prompts]
    more = LanguageModel(model, tokenizer).sample(PROMPTS[:2], replace(OPTIONS, samples=6))
    assert [texts[:4] for texts in more] == [expected[prompt] for prompt in PROMPTS[:2]]


def test_another_seed_gives_other_texts(tiny_model: Build, tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model()
    zero, one = (LanguageModel(model, tokenizer).sample(PROMPTS, replace(OPTIONS, seed=seed)) for seed in (0, 1))
    assert not {text for texts in zero for text in texts} & {text for texts in one for text in texts}


def test_a_low_temperature_is_greedy(tiny_model: Build, tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model()
    options = replace(OPTIONS, samples=2, temperature=1e-30, batch_size=1)
    greedy = [answer.text for answer in LanguageModel(model, tokenizer).generate(PROMPTS, Generation(12, 1))]
    assert LanguageModel(model, tokenizer).sample(PROMPTS, options) == [[text, text] for text in greedy]


def test_no_samples_and_no_prompts(tiny_model: Build, tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model()
    assert LanguageModel(model, tokenizer).sample(PROMPTS[:2], replace(OPTIONS, samples=0)) == [[], []]
    assert LanguageModel(model, tokenizer).sample([], OPTIONS) == []


def test_the_mode_of_the_model_is_as_before(tiny_model: Build, tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model().train()
    LanguageModel(model, tokenizer).sample(PROMPTS[:1], OPTIONS)
    assert model.training
    assert model.lm_head.training


def test_a_prompt_without_room_is_refused(tiny_model: Build, tokenizer: PreTrainedTokenizerFast) -> None:
    """512 positions: a prompt of 508 tokens is continued by four, the last of them never read; one of 512 by none."""
    model, options = tiny_model(), replace(OPTIONS, samples=1)
    prompts = [tokenizer.decode([23] * length) for length in (500, 508, 512)]
    assert [len(tokenizer(prompt).input_ids) for prompt in prompts] == [500, 508, 512]
    fitting = LanguageModel(model, tokenizer).sample(prompts[1:2], replace(options, max_new_tokens=4))
    with pytest.warns(UserWarning, match="sampling: 1 of 2 rows have room for fewer than 12 new tokens within the"):
        assert LanguageModel(model, tokenizer).sample(prompts[:2], options)[1:] == fitting
    with pytest.raises(InputError, match=r"prompts: number 2: 512 tokens and room for 1 more exceed"):
        LanguageModel(model, tokenizer).sample(prompts[1:], options)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("samples", -1, "must be at least 0, got -1"),
        ("max_new_tokens", 0, "must be at least 1, got 0"),
        ("batch_size", 0, "must be at least 1, or auto, got 0"),
        ("temperature", 0.0, "must be above 0 and finite, got 0.0"),
        ("temperature", -1.0, "must be above 0 and finite, got -1.0"),
        ("temperature", math.nan, "must be above 0 and finite, got nan"),
        ("temperature", math.inf, "must be above 0 and finite, got inf"),
    ],
)
def test_options_are_checked(option: str, value: float, message: str) -> None:
    with pytest.raises(InputError, match=f"^sampling.{option}: {message}"):
        Sampling(**{option: value})  # type: ignore[arg-type]
