"""Batched greedy generation whose text is that of one row at a time."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from unlearn_pl.errors import InputError
from unlearn_pl.evaluation.forward import device_of, encode_texts, evaluating, last_logits, left_padded
from unlearn_pl.evaluation.ranks import Progress, length_sorted_batches, map_batches
from unlearn_pl.models.forward import causal_model

# The company of other rows moves float32 logits by up to about 26 units of eps x the largest logit (measured on
# SmolLM2-135M); two candidates can swap only if they are closer than twice that.
CLOSE_CALL = 128


@dataclass(frozen=True)
class Generation:
    """How answers are generated: greedily, from the bare prompt, without a chat template."""

    max_new_tokens: int = 256
    """A row that has not ended by then is cut; at least 1. The official value is 256."""
    batch_size: int = 32
    """Rows that are generated together; at least 1. In float32 it changes the speed and never the text. In half
    precision ties between tokens are common and only 1 gives exactly the text of one row at a time."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InputError(f"--generation.max_new_tokens: must be at least 1, got {self.max_new_tokens}")
        if self.batch_size < 1:
            raise InputError(f"--generation.batch_size: must be at least 1, got {self.batch_size}")


def generate_greedy(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int = 256,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> list[str]:
    """The greedy continuation of each prompt, special tokens dropped, in the order of ``prompts``.

    The text is what ``model.generate(ids, do_sample=False, max_new_tokens=...)`` gives for one row alone, save that of
    the model's generation config only the EOS ids count: no repetition penalty, no forced token. Under several
    processes each generates a part and all get everything.

    Raises InputError if a prompt and its continuation may exceed the model's positions.
    """
    rows = encode_texts(model, tokenizer, prompts, "--generation.max_new_tokens: prompt", max_new_tokens)
    ends = eos_ids(model, tokenizer)

    def compute(batch: Sequence[int]) -> list[list[int]]:
        return continue_batch(model, [rows[index] for index in batch], ends, max_new_tokens)

    with evaluating(model):
        batches = length_sorted_batches([len(row) for row in rows], batch_size)
        answers = map_batches(batches, compute, progress, "generation, rows")
    return [decode_answer(tokenizer, answer) for answer in answers]


def eos_ids(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The token ids that end a row: the model's own if it names any, else the tokenizer's."""
    given = getattr(getattr(causal_model(model), "generation_config", None), "eos_token_id", None)
    if given is None:
        given = tokenizer.eos_token_id
    ids = frozenset(given if isinstance(given, (list, tuple)) else [given])
    if tokenizer.eos_token_id not in ids:
        warnings.warn(
            f"generation ends at the model's EOS ids {sorted(ids)}; the tokenizer's, {tokenizer.eos_token_id}, is none",
            stacklevel=2,
        )
    return ids


def decode_answer(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> str:
    """Generated text as the official script decodes it: special tokens dropped, spaces before punctuation cleaned up.

    transformers ignores the clean-up for BPE tokenizers, with a warning for every model; so they are not asked for it.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    is_bpe = backend is not None and type(backend.model).__name__ == "BPE"
    return str(tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=not is_bpe))


def continue_batch(
    model: nn.Module, rows: Sequence[Sequence[int]], eos: frozenset[int], max_new_tokens: int
) -> list[list[int]]:
    """New token ids of each row; a row that the others could have led astray is generated again alone."""
    answers = continue_rows(model, rows, eos, max_new_tokens)
    for slot, row in enumerate(rows):
        if answers[slot] is None:
            answers[slot] = continue_rows(model, [row], eos, max_new_tokens)[0]
    return [answer for answer in answers if answer is not None]


def continue_rows(
    model: nn.Module, rows: Sequence[Sequence[int]], eos: frozenset[int], max_new_tokens: int
) -> list[list[int] | None]:
    """New token ids of each row, up to and with an EOS; None where two tokens came so close that a row alone might
    choose the other one. Rows leave the batch when they end.
    """
    ids, mask, positions = left_padded(rows, device_of(model))
    answers: list[list[int] | None] = [[] for _ in rows]
    running = list(range(len(rows)))
    cache = None
    for _ in range(max_new_tokens):
        logits, cache = last_logits(model, ids, mask, positions, cache, use_cache=True)
        chosen = logits.float().argmax(dim=-1)
        unsure = close_calls(logits).tolist() if len(rows) > 1 else [False]
        stay = []
        for slot, (row, token) in enumerate(zip(running, chosen.tolist(), strict=True)):
            answer = answers[row]
            if unsure[slot] or answer is None:
                answers[row] = None
                continue
            answer.append(token)
            if token not in eos:
                stay.append(slot)
        if not stay:
            break
        if len(stay) < len(running):
            running = [running[slot] for slot in stay]
            index = torch.tensor(stay, device=ids.device)
            cache.batch_select_indices(index)
            chosen = chosen[index]
            mask, positions = (None if part is None else part[index] for part in (mask, positions))
        ids = chosen[:, None]
        if mask is not None and positions is not None:
            mask = torch.cat([mask, mask.new_ones(len(running), 1)], dim=1)
            positions = positions[:, -1:] + 1
    return answers


def close_calls(logits: Tensor) -> Tensor:
    """[B] whether the two best of ``logits`` [B, V] are within rounding of each other.

    Never in half precision, where that holds for every third token and says little.
    """
    if torch.finfo(logits.dtype).bits < 32:
        return torch.zeros(len(logits), dtype=torch.bool)
    best, second = logits.topk(2, dim=-1).values.unbind(dim=-1)
    scale = logits.abs().amax(dim=-1) * torch.finfo(logits.dtype).eps
    return best - second <= CLOSE_CALL * scale
