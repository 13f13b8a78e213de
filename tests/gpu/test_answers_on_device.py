"""Evaluation on the device: texts row by row, token scores and letters as the CPU has them."""

from dataclasses import replace

import pytest
import torch
from row_by_row import one_by_one
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.gpu.bench import TRIAL
from benchmarks.gpu.shapes import random_model, walk
from benchmarks.gpu.work import continuations, letter_tokenizer, random_texts, successors
from unlearn_pl.evaluation.membership import document_attacks
from unlearn_pl.inference.generation import Generation, Prompt
from unlearn_pl.inference.model import LanguageModel
from unlearn_pl.inference.sampling import Sampling
from unlearn_pl.metrics.attacks import ATTACKS

pytestmark = pytest.mark.gpu

PROMPTS = [
    "Anna",
    "What is the name of the painter?",
    "Where did she live? The old lighthouse keeper wrote a letter to his sister. Her phone number is",
    "The capital of Spain is",
    "Anna Quill was born on",
    "7",
]
ATTACKED = ["loss", "zlib", "min_k", "min_k_pp"]


@pytest.fixture
def on_device(model: LlamaForCausalLM, device: torch.device) -> LlamaForCausalLM:
    return model.to(device)


def test_texts_are_those_of_one_row_at_a_time(
    on_device: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, device: torch.device
) -> None:
    """Whatever was expected, in batches of every size; ended rows leave."""
    on_device.generation_config.eos_token_id = [tokenizer.eos_token_id, *range(3, len(tokenizer), 20)]
    with torch.device(device):
        alone = one_by_one(on_device, tokenizer, PROMPTS, 24)
    drafts = [(text, text[: len(text) // 2] + " zebra", "no such thing")[i % 3] for i, text in enumerate(alone)]
    for answers in (drafts, [""] * len(alone)):
        for batch_size in (1, 4, 32):
            prompts = [Prompt(*pair) for pair in zip(PROMPTS, answers, strict=True)]
            found = LanguageModel(on_device, tokenizer, joiner="").generate(prompts, Generation(24, batch_size))
            assert [answer.text for answer in found] == alone


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", TRIAL.shapes)
def test_a_model_that_walks_says_where_it_goes(shape: str, dtype: torch.dtype, device: torch.device) -> None:
    successor = successors(1, ending=True)
    model = random_model(replace(TRIAL.shapes[shape], tied=False), device, dtype)
    walk(model, successor)
    prompts = random_texts(9, (3, 40), seed=1)
    said = continuations(prompts, successor, 30)
    for answers in (said, [text[::-1] for text in said]):
        asked = [Prompt(*pair) for pair in zip(prompts, answers, strict=True)]
        found = LanguageModel(model, letter_tokenizer(), joiner="").generate(asked, Generation(30, 4))
        assert [answer.text for answer in found] == said


def test_attacks_are_those_of_the_cpu(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, device: torch.device
) -> None:
    documents = [text * 2 for text in PROMPTS if len(text) > 3]
    assert set(ATTACKED) <= set(ATTACKS)
    here = document_attacks(LanguageModel(model.double(), tokenizer), documents, ATTACKED)
    there = document_attacks(LanguageModel(model.float().to(device), tokenizer), documents, ATTACKED)
    for attack in ATTACKED:
        assert there[attack] == pytest.approx(here[attack], rel=1e-4), attack


def test_likelihoods_and_letters_are_those_of_the_cpu(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, device: torch.device
) -> None:
    letters, answers = list(range(5, 9)), ["Paris", "1984", "a letter", "Anna", "Rivertown", "phone"]
    found = []
    for place in ("cpu", device):
        asked = LanguageModel(model.to(place), tokenizer)
        logprobs = [one.logprob for one in asked.likelihood(PROMPTS, answers)]
        found.append((asked.next_token(PROMPTS, letters), logprobs))
    assert found[0][0] == found[1][0]
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-4)


def test_drawn_texts_are_a_function_of_the_seed(
    on_device: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    options = Sampling(samples=3, max_new_tokens=8)
    first, again = (LanguageModel(on_device, tokenizer).sample(PROMPTS[:3], options) for _ in range(2))
    assert first == again
    assert len({text for texts in first for text in texts}) > 3
