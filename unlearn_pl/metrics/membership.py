"""What the membership attacks found, as scores and verdicts."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

from unlearn_pl.metrics.attacks import ATTACKS
from unlearn_pl.metrics.composites import attack_score_to_retrained, s_mia
from unlearn_pl.metrics.intervals import membership_interval
from unlearn_pl.metrics.measured import Measured, Sides
from unlearn_pl.metrics.metric import UNDEFINED, Better, Estimate, Metric, Need
from unlearn_pl.metrics.roc import membership_score, true_positive_rate, verdict

# The interval of fewer documents than this is too wide, or not to be trusted, to judge by.
LEAST_DOCUMENTS = 10
RATES = (1, 5)
"""Percent of false alarms at which an attack is judged."""

Figure = Callable[[Measured, Sides], Estimate | None]
"""One score of an attack, None if it was not measured."""


def auc(_: Measured, sides: Sides) -> Estimate | None:
    """Area under the ROC curve, over all documents."""
    return UNDEFINED if sides.broken else Estimate(sides.auc, sides.count, sides.interval)


def auc_of_half(half: int, measured: Measured, sides: Sides) -> Estimate | None:
    """The same over one half of the documents; not measured if the half lacks one side."""
    part = sides.part(*measured.halves[half])
    return None if sides.broken or not (part.members and part.nonmembers) else auc(measured, part)


def members_found(percent: int, _: Measured, sides: Sides) -> Estimate | None:
    """Share of members found at ``percent`` false alarms; undefined where not one false alarm is so rare."""
    if sides.broken:
        return None
    if len(sides.nonmembers) * percent < 100:
        return UNDEFINED
    return Estimate(true_positive_rate(sides.members, sides.nonmembers, percent / 100), sides.count)


def score(_: Measured, sides: Sides) -> Estimate | None:
    """1 - 2 |AUC - 1/2|."""
    if sides.auc is None:
        return UNDEFINED
    return Estimate(membership_score(sides.auc), sides.count, membership_interval(sides.interval))


def compared(attack: str, formula: Callable[[float | None, float | None], float | None]) -> Figure:
    """A score by the AUC that ``attack`` has on a retrained model."""

    def figure(measured: Measured, sides: Sides) -> Estimate | None:
        other = None if measured.retrained is None else measured.retrained.auc.get(attack)
        value = formula(sides.auc, other)
        return None if value is None else Estimate(value, sides.count)

    return figure


class Row(NamedTuple):
    """A row of the table for each attack."""

    figure: str
    formula: str
    better: Better
    compute: Figure


def attack_metrics(attack: str, *rows: Row, needs: tuple[Need, ...] = (), source: str | None = None) -> list[Metric]:
    """Rows of the table for one of ``ATTACKS``."""
    known = ATTACKS[attack]
    needed: tuple[Need, ...] = ("documents", *needs, *(("base",) if known.needs_reference else ()))

    def statistic(name: str, compute: Figure, measured: Measured) -> Mapping[str, Estimate]:
        found = compute(measured, measured.sides[attack]) if attack in measured.sides else None
        return {} if found is None else {name: found}

    return [
        Metric(
            name=(name := f"membership/{attack}/{row.figure}"),
            family="membership",
            formula=row.formula,
            better=row.better,
            range="[0, 1]",
            source=source or known.source,
            needs=needed,
            statistic=partial(statistic, name, row.compute),
            notes=notes,
        )
        for row in rows
    ]


def notes(measured: Measured) -> list[str]:
    """What a broken model, or too few documents, leave unknown."""
    told = [
        f"broken model: {attack} attack: {sides.broken} of {sides.count} documents have no finite score, so it has no "
        "AUC and no score"
        for attack, sides in measured.sides.items()
        if sides.broken
    ]
    few = [f"tpr_at_{percent}_percent" for percent in RATES if len(measured.nonmembers) * percent < 100]
    if measured.attacks and few:
        count = len(measured.nonmembers)
        told.append(f"no {' and '.join(few)}: 1 % needs 100 non-members, 5 % needs 20, got {count}")
    return told


def own_metrics(attack: str) -> list[Metric]:
    """What an attack says by itself."""
    return attack_metrics(
        attack,
        Row("auc", ATTACKS[attack].formula, "one half", auc),
        Row("auc_calibration", "AUC on half of the documents, by their hash", "one half", partial(auc_of_half, 0)),
        Row("auc_holdout", "AUC on the other half", "one half", partial(auc_of_half, 1)),
        *(
            Row(
                f"tpr_at_{rate}_percent",
                f"members found at {rate} % false alarms",
                "lower",
                partial(members_found, rate),
            )
            for rate in RATES
        ),
        Row("score", "1 - 2 |AUC - 1/2|", "higher", score),
    )


def to_retrained(attack: str) -> list[Metric]:
    """Its score by the AUC on a retrained model, our own."""
    formula = "1 - |AUC - AUC_r| / max(AUC_r, 1 - AUC_r), r: retrained model"
    row = Row("score_to_retrained", formula, "higher", compared(attack, attack_score_to_retrained))
    return attack_metrics(attack, row, needs=("retrained",), source="own")


def mia_to_retrained(attack: str) -> list[Metric]:
    """The same as UDS has it."""
    row = Row("s_mia", "1 - min(|AUC - AUC_r| / AUC_r, 1), r: retrained model", "higher", compared(attack, s_mia))
    return attack_metrics(attack, row, needs=("retrained",), source="UDS (arXiv 2605.24614)")


def verdicts(measured: Measured) -> dict[str, str]:
    """Attack -> whether its AUC shows a leak, if there are enough documents on either side for an interval."""
    found = {}
    for attack, sides in measured.sides.items():
        documents = min(len(sides.members), len(sides.nonmembers))
        if sides.auc is None:
            found[attack] = f"broken model: {sides.broken} of {sides.count} documents have no finite loss"
        elif documents < LEAST_DOCUMENTS or sides.interval is None:
            found[attack] = f"no verdict: it needs {LEAST_DOCUMENTS} documents on either side, got {documents}"
        else:
            found[attack] = verdict(sides.auc, *sides.interval)
    return found
