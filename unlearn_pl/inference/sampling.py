"""Answers drawn at random from the model: what greedy decoding hides, a patient user still finds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from unlearn_pl.data.encoding import decode_answer
from unlearn_pl.errors import InputError
from unlearn_pl.inference.batch_size import BatchSize, check_batch_size
from unlearn_pl.inference.batches import length_sorted_batches, map_batches
from unlearn_pl.inference.decoding import continue_rows, longest
from unlearn_pl.inference.engine import Engine
from unlearn_pl.inference.resume import content_hash

# Answers that `auto` draws together there.
ON_CPU = 64


@dataclass(frozen=True)
class Sampling:
    """Answers drawn at random for leak@k; k is 1, 4 and 16, as far as the samples reach."""

    samples: int = 0
    """Answers of each row; 0 for no sampling."""
    temperature: float = 1.0
    """Divides the logits; above 0 and finite."""
    max_new_tokens: int = 64
    """A sample that has not ended by then, or by the end of the model's positions, is cut; at least 1."""
    batch_size: BatchSize = "auto"
    """Answers drawn together; at least 1, or auto: as many as the memory of a GPU holds, or on a CPU 1.4 GB, there
    64 at least, 256 at most."""
    seed: int = 0
    """Of the random numbers. A row's depend on its prompt and the seed alone, not on the other rows."""

    def __post_init__(self) -> None:
        check_batch_size(self.batch_size, "sampling.batch_size")
        for name, least in (("samples", 0), ("max_new_tokens", 1)):
            if getattr(self, name) < least:
                raise InputError(f"must be at least {least}, got {getattr(self, name)}", f"sampling.{name}")
        if not 0 < self.temperature < math.inf:
            raise InputError(f"must be above 0 and finite, got {self.temperature}", "sampling.temperature")


def draw_texts(
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    eos: frozenset[int],
    options: Sampling,
    prompts: Sequence[str],
    rows: Sequence[Sequence[int]],
    budgets: Sequence[int],
) -> list[list[str]]:
    """``options.samples`` texts for each of the ``prompts``, whose token ids are ``rows``, of at most so many tokens;
    ``eos`` end them."""
    drawn = [row for row in range(len(prompts)) for _ in range(options.samples)]

    def compute(batch: Sequence[int]) -> list[str]:
        numbers = [random_numbers(prompts[drawn[index]], index % options.samples, options) for index in batch]
        draws = torch.tensor(np.stack(numbers))

        def pick(logits: Tensor, lines: Sequence[int], step: int) -> Tensor:
            return drawn_tokens(logits, draws[list(lines), step], options.temperature)

        prompted, allowed = [rows[drawn[index]] for index in batch], [budgets[drawn[index]] for index in batch]
        found = continue_rows(engine, prompted, allowed, eos, pick=pick)
        return [decode_answer(tokenizer, tokens or []) for tokens in found]  # nothing is watched, so none is None

    size = engine.rows_together(options.batch_size, ON_CPU, longest(rows, budgets))
    batches = length_sorted_batches([len(rows[row]) for row in drawn], size)
    settings = [options.temperature, options.max_new_tokens, options.seed, sorted(eos)]
    identity = [list(prompts), list(map(list, rows)), list(budgets), options.samples, settings]
    flat = map_batches(batches, compute, "sampling, answers", engine.work, identity)
    return [flat[row * options.samples : (row + 1) * options.samples] for row in range(len(prompts))]


def random_numbers(prompt: str, sample: int, options: Sampling) -> np.ndarray:
    """[max_new_tokens] numbers in [0, 1), one for each token of a prompt's sample."""
    key = int(content_hash(prompt, sample, options.seed)[:32], 16)
    return np.random.Generator(np.random.Philox(key=key)).random(options.max_new_tokens)


def drawn_tokens(logits: Tensor, numbers: Tensor, temperature: float = 1.0) -> Tensor:
    """[B] the token of ``logits`` [B, V] whose stretch of the cumulative distribution holds the number [B].

    The first token where logits are not finite, as a broken model has no distribution.
    """
    wide = logits.double()
    behind = wide - wide.amax(dim=-1, keepdim=True)  # at most 0: no temperature, however low, makes it +inf
    chances = (behind / temperature).softmax(dim=-1).nan_to_num(nan=0.0)
    places = torch.searchsorted(chances.cumsum(dim=-1), numbers.to(logits.device)[:, None].double(), right=True)
    best = chances.argmax(dim=-1)  # rounding can leave the sum just below the largest number
    return torch.where(places[:, 0] < logits.shape[-1], places[:, 0], best)
