"""Scores that are made of other scores, our own and those of other unlearning benchmarks.

A part that was not measured is None, and a composite is None unless all of its parts exist: none is left out of a mean
in silence. Parts and composites lie in [0, 1]; higher is better for every composite, for a part where it says so.
"""

from collections.abc import Sequence
from statistics import harmonic_mean

from unlearn_pl.metrics.roc import membership_score


def harmonic(parts: Sequence[float | None]) -> float | None:
    """Harmonic mean of at least one part, 0 as soon as one is 0; None unless all parts exist."""
    assert parts, "no parts"
    measured = [part for part in parts if part is not None]
    return float(harmonic_mean(measured)) if len(measured) == len(parts) else None


def memorization(
    extraction_strength: float | None,
    exact_memorization: float | None,
    paraphrase_probability: float | None,
    right_share: float | None,
) -> float | None:
    """Memorization score of open-unlearning (arXiv 2506.12618): harmonic mean of 1 - each; None unless all exist.

    All four are means over the forget set, lower is better: extraction strength as open-unlearning has it, at least
    1/T; the probability of the paraphrased answer; right / (right + wrong) of ``AnswerLogprobs``, which is near 1 for a
    model that knows the answer.
    """
    parts = (extraction_strength, exact_memorization, paraphrase_probability, right_share)
    return harmonic([None if part is None else 1 - part for part in parts])


def attack_score(auc: float | None) -> float | None:
    """s of one membership attack without a retrained model: 1 - 2 |AUC - 1/2|; None without the AUC."""
    return None if auc is None else membership_score(auc)


def attack_score_to_retrained(auc: float | None, retrained_auc: float | None) -> float | None:
    """s of one membership attack by the AUC that it has on a retrained model; None unless both exist. Our own.

    1 - |AUC - AUC_r| / max(AUC_r, 1 - AUC_r): 1 if the attack does as well as on the retrained model, 0 at the value
    farthest from that; with AUC_r = 1/2 it is ``attack_score``.
    """
    if auc is None or retrained_auc is None:
        return None
    return 1 - abs(auc - retrained_auc) / max(retrained_auc, 1 - retrained_auc)


def s_mia(auc: float | None, retrained_auc: float | None) -> float | None:
    """The same as the code of UDS (arXiv 2605.24614) has it: 1 - min(|AUC - AUC_r| / AUC_r, 1).

    open-unlearning (arXiv 2506.12618) names its s_MIA and never published the formula; this is the only public one.
    """
    if auc is None or retrained_auc is None:
        return None
    apart = abs(auc - retrained_auc)
    return 1.0 if apart == 0 else 1 - min(apart / retrained_auc, 1.0) if retrained_auc else 0.0
