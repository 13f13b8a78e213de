"""What the truth ratios say, as scores."""

from collections.abc import Mapping, Sequence

from unlearn_pl.evaluation.entries import Scores
from unlearn_pl.evaluation.retrained import Retrained
from unlearn_pl.metrics.kolmogorov import kolmogorov_smirnov, least_p_value
from unlearn_pl.metrics.table import BY_NAME
from unlearn_pl.metrics.truth_ratio import (
    DEFINITIONS,
    AnswerLogprobs,
    Definition,
    ratio_closeness,
    ratio_utility,
)

LEVEL = 0.05
"""Where a p-value says that two models differ."""


def add_truth(
    scores: Scores,
    truth: Mapping[str, Sequence[AnswerLogprobs]],
    definition: Definition,
    retrained: Retrained | None = None,
) -> None:
    """Truth ratios of each set, how useful those of the retain set are, and forget quality."""
    mean = DEFINITIONS[definition][1]
    for split, rows in truth.items():
        names = {f"{split}/truth_ratio": ratio_closeness}
        if split == "retain":
            names["retain/truth_utility"] = ratio_utility
        broken = sum(row.broken for row in rows)
        if broken:
            what = f"{broken} of {len(rows)} truth rows of the {split} set have no finite probability"
            scores.notes.append(f"broken model: {what}, so no score is made of them")
        for name, score in names.items():
            metric = BY_NAME[name.split("/")[1]]
            if broken:
                scores.undefined(name, metric, "higher")
            else:
                scores.add(name, metric, "higher", score([row.ratio(mean) for row in rows]), len(rows))
    if retrained is not None and truth.get("forget") and retrained.truth.get("forget"):
        add_forget_quality(scores, truth["forget"], retrained.truth["forget"], definition)


def add_forget_quality(
    scores: Scores, own: Sequence[AnswerLogprobs], other: Sequence[AnswerLogprobs], definition: Definition
) -> None:
    """The p-value of the Kolmogorov-Smirnov test of both models' ratios: near 1 they cannot be told apart, below 0.05
    they differ. None from a broken model, and where so few rows could not differ whatever they are."""
    name, mean = "forget_quality", DEFINITIONS[definition][0]
    if any(row.broken for row in (*own, *other)):
        scores.notes.append(f"no {name}: truth rows without a finite probability, here or in --retrained")
    elif (least := least_p_value(len(own), len(other))) > LEVEL:
        what = f"{len(own)} rows against {len(other)} cannot give a p-value below {least:.3f}"
        scores.notes.append(f"no {name}: {what}, so nothing could differ at {LEVEL}")
    else:
        ratios = [[row.ratio(mean) for row in rows] for rows in (own, other)]
        return scores.add(name, BY_NAME[name], "higher", kolmogorov_smirnov(*ratios)[1], len(own))
    return scores.undefined(name, BY_NAME[name], "higher")
