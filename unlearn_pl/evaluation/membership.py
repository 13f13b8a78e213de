"""Membership attacks: can somebody tell, by how the model likes their tokens, which documents it was trained on?"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from unlearn_pl.errors import InputError, within
from unlearn_pl.inference.batch_size import BatchSize, check_batch_size
from unlearn_pl.inference.model import LanguageModel
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
    batch_size: BatchSize = "auto"
    """Documents whose loss is computed together at most; at least 1, or auto: 8 on a CPU, and on a GPU as many as one
    forward is fast with."""

    def __post_init__(self) -> None:
        if self.member is not None and self.tasks is not None:
            raise InputError("not with member; it chooses among the forget set's documents", "membership.tasks")
        if not 0 < self.min_k_share <= 1:
            raise InputError(f"must be above 0 and at most 1, got {self.min_k_share}", "membership.min_k_share")
        check_batch_size(self.batch_size, "membership.batch_size")


def document_attacks(
    language_model: LanguageModel,
    documents: Sequence[str],
    attacks: Sequence[str] = ("loss",),
    *,
    batch_size: BatchSize = "auto",
    reference: Sequence[float] | None = None,
    share: float = MIN_K_SHARE,
    what: str = "membership, documents",
) -> dict[str, list[float]]:
    """Attack -> score of each whole document, higher for a likelier member; all from one forward over it.

    ``attacks`` are names of ``ATTACKS``; those that need it take ``reference``, the documents' mean NLL under another
    model; ``share`` is that of Min-K%. A score that is not finite (a broken model) is -inf, with a warning.
    Raises InputError if a document has fewer than two tokens or exceeds the model's positions.
    """
    moments = any(ATTACKS[name].needs_moments for name in attacks)
    with within("membership"):
        found = language_model.token_scores(documents, moments=moments, batch_size=batch_size, what=what)
    evidences = [
        Evidence(
            document,
            logprob=scores.logprob.double().numpy(),
            mean=scores.mean.double().numpy(),
            std=scores.std.double().numpy(),
            reference=None if reference is None else reference[number],
        )
        for number, (document, scores) in enumerate(zip(documents, found, strict=True))
    ]
    scores_of = {name: attack_scores(name, evidences, share) for name in attacks}
    if broken := sum(not all(map(math.isfinite, scores)) for scores in zip(*scores_of.values(), strict=True)):
        warnings.warn(
            f"membership: {broken} of {len(documents)} documents have no finite loss (a broken model): nothing follows",
            stacklevel=2,
        )
    return scores_of


def document_losses(
    language_model: LanguageModel,
    documents: Sequence[str],
    *,
    batch_size: BatchSize = "auto",
    what: str = "membership, documents",
) -> list[float]:
    """Mean negative log-likelihood, in nats a token, of each whole document after its first token; infinite if broken.

    Raises InputError like ``document_attacks``.
    """
    found = document_attacks(language_model, documents, batch_size=batch_size, what=what)
    return [-score for score in found["loss"]]
