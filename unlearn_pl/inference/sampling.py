"""Answers drawn at random from the model: what greedy decoding hides, a patient user still finds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from unlearn_pl.errors import InputError
from unlearn_pl.inference.batches import Work, length_sorted_batches, map_batches
from unlearn_pl.inference.decoding import continue_rows
from unlearn_pl.inference.generation import decode_answer, eos_ids, warn_of_ignored
from unlearn_pl.inference.model import Network
from unlearn_pl.inference.resume import content_hash
from unlearn_pl.inference.rows import encode_texts, evaluating, rooms


@dataclass(frozen=True)
class Sampling:
    """Answers drawn at random for leak@k; k is 1, 4 and 16, as far as the samples reach."""

    samples: int = 0
    """Answers of each row; 0 for no sampling."""
    temperature: float = 1.0
    """Divides the logits; above 0 and finite."""
    max_new_tokens: int = 64
    """A sample that has not ended by then, or by the end of the model's positions, is cut; at least 1."""
    batch_size: int = 64
    """Answers drawn together; at least 1."""
    seed: int = 0
    """Of the random numbers. A row's depend on its prompt and the seed alone, not on the other rows."""

    def __post_init__(self) -> None:
        for name, least in (("samples", 0), ("max_new_tokens", 1), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise InputError(f"--sampling.{name}: must be at least {least}, got {getattr(self, name)}")
        if not 0 < self.temperature < math.inf:
            raise InputError(f"--sampling.temperature: must be above 0 and finite, got {self.temperature}")


def sample_answers(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    options: Sampling,
    work: Work | None = None,
) -> list[list[str]]:
    """``options.samples`` texts for each prompt. Raises InputError if the model has no position left after one."""
    texts = [prompt for prompt in prompts for _ in range(options.samples)]
    rows = encode_texts(model, tokenizer, texts, "sampling: sample", room=1)
    budgets = rooms(model, rows, options.max_new_tokens, "sampling")
    warn_of_ignored(model)
    ends = eos_ids(model, tokenizer)

    def compute(batch: Sequence[int]) -> list[str]:
        draws = torch.tensor(
            np.stack([random_numbers(texts[index], index % options.samples, options) for index in batch])
        )

        def pick(logits: Tensor, lines: Sequence[int], step: int) -> Tensor:
            return drawn_tokens(logits, draws[list(lines), step], options.temperature)

        prompted, allowed = [rows[index] for index in batch], [budgets[index] for index in batch]
        found = continue_rows(network, prompted, allowed, ends, pick)
        assert None not in found  # nothing is watched where tokens are drawn
        return [decode_answer(tokenizer, tokens) for tokens in found if tokens is not None]

    with evaluating(model):
        network = Network(model)
        batches = length_sorted_batches([len(row) for row in rows], options.batch_size)
        settings = [options.temperature, options.max_new_tokens, options.seed, sorted(ends)]
        flat = map_batches(batches, compute, "sampling, answers", work, [rows, budgets, settings])
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
