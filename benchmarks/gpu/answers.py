"""Generation and membership attacks on a device, ours beside batches: time of each, and whether they agree."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from benchmarks.competent import attack_batches, attack_one_by_one, continue_batches
from benchmarks.evaluate import relative_difference
from benchmarks.gpu.shapes import Shape, random_model, walk
from benchmarks.gpu.work import continuations, letter_tokenizer, random_texts, successors
from benchmarks.official import PASSES, continue_each
from benchmarks.turns import timed
from unlearn_pl.evaluation.membership import document_attacks
from unlearn_pl.inference.generation import Generation, Prompt
from unlearn_pl.inference.model import LanguageModel

SEED = 1


@dataclass(frozen=True)
class AnswerLoad:
    """How much is generated and read."""

    rows: int = 96
    prompt: tuple[int, int] = (20, 200)
    """Tokens of a prompt, both ends included."""
    new_tokens: int = 64
    batches: tuple[int, ...] = (32, 96)
    """Rows of a batch of the competent way."""
    alone: int = 4
    """Rows of the official way, which takes one at a time."""
    documents: int = 64
    document: tuple[int, int] = (100, 400)
    rounds: int = 2
    """The figures are medians."""


def generation_figures(
    shape: Shape, load: AnswerLoad, device: torch.device, dtype: torch.dtype, ending: bool
) -> dict[str, Any]:
    """Seconds of each way, and how many of its texts are what the model is built to say: a model of random blocks that
    walks through an alphabet (``walk``). Ours twice: expecting what comes (``known by heart``) and something else
    (``rambling``). With ``ending`` rows end after different numbers of tokens, else none ends."""
    tokenizer, successor = letter_tokenizer(), successors(SEED, ending)
    model = random_model(replace(shape, tied=False), device, dtype)
    walk(model, successor)
    prompts = random_texts(load.rows, load.prompt, SEED)
    said = continuations(prompts, successor, load.new_tokens)
    ways = generation_ways(model, tokenizer, prompts, said, load)
    for call in generation_ways(model, tokenizer, prompts[:2], said[:2], load).values():
        call()  # the first forwards of a process are slower
    found = {way: taken(call, device, 1 if way == "alone" else load.rounds) for way, call in ways.items()}
    fastest = min(seconds for way, (_, seconds) in found.items() if way.startswith("batches"))
    alone = found["alone"][1] * load.rows / min(load.alone, load.rows)
    return {
        "seconds": {way: seconds for way, (_, seconds) in found.items()} | {"alone": alone},
        "seconds_alone_are_of": min(load.alone, load.rows),
        "expected_texts": {
            way: sum(one.text == text for one, text in zip(answers, said, strict=False))
            for way, (answers, _) in found.items()
        },
        "rows": load.rows,
        "tokens": sum(answer.tokens for answer in found["rambling"][0]),
        "ratio_known": fastest / found["known by heart"][1],
        "ratio_rambling": fastest / found["rambling"][1],
    }


def generation_ways(
    model: nn.Module, tokenizer: PreTrainedTokenizerFast, prompts: list[str], said: list[str], load: AnswerLoad
) -> dict[str, Callable[[], Any]]:
    """What each way does; all give answers with their texts."""
    both = (model, tokenizer)
    ours = LanguageModel(model, tokenizer, joiner="")
    known = [Prompt(prompt, answer) for prompt, answer in zip(prompts, said, strict=True)]
    wrong = [Prompt(prompt, answer[::-1] or "a") for prompt, answer in zip(prompts, said, strict=True)]
    options = Generation(load.new_tokens)
    return {
        "alone": partial(continue_each, *both, prompts[: load.alone], load.new_tokens),
        **{f"batches of {n}": partial(continue_batches, *both, prompts, load.new_tokens, n) for n in load.batches},
        "known by heart": partial(ours.generate, known, options),
        "rambling": partial(ours.generate, wrong, options),
    }


def attack_figures(shape: Shape, load: AnswerLoad, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Seconds of four attacks by each way, and the largest relative difference of a score from the batches'."""
    tokenizer, attacks = letter_tokenizer(), tuple(PASSES)
    model = random_model(shape, device, dtype)
    documents = random_texts(load.documents, load.document, SEED)
    ours = LanguageModel(model, tokenizer, joiner="")
    ways: dict[str, Callable[[], dict[str, list[float]]]] = {
        "a forward each": lambda: {
            attack: attack_one_by_one(model, tokenizer, documents, attack) for attack in attacks
        },
        "one forward": partial(attack_batches, model, tokenizer, documents, attacks),
        "ours": partial(document_attacks, ours, documents, attacks),
    }
    document_attacks(ours, documents[:2], attacks)
    attack_batches(model, tokenizer, documents[:2], attacks)
    found = {way: taken(call, device, load.rounds) for way, call in ways.items()}
    pairs = [zip(found["ours"][0][name], found["one forward"][0][name], strict=True) for name in attacks]
    return {
        "seconds": {way: seconds for way, (_, seconds) in found.items()},
        "documents": load.documents,
        "largest_relative_difference": {
            name: max(relative_difference(*pair) for pair in both) for name, both in zip(attacks, pairs, strict=True)
        },
        "ratio_forward_each": found["a forward each"][1] / found["ours"][1],
        "ratio_one_forward": found["one forward"][1] / found["ours"][1],
    }


def taken(call: Callable[[], Any], device: torch.device, rounds: int) -> tuple[Any, float]:
    """What ``call`` gives, and the median of its seconds."""
    done = [timed(call, device) for _ in range(rounds)]
    return done[0][0], statistics.median(seconds for _, seconds in done)
