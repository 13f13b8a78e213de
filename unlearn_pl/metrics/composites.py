"""Scores that are made of other scores, our own and those of other unlearning benchmarks.

A part that was not measured is None, and a composite is None unless all of its parts exist: none is left out of a mean
in silence. Parts and composites lie in [0, 1]; higher is better for every composite, for a part where it says so.
"""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, harmonic_mean
from typing import Any

from unlearn_pl.metrics.measured import Measured
from unlearn_pl.metrics.metric import Estimate, Metric
from unlearn_pl.metrics.roc import membership_score
from unlearn_pl.metrics.truth_ratio import DEFINITIONS, ratio_utility


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


PRIVATE = ("loss", "zlib", "min_k", "min_k_pp")
"""The attacks of the privacy scores."""


def composite(name: str, compute: Callable[[Measured], float | None], **facts: Any) -> Metric:
    """A row of the table for a score that is made of others: higher is better, in [0, 1], not there if a part is not.

    ``facts`` are the other fields of the row.
    """

    def statistic(measured: Measured) -> Mapping[str, Estimate]:
        value = compute(measured)
        return {} if value is None else {name: Estimate(value, len(measured.samples))}

    return Metric(name=name, better="higher", range="[0, 1]", statistic=statistic, **facts)


def memorization_of(measured: Measured) -> float | None:
    """``memorization`` of the forget set."""
    rows = measured.truth_rows("forget")
    known = [] if any(row.broken for row in rows) else rows
    probability = fmean(row.probability for row in known) if known else None
    share = fmean(row.right_share for row in known) if known else None
    return memorization(floored_strength(measured), measured.mean("forget", "exact_memorization"), probability, share)


def floored_strength(measured: Measured) -> float | None:
    """Mean extraction strength of the forget set as open-unlearning has it, at least 1/T; None if not measured."""
    recalls = [
        row.recall
        for row in measured.rows("forget")
        if row.recall is not None and row.scores.get("extraction_strength") is not None
    ]
    floored = [max(recall["extraction_strength"] or 0.0, 1 / (recall["length"] or 1)) for recall in recalls]
    return fmean(floored) if floored else None


def privacy(score: Callable[[float | None, float | None], float | None], measured: Measured) -> float | None:
    """Harmonic mean over ``PRIVATE`` of the attack's ``score``, of its AUC here and on the retrained model."""
    others = {} if measured.retrained is None else measured.retrained.auc
    aucs = {name: sides.auc for name, sides in measured.sides.items()}
    return harmonic([score(aucs.get(name), others.get(name)) for name in PRIVATE])


def retain_utility(measured: Measured) -> float | None:
    """Harmonic mean of probability, ROUGE-L recall of the completions and truth utility, of what had to stay."""
    scores = [row.score for row in measured.rows("retain") if row.completion and row.score is not None]
    rows, mean = measured.truth_rows("retain"), DEFINITIONS[measured.definition][1]
    known = rows and not any(row.broken for row in rows)
    return harmonic(
        [
            measured.mean("retain", "verbatim_probability"),
            fmean(scores) if scores else None,
            ratio_utility([row.ratio(mean) for row in rows]) if known else None,
        ]
    )


def utility(measured: Measured) -> float | None:
    """Harmonic mean of the retain utility and the share of the forget set's texts that are not degenerate."""
    broken = measured.mean("forget", "degenerate")
    return harmonic([retain_utility(measured), None if broken is None else 1 - broken])
