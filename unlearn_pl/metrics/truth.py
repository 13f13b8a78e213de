"""What the truth ratios say, as scores."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from unlearn_pl.metrics.measured import Measured
from unlearn_pl.metrics.metric import UNDEFINED, Estimate
from unlearn_pl.metrics.statistics import kolmogorov_smirnov, least_p_value
from unlearn_pl.metrics.truth_ratio import DEFINITIONS, AnswerLogprobs, ratio_closeness, ratio_utility

LEVEL = 0.05
"""Where a p-value says that two models differ."""


def truth_ratio(measured: Measured) -> Mapping[str, Estimate]:
    """How near the ratios of each set are to 1."""
    return {f"{split}/truth_ratio": _score(measured, rows, ratio_closeness) for split, rows in measured.truth.items()}


def truth_utility(measured: Measured) -> Mapping[str, Estimate]:
    """How useful the answers are, in the sets that had to stay."""
    return {
        f"{split}/truth_utility": _score(measured, rows, ratio_utility)
        for split, rows in measured.truth.items()
        if measured.role(split) != "forget"
    }


def _score(measured: Measured, rows: Sequence[AnswerLogprobs], score: Callable[[Sequence[float]], float]) -> Estimate:
    mean = DEFINITIONS[measured.definition][1]
    return UNDEFINED if broken(rows) else Estimate(score([row.ratio(mean) for row in rows]), len(rows))


def broken(rows: Sequence[AnswerLogprobs]) -> int:
    """The rows that a broken model gives no finite probability."""
    return sum(row.broken for row in rows)


def truth_notes(measured: Measured) -> list[str]:
    """The sets of which nothing is known."""
    return [
        f"broken model: {broken(rows)} of {len(rows)} truth rows of the {split} set have no finite probability, so no "
        "score is made of them"
        for split, rows in measured.truth.items()
        if broken(rows)
    ]


def both_forget_rows(measured: Measured) -> tuple[Sequence[AnswerLogprobs], Sequence[AnswerLogprobs]]:
    """The truth rows of the forget set from this model and from the retrained one; empty where there are none."""
    other = None if measured.retrained is None else replace(measured, truth=measured.retrained.truth)
    return measured.truth_rows("forget"), [] if other is None else other.truth_rows("forget")


def forget_quality(measured: Measured) -> Mapping[str, Estimate]:
    """The p-value of the Kolmogorov-Smirnov test of both models' ratios: near 1 they cannot be told apart, below 0.05
    they differ. Undefined where ``forget_quality_notes`` says why."""
    own, other = both_forget_rows(measured)
    if not own or not other:
        return {}
    if forget_quality_notes(measured):
        return {"forget_quality": UNDEFINED}
    mean = DEFINITIONS[measured.definition][0]
    ratios = [[row.ratio(mean) for row in rows] for rows in (own, other)]
    return {"forget_quality": Estimate(kolmogorov_smirnov(*ratios)[1], len(own))}


def forget_quality_notes(measured: Measured) -> list[str]:
    """A broken model has no forget quality, and so few rows have none that could not differ whatever they are."""
    own, other = both_forget_rows(measured)
    if not own or not other:
        return []
    if broken(own) or broken(other):
        return ["no forget_quality: truth rows without a finite probability, here or from the retrained model"]
    if (least := least_p_value(len(own), len(other))) <= LEVEL:
        return []
    what = f"{len(own)} rows against {len(other)} cannot give a p-value below {least:.3f}"
    return [f"no forget_quality: {what}, so nothing could differ at {LEVEL}"]
