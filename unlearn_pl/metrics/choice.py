"""Multiple choice, as scores."""

from unlearn_pl.metrics.measured import Measured
from unlearn_pl.metrics.metric import ALWAYS, UNDEFINED, Estimate, Metric, mean_score

MMLU = "Hendrycks et al. 2021 (arXiv 2009.03300)"


def right_answers(measured: Measured) -> list[float]:
    """Whether each question was answered right, 0 or 1, of those with an outcome."""
    return [float(value) for value in (measured.choice or {})["right"] if value is not None]


def choice_micro(measured: Measured) -> dict[str, Estimate]:
    """Accuracy over all questions."""
    right = right_answers(measured)
    told = UNDEFINED if choice_notes(measured) else mean_score(right, range(len(right)), measured.resamples)
    return {"choice/micro": told}


def choice_macro(measured: Measured) -> dict[str, Estimate]:
    """Mean over subjects of the accuracy."""
    value = (measured.choice or {})["macro"]
    told = UNDEFINED if choice_notes(measured) else Estimate(value, len(right_answers(measured)))
    return {"choice/macro": told}


def choice_notes(measured: Measured) -> list[str]:
    """A broken model has no finite logits to choose by."""
    outcomes = (measured.choice or {})["right"]
    if not (broken := sum(outcome is None for outcome in outcomes)):
        return []
    what = f"{broken} of {len(outcomes)} questions have no finite logits"
    return [f"broken model: {what}, so there is no multiple choice and no Aggregate"]


CHOICE = tuple(
    Metric(name=name, family=ALWAYS, formula=formula, better="higher", range="[0, 1]", source=MMLU, needs=("choice",),
           statistic=statistic, notes=choice_notes)
    for name, formula, statistic in (
        ("choice/micro", "share of questions answered right", choice_micro),
        ("choice/macro", "mean over subjects of the same", choice_macro),
    )
)  # fmt: skip
"""The accuracy over all questions, and the mean over subjects."""
