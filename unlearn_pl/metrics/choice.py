"""Multiple choice, as scores."""

from unlearn_pl.metrics.measured import Measured
from unlearn_pl.metrics.metric import ALWAYS, UNDEFINED, Estimate, Metric, mean_score

MMLU = "Hendrycks et al. 2021 (arXiv 2009.03300)"


def outcomes(measured: Measured) -> list[bool | None]:
    """Whether each question was answered right; None from a broken model."""
    assert measured.choice is not None
    return list(measured.choice["right"])


def choice_micro(measured: Measured) -> dict[str, Estimate]:
    """Accuracy over all questions."""
    right = [float(outcome) for outcome in outcomes(measured) if outcome is not None]
    broken = len(right) < len(outcomes(measured))
    return {"choice/micro": UNDEFINED if broken else mean_score(right, range(len(right)), measured.resamples)}


def choice_macro(measured: Measured) -> dict[str, Estimate]:
    """Mean over subjects of the accuracy."""
    assert measured.choice is not None
    all_known = None not in outcomes(measured)
    return {"choice/macro": Estimate(measured.choice["macro"], len(outcomes(measured))) if all_known else UNDEFINED}


def choice_notes(measured: Measured) -> list[str]:
    """A broken model has no finite logits to choose by."""
    if not (broken := outcomes(measured).count(None)):
        return []
    what = f"{broken} of {len(outcomes(measured))} questions have no finite logits"
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
