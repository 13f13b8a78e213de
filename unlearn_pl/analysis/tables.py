"""Tables of models and merges, one a line: plain text that is also Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from unlearn_pl.metrics.headline import HEADLINE

TASK, AUC, SCORE, CHOICE, AGGREGATE = HEADLINE
COLUMNS = {"Task Aggregate": TASK, "MIA AUC": AUC, "MIA score": SCORE, "MMLU": CHOICE, "Aggregate": AGGREGATE}
"""Head of a column of a recipe's table -> key of the score."""


def scores_table(models: Mapping[str, Mapping[str, Any]]) -> str:
    """One line a model with its five scores, each in [0, 1]; a dash where the data for a score was not given."""
    lines = [["model", *COLUMNS]]
    lines += [[name, *(number(scores[key]) for key in COLUMNS.values())] for name, scores in models.items()]
    return markdown(lines)


def terms_table(models: Mapping[str, Mapping[str, Any]]) -> str:
    """One line a term of the Task Aggregate, as the benchmark names them, one column a model."""
    terms = next(iter(models.values()))["terms"]
    lines = [["term", *models]]
    lines += [[term, *(number(scores["terms"][term]) for scores in models.values())] for term in terms]
    return markdown(lines)


COMPARED = {
    "Task Aggregate": TASK,
    "MMLU": CHOICE,
    "AUC": AUC,
    "Aggregate": AGGREGATE,
    "AUC, held out": "holdout_auc",
    "Aggregate, held out": "aggregate_holdout",
}


def compared_table(models: Mapping[str, Mapping[str, Any]]) -> str:
    """One line a model of a balance search: scores with the AUC of all documents and of the held-out half."""
    lines = [["model", *COMPARED]]
    lines += [[name, *(number(scores[key]) for key in COMPARED.values())] for name, scores in models.items()]
    return markdown(lines)


MERGED = {"TA": TASK, "AUC": AUC, "MMLU": CHOICE, "Aggregate": AGGREGATE}


def merges_table(parents: Mapping[str, Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> str:
    """One line a merge method: norm of the delta, sign conflict, trimmed mass, the scores at the scale of its
    definition and those at the common norm."""
    head = ["method", "density", "conflict", "trimmed", "norm", *MERGED, "norm =", *(f"{name} =" for name in MERGED)]
    lines = [head]
    for name, scores in parents.items():
        empty = ["-"] * (len(MERGED) + 1)
        lines.append([name, "-", "-", "-", *_sized(scores), *empty])
    for row in rows:
        facts = [number(row[key]) for key in ("density", "sign_conflict", "trimmed_mass")]
        lines.append([row["method"], *facts, *_sized(row["defined"]), *_sized(row["normalised"])])
    return markdown(lines)


def _sized(scores: Mapping[str, Any]) -> list[str]:
    return [f"{scores['norm']:.2f}", *(number(scores[key]) for key in MERGED.values())]


def number(value: float | None) -> str:
    """Three decimals, as the paper's tables have them."""
    return "-" if value is None else f"{value:.3f}"


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Aligned Markdown of lines of cells, the first line being the head; the first column is text, the rest numbers."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def line(cells: Sequence[str]) -> str:
        aligned = [cells[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))]
        return "| " + " | ".join(aligned) + " |"

    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (w + 1) + ":" for w in widths[1:])]) + "|"
    return "\n".join([line(lines[0]), rule, *map(line, lines[1:])])
