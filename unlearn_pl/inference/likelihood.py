"""One forward over prompt and true answer: how well the model knows the answer, and how far greedy decoding follows it.

A causal model that reads the true answer says at each of its tokens what it would have said itself. As long as that is
the true token, it is what greedy decoding gives (the answer is the draft of speculative decoding, Leviathan et al.
2023, arXiv 2211.17192), so a memorised answer costs one forward instead of one for each token.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import torch

from unlearn_pl.inference.batches import Work, length_sorted_batches, map_batches
from unlearn_pl.inference.model import Network
from unlearn_pl.inference.token_scores import is_close_call
from unlearn_pl.metrics.memorization import exact_memorization, extraction_strength, verbatim_probability


@dataclass(frozen=True)
class Recall:
    """What one row's forward showed."""

    accepted: int
    """Tokens of the answer, from the first on, that greedy decoding gives."""
    following: int
    """The token that it gives after these."""
    unsure: bool
    """Whether one of these decisions is so close that the row alone, token by token, might take the other."""
    logprob: float
    """Mean log probability of the answer's tokens, in nats; NaN from a broken model."""
    broken: bool
    """Whether one of them has NaN logits, which say nothing of decoding: what follows in the answer may be their cause,
    as NaN times an attention of 0 is NaN."""
    probability: float
    """``verbatim_probability`` of the answer, NaN like ``logprob``."""
    exact_memorization: float
    extraction_strength: float
    length: int
    """Tokens of the answer."""


def recall_answers(
    network: Network,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    batch_size: int,
    work: Work | None = None,
    what: str = "answers, rows",
) -> list[Recall]:
    """A ``Recall`` for each answer [tokens] after its prompt [tokens]; both have at least one token."""

    def compute(batch: Sequence[int]) -> list[dict[str, Any]]:
        rows = [[*prompts[index], *answers[index]] for index in batch]
        states = network.rows_states(rows)
        return [
            asdict(recall(network, states[slot, len(prompts[index]) - 1 : len(row)], answers[index]))
            for slot, (index, row) in enumerate(zip(batch, rows, strict=True))
        ]

    lengths = [len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True)]
    batches = length_sorted_batches(lengths, batch_size, network.tokens_per_forward)
    identity = [list(map(list, prompts)), list(map(list, answers))]
    return [Recall(**found) for found in map_batches(batches, compute, what, work, identity)]


def recall(network: Network, states: torch.Tensor, answer: Sequence[int]) -> Recall:
    """From the ``states`` [T + 1, ...] at the last token of the prompt and at each token of the ``answer`` [T]."""
    targets = torch.tensor([*answer, 0], device=states.device)  # nothing is asked of what follows the answer
    scores = network.token_scores(states, targets, lead=True)
    best, logprob = scores.argmax.tolist(), scores.logprob[:-1].tolist()
    hits = [own == true for own, true in zip(best, answer, strict=False)]
    accepted = hits.index(False) if False in hits else len(hits)
    lead = scores.lead[: accepted + 1]
    return Recall(
        accepted=accepted,
        following=best[accepted],
        unsure=bool(is_close_call(lead, states.dtype, network.close_call).any()),
        broken=bool(lead.isnan().any()),
        logprob=fmean(logprob),
        probability=verbatim_probability(logprob),
        exact_memorization=exact_memorization(best[:-1], answer),
        extraction_strength=extraction_strength(best[:-1], answer),
        length=len(answer),
    )
