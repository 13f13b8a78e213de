"""The results of an evaluation, and the table of all metrics, on the terminal."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from unlearn_pl.metrics.metric import Metric

# key of the results -> its name in the table
SCORES = {
    "task_aggregate": "Task Aggregate",
    "membership_auc": "Membership AUC (best .5)",
    "membership_score": "Membership score",
    "mmlu": "MMLU",
    "aggregate": "Aggregate",
    "eligible": "Eligible",
}


def print_scores(results: dict[str, Any]) -> None:
    """Print the official scores, then every score with its interval, a dash for what says nothing, and the notes."""
    table = Table("Score", "Value")
    for key, name in SCORES.items():
        table.add_row(name, _shown(results[key]))
    Console(width=100).print(table)
    table = Table("Score", "Value", "95 % interval", "Better", "Range", "Rows")
    for name, entry in results["scores"].items():
        interval = "-" if entry["low"] is None else f"{_shown(entry['low'])} to {_shown(entry['high'])}"
        table.add_row(name, _shown(entry["value"]), interval, entry["better"], entry["range"], str(entry["n"]))
    Console(width=110).print(table)
    for note in results["notes"]:
        print(f"note: {note}")
    for attack, verdict in results["verdicts"].items():
        print(f"{attack} attack: {verdict}")
    if not results["counts"]["nonmember"]:
        print("note: no membership attack and no Aggregate without --membership.nonmember")
    if results["choice"] is None:
        print("note: no multiple choice and no Aggregate without --choice.folder")
    elif results["choice"]["shortened"]:
        print(f"note: {results['choice']['shortened']} questions were asked with fewer shots, as all did not fit")


def print_harness(found: dict[str, dict[str, float]]) -> None:
    """Print what lm-eval gave, a line a task."""
    for task, figures in found.items():
        print(f"lm-eval {task}: " + ", ".join(f"{name} {value:.4g}" for name, value in figures.items()))


def _shown(value: float | bool | None) -> str:
    if value is None:
        return "-"
    return ("no", "yes")[value] if isinstance(value, bool) else f"{value:.3f}"


def print_metrics(metrics: Sequence[Metric]) -> None:
    """Print every metric: name, family, formula, which values are better, range, source, what it needs."""
    table = Table("Metric", "--metrics", "Formula", "Better", "Range", "Source", "Needs")
    for one in metrics:
        table.add_row(one.name, one.family, one.formula, one.better, one.range, one.source, ", ".join(one.needs))
    Console(width=240).print(table)
