"""Membership attacks: can somebody tell, by how the model likes their tokens, which documents it was trained on?"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from unlearn_pl.errors import InputError
from unlearn_pl.inference.batches import Work, length_sorted_batches, map_batches
from unlearn_pl.inference.model import Network
from unlearn_pl.inference.rows import encode_texts, evaluating
from unlearn_pl.inference.token_scores import TokenScores
from unlearn_pl.metrics.attacks import ATTACKS, MIN_K_SHARE, Evidence, attack_scores


@dataclass(frozen=True)
class Membership:
    """Documents of the membership attack. Without non-members there is no attack and no aggregate."""

    member: str | None = None
    """JSONL file with a field `document`: texts that the model was trained on and had to forget. Without it the
    benchmark gives them: LUME rebuilds them from the completion rows of the forget set."""
    nonmember: str | None = None
    """JSONL file with a field `document`: texts like the members that the model never saw."""
    tasks: list[str] | None = None
    """Tasks of the forget set whose documents are rebuilt as members, where the benchmark does that; without it those
    of the official file of members. Non-members should be of the same sort."""
    min_k_share: float = MIN_K_SHARE
    """Share of a document's tokens, the least likely ones, that Min-K% and Min-K%++ look at; above 0, at most 1. MUSE
    and open-unlearning use 0.4."""
    batch_size: int = 8
    """Documents whose loss is computed together at most; at least 1."""

    def __post_init__(self) -> None:
        if self.member is not None and self.tasks is not None:
            raise InputError(
                "not with membership.member; it chooses among the forget set's documents", "membership.tasks"
            )
        if not 0 < self.min_k_share <= 1:
            raise InputError(f"must be above 0 and at most 1, got {self.min_k_share}", "membership.min_k_share")
        if self.batch_size < 1:
            raise InputError(f"must be at least 1, got {self.batch_size}", "membership.batch_size")


def document_attacks(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[str],
    attacks: Sequence[str] = ("loss",),
    batch_size: int = 8,
    reference: Sequence[float] | None = None,
    work: Work | None = None,
    what: str = "membership, documents",
    share: float = MIN_K_SHARE,
) -> dict[str, list[float]]:
    """Attack -> score of each whole document, higher for a likelier member; all from one forward over it.

    ``attacks`` are names of ``ATTACKS``; those that need it take ``reference``, the documents' mean NLL under another
    model; ``share`` is that of Min-K%. A score that is not finite (a broken model) is -inf, with a warning.
    Raises InputError if a document has fewer than two tokens or exceeds the model's positions.
    """
    rows = document_rows(model, tokenizer, documents)
    moments = any(ATTACKS[name].needs_moments for name in attacks)

    def compute(batch: Sequence[int]) -> list[list[float]]:
        tokens = batch_token_scores(network, [rows[index] for index in batch], moments)
        evidences = [
            Evidence(
                documents[index],
                logprob=scores.logprob.double().numpy(),
                mean=scores.mean.double().numpy(),
                std=scores.std.double().numpy(),
                reference=None if reference is None else reference[index],
            )
            for index, scores in zip(batch, tokens, strict=True)
        ]
        return [list(row) for row in zip(*(attack_scores(name, evidences, share) for name in attacks), strict=True)]

    with evaluating(model):
        network = Network(model)
        batches = length_sorted_batches([len(row) for row in rows], batch_size, network.tokens_per_forward)
        identity = [rows, list(documents), list(attacks), share, None if reference is None else list(reference)]
        found = map_batches(batches, compute, what, work, identity)
    if broken := sum(not all(map(math.isfinite, scores)) for scores in found):
        warnings.warn(
            f"membership: {broken} of {len(found)} documents have no finite loss (a broken model): nothing follows",
            stacklevel=2,
        )
    return {name: [scores[place] for scores in found] for place, name in enumerate(attacks)}


def document_losses(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[str],
    batch_size: int = 8,
    work: Work | None = None,
    what: str = "membership, documents",
) -> list[float]:
    """Mean negative log-likelihood, in nats a token, of each whole document after its first token; infinite if broken.

    Raises InputError like ``document_attacks``.
    """
    found = document_attacks(model, tokenizer, documents, ("loss",), batch_size, work=work, what=what)
    return [-score for score in found["loss"]]


def document_rows(model: nn.Module, tokenizer: PreTrainedTokenizerBase, documents: Sequence[str]) -> list[list[int]]:
    """Token ids of whole documents. Raises InputError if one has fewer than two, or more than the model's positions."""
    rows = encode_texts(model, tokenizer, documents, "--membership: document")
    for number, row in enumerate(rows, start=1):
        if len(row) < 2:
            raise InputError(
                f"--membership: document {number} is a single token, which has no loss: {documents[number - 1]!r:.60}"
            )
    return rows


def batch_token_scores(network: Network, rows: Sequence[Sequence[int]], moments: bool) -> list[TokenScores]:
    """What the model says of each row's tokens after the first."""
    states = network.rows_states(rows)
    return [
        network.token_scores(states[slot, : len(row) - 1], torch.tensor(row[1:], device=states.device), moments)
        for slot, row in enumerate(rows)
    ]
