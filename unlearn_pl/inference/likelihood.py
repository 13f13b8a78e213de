"""How likely a model finds texts: answers after their prompts, or whole documents, in one forward each.

A causal model that reads the true answer says at each of its tokens what it would have said itself. As long as that is
the true token, it is what greedy decoding gives (the answer is the draft of speculative decoding, Leviathan et al.
2023, arXiv 2211.17192), so a memorised answer costs one forward instead of one for each token.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import nan
from statistics import fmean
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache

from unlearn_pl.inference.batch_size import BatchSize
from unlearn_pl.inference.batches import length_sorted_batches, map_batches
from unlearn_pl.inference.engine import Engine
from unlearn_pl.inference.token_scores import TokenScores, is_tie
from unlearn_pl.metrics.memorization import exact_memorization, extraction_strength, verbatim_probability

# Rows that `auto` reads together there.
ANSWERS_ON_CPU, DOCUMENTS_ON_CPU = 32, 8


@dataclass(frozen=True)
class Likelihood:
    """What one forward over a prompt and its answer showed."""

    accepted: int
    """Tokens of the answer, from the first on, that greedy decoding gives."""
    following: int
    """The token that it gives after these."""
    unsure: bool
    """Whether one of these decisions is a tie, so that the row alone, token by token, might take the other."""
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


def read_answers(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    *,
    batch_size: BatchSize,
    what: str = "answers, rows",
) -> list[Likelihood]:
    """The likelihood of each answer [tokens] after its prompt [tokens]; both have at least one token."""

    def compute(batch: Sequence[int]) -> list[dict[str, Any]]:
        found = read_batch(engine, [prompts[index] for index in batch], [answers[index] for index in batch])
        return [asdict(one) for one in found]

    lengths = [len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True)]
    size = engine.rows_together(batch_size, ANSWERS_ON_CPU)
    batches = length_sorted_batches(lengths, size, engine.tokens_per_forward)
    identity = [list(map(list, prompts)), list(map(list, answers))]
    return [Likelihood(**found) for found in map_batches(batches, compute, what, engine.work, identity)]


def read_batch(
    engine: Engine, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], cache: Cache | None = None
) -> list[Likelihood]:
    """``read_answers`` in one forward; ``cache``, an empty one, takes up the rows, padded on the right."""
    rows = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    states = engine.rows_states(rows, cache=cache)
    wanted = [
        states[slot, len(prompt) - 1 : len(row)] for slot, (prompt, row) in enumerate(zip(prompts, rows, strict=True))
    ]
    targets = [[*answer, 0] for answer in answers]  # nothing is asked of what follows the answer
    found = engine.scores_of_rows(wanted, targets, margin=True)
    return [
        likelihood(scores, answer, lambda margin: is_tie(margin, states.dtype, engine.tie_units))
        for scores, answer in zip(found, answers, strict=True)
    ]


def likelihood(scores: TokenScores, answer: Sequence[int], ties: Callable[[Tensor], Tensor]) -> Likelihood:
    """From the ``scores`` [T + 1] at the last token of the prompt and at each token of the ``answer`` [T]; ``ties``
    tells of their margins which may be one.

    Of an answer without tokens its likelihood and the measures of it are NaN.
    """
    best, logprob = scores.argmax.tolist(), scores.logprob[:-1].tolist()
    hits = [own == true for own, true in zip(best, answer, strict=False)]
    accepted = hits.index(False) if False in hits else len(hits)
    margin = scores.margin[: accepted + 1]
    return Likelihood(
        accepted=accepted,
        following=best[accepted],
        unsure=bool(ties(margin).any()),
        broken=bool(margin.isnan().any()),
        logprob=fmean(logprob) if logprob else nan,
        probability=verbatim_probability(logprob) if logprob else nan,
        exact_memorization=exact_memorization(best[:-1], answer) if logprob else nan,
        extraction_strength=extraction_strength(best[:-1], answer) if logprob else nan,
        length=len(answer),
    )


def read_documents(
    engine: Engine, rows: Sequence[Sequence[int]], *, moments: bool, batch_size: BatchSize, what: str
) -> list[TokenScores]:
    """Scores [tokens - 1] of each document's tokens after the first; ``rows`` are of two tokens at least."""

    def compute(batch: Sequence[int]) -> list[dict[str, Any]]:
        states = engine.rows_states([rows[index] for index in batch])
        targets = [rows[index][1:] for index in batch]
        wanted = [states[slot, : len(row)] for slot, row in enumerate(targets)]
        return [scores.to_json() for scores in engine.scores_of_rows(wanted, targets, moments)]

    size = engine.rows_together(batch_size, DOCUMENTS_ON_CPU)
    batches = length_sorted_batches([len(row) for row in rows], size, engine.tokens_per_forward)
    found = map_batches(batches, compute, what, engine.work, [list(map(list, rows)), moments])
    return [TokenScores.from_json(scores) for scores in found]
