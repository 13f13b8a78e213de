"""Membership attacks: scores that tell which documents a model was trained on, by how it likes their tokens."""

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

MIN_K_SHARE = 0.2
"""Share of a document's tokens, the least likely ones, that Min-K% and Min-K%++ look at unless told otherwise: the
value that the Min-K% paper (arXiv 2310.16789) chose. MUSE and open-unlearning use 0.4."""

STD_FLOOR = 1e-3
"""Least standard deviation, in nats, that Min-K%++ divides by, as in open-unlearning (variance 1e-6). Where the model
is certain, the true one is 0, and the difference above it is the float32 rounding of log probabilities, about 1e-6,
which must not decide the score."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """What an attack may know of one document of T tokens. Log probabilities are in nats.

    Raises ValueError if there is no log probability, or if mean and std have another length than it.
    """

    text: str
    logprob: Array
    """[T-1] log probabilities of the tokens after the first."""
    mean: Array
    """[T-1] means of the log probability of a token drawn from the model at these places; [0] if not computed."""
    std: Array
    """[T-1] standard deviations of the same; [0] if not computed."""
    reference: float | None = None
    """Mean negative log-likelihood of the document, in nats a token, under a reference model."""

    def __post_init__(self) -> None:
        shapes = self.logprob.shape, self.mean.shape, self.std.shape
        if self.logprob.ndim != 1 or not len(self.logprob):
            raise ValueError(f"a document needs log probabilities [T-1] with T of at least 2, got shape {shapes[0]}")
        if shapes[1] != shapes[2] or shapes[1] not in (shapes[0], (0,)):
            raise ValueError(f"mean and std must be as long as logprob, or both empty, got shapes {shapes}")


def loss_score(evidence: Evidence) -> float:
    """-NLL: mean log probability of the document's tokens, in nats, at most 0."""
    return float(evidence.logprob.mean())


def zlib_score(evidence: Evidence) -> float:
    """-NLL / number of bytes of the text (UTF-8) after zlib: what is likely just because it is repetitive counts less.

    In nats a token and byte, at most 0.
    """
    return loss_score(evidence) / len(zlib.compress(evidence.text.encode()))


def min_k_score(evidence: Evidence, share: float = MIN_K_SHARE) -> float:
    """Min-K%: mean log probability of the ``share`` of least likely tokens, in nats, at most 0."""
    return _mean_of_lowest(evidence.logprob, share)


def min_k_pp_score(evidence: Evidence, share: float = MIN_K_SHARE) -> float:
    """Min-K%++: the mean of the lowest ``share`` of (log p - mean) / std over tokens, in standard deviations.

    A std below ``STD_FLOOR`` counts as that, so a place where the model is certain, and right, adds 0. Raises
    ValueError if the evidence has no means.
    """
    if not len(evidence.mean):
        raise ValueError("min_k_pp needs the mean and std of each token, got none")
    return _mean_of_lowest((evidence.logprob - evidence.mean) / np.maximum(evidence.std, STD_FLOOR), share)


def reference_score(evidence: Evidence) -> float:
    """Reference NLL - NLL: what is likely under any model, trained on the document or not, counts less. In nats.

    Raises ValueError if the evidence has no reference.
    """
    if evidence.reference is None:
        raise ValueError("reference needs the document's loss under a reference model, got None")
    return evidence.reference + loss_score(evidence)


def _mean_of_lowest(values: Array, share: float) -> float:
    """Mean of the lowest floor(share * number) values, at least one of them; NaN if any value is."""
    assert 0 < share <= 1, share
    if np.isnan(values).any():  # which sort as the highest and would go unseen
        return math.nan
    count = max(1, int(share * len(values)))
    return float(np.partition(values, count - 1)[:count].mean())


@dataclass(frozen=True)
class Attack:
    """One membership attack: what it is called, what it computes, who described it, and what it needs."""

    name: str
    formula: str
    source: str
    score: Callable[..., float]
    """Of an ``Evidence``; higher: more likely a member."""
    takes_share: bool = False
    """Whether it takes the share of Min-K% as well."""
    needs_moments: bool = False
    """Whether it reads ``Evidence.mean`` and ``Evidence.std``."""
    needs_reference: bool = False
    """Whether it reads ``Evidence.reference``."""


ATTACKS: dict[str, Attack] = {
    "loss": Attack("Loss", "-NLL, the mean over tokens", "Yeom et al. 2018, arXiv 1709.01604", loss_score),
    "zlib": Attack("Zlib", "-NLL / bytes of the text after zlib", "Carlini et al. 2021, arXiv 2012.07805", zlib_score),
    "min_k": Attack(
        "Min-K%",
        "mean of the lowest log p, the share min_k_share of them",
        "Shi et al. 2024, arXiv 2310.16789",
        min_k_score,
        takes_share=True,
    ),
    "min_k_pp": Attack(
        "Min-K%++",
        "the same of (log p - mean) / std",
        "Zhang et al. 2024, arXiv 2404.02936",
        min_k_pp_score,
        takes_share=True,
        needs_moments=True,
    ),
    "reference": Attack(
        "Reference",
        "NLL under a reference model - NLL",
        "Carlini et al. 2021, arXiv 2012.07805",
        reference_score,
        needs_reference=True,
    ),
}
"""The attacks by the name that options and results give them. ``loss`` is that of SemEval-2025 Task 4."""


def attack_scores(name: str, evidences: Sequence[Evidence], share: float = MIN_K_SHARE) -> list[float]:
    """The score of each document under the attack ``name``, one of ``ATTACKS``; higher: more likely a member.

    ``share`` is that of Min-K%. A score that is not finite (a broken model) is -inf: nothing can be said of a set of
    documents with one (``roc.broken``). Raises ValueError if the name is unknown or a document lacks what the attack
    needs.
    """
    if name not in ATTACKS:
        raise ValueError(f"attack: must be one of {', '.join(ATTACKS)}, got {name!r}")
    with np.errstate(invalid="ignore"):  # -inf minus -inf is NaN, which is dealt with here
        attack = ATTACKS[name]
        further = {"share": share} if attack.takes_share else {}
        scores = [attack.score(evidence, **further) for evidence in evidences]
    return [score if math.isfinite(score) else -math.inf for score in scores]
