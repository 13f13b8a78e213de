"""The table of a recipe: one line a model, plain text that is also Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

COLUMNS = {
    "Task Aggregate": "task_aggregate",
    "MIA AUC": "membership_auc",
    "MIA score": "membership_score",
    "MMLU": "mmlu",
    "Aggregate": "aggregate",
}


def scores_table(models: Mapping[str, Mapping[str, Any]]) -> str:
    """One line a model with its five scores, each in [0, 1]; a dash where the data for a score was not given."""
    lines = [["model", *COLUMNS]]
    lines += [[name, *(number(scores[key]) for key in COLUMNS.values())] for name, scores in models.items()]
    return markdown(lines)


def terms_table(models: Mapping[str, Mapping[str, Any]]) -> str:
    """One line a term of the Task Aggregate, one column a model."""
    terms = next(iter(models.values()))["terms"]
    lines = [["term", *models]]
    lines += [[term, *(number(scores["terms"][term]) for scores in models.values())] for term in terms]
    return markdown(lines)


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
