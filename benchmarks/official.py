"""Evaluation one row at a time, as SemEval-2025 Task 4 and open-unlearning have it: the baseline of the benchmark.

Written by us from the published descriptions of the evaluation of SemEval-2025 Task 4 (arXiv 2504.02883, with the data
of arXiv 2502.15097) and, for the further membership attacks, of open-unlearning (arXiv 2506.12618). Every row is a call
of the model on its own; every attack goes through all documents again.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from unlearn_pl.data.encoding import decode_answer, start_ids
from unlearn_pl.evaluation.choice import fitting_prompt, letter_ids
from unlearn_pl.inference.forward import evaluating
from unlearn_pl.inference.model import LanguageModel
from unlearn_pl.inference.own_generate import eos_ids
from unlearn_pl.metrics.attacks import MIN_K_SHARE, STD_FLOOR
from unlearn_pl.models.body import causal_model
from unlearn_pl.tasks.mmlu import LETTERS, Subject

# A progress line after so many rows
TOLD_EVERY = 10


@dataclass(frozen=True)
class Continued:
    """The greedy answer to one prompt."""

    text: str
    """Special tokens dropped."""
    tokens: int
    """How many were generated, the end included."""
    ended: bool
    """Whether the model ended it, by an EOS."""


def continue_each(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int,
    tell: Callable[[str], None] | None = None,
) -> list[Continued]:
    """``model.generate`` on each bare prompt alone: greedy, with a cache, at most ``max_new_tokens`` tokens."""
    causal, ends = causal_model(model), eos_ids(model, tokenizer)
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, use_cache=True,
        eos_token_id=sorted(ends), pad_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    found = []
    with evaluating(model), generation_config(causal, config):
        for number, prompt in enumerate(prompts, start=1):
            ids = torch.tensor([start_ids(prompt, tokenizer)], device=causal.device)
            whole = causal.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
            new = whole[0, ids.shape[1] :].tolist()
            found.append(Continued(decode_answer(tokenizer, new), len(new), new[-1] in ends))
            if tell and (number % TOLD_EVERY == 0 or number == len(prompts)):
                tell(f"official way, rows: {number} of {len(prompts)}")
    return found


@contextmanager
def generation_config(causal: nn.Module, config: GenerationConfig) -> Iterator[None]:
    """Inside the block ``config`` is the model's own, from which ``generate`` takes what it is not told: a repetition
    penalty, say."""
    own = causal.generation_config
    causal.generation_config = config
    try:
        yield
    finally:
        causal.generation_config = own


def answer_each(model: nn.Module, tokenizer: PreTrainedTokenizerBase, subjects: Sequence[Subject]) -> list[str]:
    """The letter of each question, subject by subject: its whole prompt, with all shots, goes through the model alone,
    and the highest of the four letters' logits at its last position counts."""
    letters, causal, asked = letter_ids(tokenizer), causal_model(model), LanguageModel(model, tokenizer)
    chosen = []
    with evaluating(model):
        for subject in subjects:
            for question in subject.questions:
                row = start_ids(fitting_prompt(asked, subject, question)[0], tokenizer)
                logits = model(input_ids=torch.tensor([row], device=causal.device)).logits[0, -1]
                chosen.append(LETTERS[int(logits[letters].argmax())])
    return chosen


def attack_each(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, documents: Sequence[str], attack: str
) -> list[float]:
    """The score of each document under one of ``PASSES``, from a forward of its own; higher: more likely a member."""
    device, score = causal_model(model).device, PASSES[attack]
    with evaluating(model):
        return [
            score(model, torch.tensor([start_ids(document, tokenizer)], device=device), document)
            for document in documents
        ]


def loss_pass(model: nn.Module, ids: Tensor, text: str) -> float:
    """-NLL: the model's own loss of ``ids`` [1, T], negated."""
    return -float(model(input_ids=ids, labels=ids).loss)


def zlib_pass(model: nn.Module, ids: Tensor, text: str) -> float:
    """-NLL / bytes of the text after zlib."""
    return loss_pass(model, ids, text) / len(zlib.compress(text.encode()))


def min_k_pass(model: nn.Module, ids: Tensor, text: str) -> float:
    """Mean of the lowest log probabilities of tokens."""
    logprobs = model(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
    return mean_of_lowest(logprobs.gather(-1, ids[0, 1:, None])[:, 0])


def min_k_pp_pass(model: nn.Module, ids: Tensor, text: str) -> float:
    """Mean of the lowest (log p - mean) / std; the variance is E[(log p)^2] - mean^2, as in open-unlearning."""
    logprobs = model(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
    weights = logprobs.exp()
    mean = (weights * logprobs).sum(-1)
    std = ((weights * logprobs.square()).sum(-1) - mean.square()).clamp(min=STD_FLOOR**2).sqrt()
    return mean_of_lowest((logprobs.gather(-1, ids[0, 1:, None])[:, 0] - mean) / std)


def mean_of_lowest(values: Tensor) -> float:
    """Mean of the lowest ``MIN_K_SHARE`` of ``values`` [N], at least of one."""
    return float(values.sort().values[: max(1, int(MIN_K_SHARE * len(values)))].mean())


PASSES: dict[str, Callable[[nn.Module, Tensor, str], float]] = {
    "loss": loss_pass,
    "zlib": zlib_pass,
    "min_k": min_k_pass,
    "min_k_pp": min_k_pp_pass,
}
"""The attacks by the names of ``unlearn_pl.metrics.attacks``."""
