"""Evaluation in batches, as a competent user writes it with transformers alone: the second baseline of the benchmark.

Rows sorted by length, padded, a batch at a time through the model's own ``generate`` and forward.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from benchmarks.official import Continued, generation_config, mean_of_lowest
from unlearn_pl.data.encoding import decode_answer, start_ids
from unlearn_pl.evaluation.choice import fitting_prompt, letter_ids
from unlearn_pl.inference.forward import evaluating
from unlearn_pl.inference.model import LanguageModel
from unlearn_pl.inference.own_generate import eos_ids
from unlearn_pl.metrics.attacks import STD_FLOOR
from unlearn_pl.models.body import causal_model
from unlearn_pl.tasks.mmlu import LETTERS, Subject

# Questions, or documents, in a batch: more were slower on two cores.
BATCH = 8

Batch = tuple[list[int], Tensor, Tensor]
"""Indices of the rows, their ids [B, T], and a mask [B, T], 0 at padding."""


def padded_batches(
    rows: Sequence[Sequence[int]], size: int, pad: int, device: torch.device, left: bool
) -> Iterator[Batch]:
    """Rows of token ids in batches of like lengths, the longest first."""
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
    for start in range(0, len(order), size):
        batch = order[start : start + size]
        longest = len(rows[batch[0]])
        gaps = [[pad] * (longest - len(rows[index])) for index in batch]
        own = [list(rows[index]) for index in batch]
        marks = [[1] * len(row) for row in own]
        nothing = [[0] * len(gap) for gap in gaps]
        before, after = ((gaps, own), (nothing, marks)) if left else ((own, gaps), (marks, nothing))
        ids = torch.tensor([a + b for a, b in zip(*before, strict=True)], device=device)
        yield batch, ids, torch.tensor([a + b for a, b in zip(*after, strict=True)], device=device)


def continue_batches(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int,
    size: int,
    tell: Callable[[str], None] | None = None,
) -> list[Continued]:
    """``model.generate`` on batches of prompts, padded on the left: greedy, with a cache."""
    causal, ends = causal_model(model), eos_ids(model, tokenizer)
    pad = tokenizer.eos_token_id
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, use_cache=True, eos_token_id=sorted(ends), pad_token_id=pad
    )
    rows = [start_ids(prompt, tokenizer) for prompt in prompts]
    found: dict[int, Continued] = {}
    with evaluating(model), generation_config(causal, config):
        for batch, ids, mask in padded_batches(rows, size, pad, causal.device, left=True):
            whole = causal.generate(ids, attention_mask=mask, generation_config=config)
            for index, new in zip(batch, whole[:, ids.shape[1] :].tolist(), strict=True):
                found[index] = continued(tokenizer, new, ends)
            if tell:
                tell(f"batches of {size}, rows: {len(found)} of {len(rows)}")
    return [found[index] for index in range(len(rows))]


def continued(tokenizer: PreTrainedTokenizerBase, new: Sequence[int], ends: frozenset[int]) -> Continued:
    """The answer in the tokens of a row, which go on with padding after its end."""
    length = next((place for place, token in enumerate(new, start=1) if token in ends), len(new))
    own = list(new[:length])
    return Continued(decode_answer(tokenizer, own), length, own[-1] in ends)


def answer_batches(model: nn.Module, tokenizer: PreTrainedTokenizerBase, subjects: Sequence[Subject]) -> list[str]:
    """The letter of each question, subject by subject, from the last position of whole prompts in batches."""
    letters, causal, asked = letter_ids(tokenizer), causal_model(model), LanguageModel(model, tokenizer)
    prompts = [fitting_prompt(asked, subject, question)[0] for subject in subjects for question in subject.questions]
    rows = [start_ids(prompt, tokenizer) for prompt in prompts]
    chosen: dict[int, str] = {}
    with evaluating(model):
        for batch, ids, mask in padded_batches(rows, BATCH, tokenizer.eos_token_id, causal.device, left=True):
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=1).logits[:, -1]
            places = logits[:, letters].argmax(-1).tolist()
            chosen.update({index: LETTERS[place] for index, place in zip(batch, places, strict=True)})
    return [chosen[index] for index in range(len(rows))]


def attack_batches(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, documents: Sequence[str], attacks: Sequence[str]
) -> dict[str, list[float]]:
    """Attack -> the score of each document; one forward of each batch for all ``attacks``."""
    causal = causal_model(model)
    rows = [start_ids(document, tokenizer) for document in documents]
    found: dict[str, dict[int, float]] = {attack: {} for attack in attacks}
    with evaluating(model):
        for batch, ids, mask in padded_batches(rows, BATCH, tokenizer.eos_token_id, causal.device, left=False):
            everything = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float().log_softmax(-1)
            for index, logprobs in zip(batch, everything, strict=True):
                own = logprobs[: len(rows[index]) - 1]
                target = own.gather(-1, torch.tensor(rows[index][1:], device=own.device)[:, None])[:, 0]
                for attack in attacks:
                    found[attack][index] = SCORES[attack](own, target, documents[index])
    return {attack: [scores[index] for index in range(len(rows))] for attack, scores in found.items()}


def attack_one_by_one(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, documents: Sequence[str], attack: str
) -> list[float]:
    """``attack_batches`` for one attack."""
    return attack_batches(model, tokenizer, documents, [attack])[attack]


def normalised(logprobs: Tensor, target: Tensor) -> Tensor:
    """(log p - mean) / std of each token, from log probabilities [T, V] and those of the tokens [T]."""
    weights = logprobs.exp()
    mean = (weights * logprobs).sum(-1)
    std = ((weights * logprobs.square()).sum(-1) - mean.square()).clamp(min=STD_FLOOR**2).sqrt()
    return (target - mean) / std


SCORES: dict[str, Callable[[Tensor, Tensor, str], float]] = {
    "loss": lambda logprobs, target, text: float(target.mean()),
    "zlib": lambda logprobs, target, text: float(target.mean()) / len(zlib.compress(text.encode())),
    "min_k": lambda logprobs, target, text: mean_of_lowest(target),
    "min_k_pp": lambda logprobs, target, text: mean_of_lowest(normalised(logprobs, target)),
}
"""(log probabilities [T, V], those of the tokens [T], the text) -> score, by the names of ``official.PASSES``."""
