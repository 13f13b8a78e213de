"""The results of an evaluation, and the table of all metrics, on the terminal."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from unlearn_pl.evaluation.results import Results
from unlearn_pl.metrics.headline import HEADLINE
from unlearn_pl.metrics.metric import Metric

# What the short table shows beside the headline, of the sets that had to be forgotten: end of a score's name -> its
# name in the table.
LEAKS = {
    "/verbatim_probability": "probability of the true answers",
    "/entity_leakage": "share of their names and numbers in the texts",
    "/pii/all/whole": "share of personal data given away whole",
    "/leak_at_16": "worst of 16 answers",
}


def print_results(results: Results, output: str, verbose: bool = False) -> None:
    """Print the headline, what leaks and where the rest is; all of it if ``verbose``."""
    table = Table("Score", "Value", "Best")
    for name, value in results.headline.items():
        table.add_row(HEADLINE[name], _shown(value), "one half" if name == "membership_auc" else "1")
    if results.eligible is not None:
        table.add_row("Eligible", _shown(results.eligible), "yes")
    for name, shown in leaks(results):
        table.add_row(name, shown, "0")
    console = Console(width=110)
    console.print(table)
    if verbose:
        print_scores(results, console)
    print_verdicts(results, verbose)
    print_notes(results, verbose)
    for task, figures in (results.harness or {}).items():
        print(f"lm-eval {task}: " + ", ".join(f"{name} {value:.4g}" for name, value in figures.items()))
    print(f"wrote {Path(output) / 'results.json'}, samples.jsonl and documents.jsonl")


def headline(results: Results) -> str:
    """The five scores in one line, a dash for what was not measured."""
    return ", ".join(f"{HEADLINE[name]} {_shown(value)}" for name, value in results.headline.items())


def leaks(results: Results) -> list[tuple[str, str]]:
    """Names and values of the scores that show what the texts give away of what had to be forgotten."""
    return [
        (f"{name.removesuffix(end)}: {meaning}", _shown(entry["value"]))
        for end, meaning in LEAKS.items()
        for name, entry in results.scores.items()
        if name.endswith(end) and entry["better"] == "lower"
    ]


def print_scores(results: Results, console: Console) -> None:
    """Every score with its interval, a dash for what says nothing."""
    table = Table("Score", "Value", "95 % interval", "Better", "Range", "Rows")
    for name, entry in results.scores.items():
        interval = "-" if entry["low"] is None else f"{_shown(entry['low'])} to {_shown(entry['high'])}"
        table.add_row(name, _shown(entry["value"]), interval, entry["better"], entry["range"], str(entry["n"]))
    console.print(table)


def print_verdicts(results: Results, verbose: bool) -> None:
    """What each attack shows; in short those that show a leak, together."""
    if verbose:
        for attack, verdict in results.verdicts.items():
            print(f"{attack} attack: {verdict}")
        return
    leaking = [attack for attack, verdict in results.verdicts.items() if verdict.startswith("leaks")]
    if leaking:
        print(f"membership leaks by {len(leaking)} of {len(results.verdicts)} attacks: {', '.join(leaking)}")


def print_notes(results: Results, verbose: bool) -> None:
    """What was not measured, and why; in short what a broken model lacks, and how many notes there are."""
    told = [note for note in results.notes if verbose or note.startswith("broken model")]
    for note in told:
        print(f"note: {note}")
    if not results.counts["nonmember"]:
        print("note: no membership attack and no Aggregate without --membership.nonmember")
    if results.choice is None:
        print("note: no multiple choice and no Aggregate without --choice.folder")
    elif results.choice["shortened"]:
        print(f"note: {results.choice['shortened']} questions were asked with fewer shots, as all did not fit")
    if rest := len(results.notes) - len(told):
        print(f"{rest} more note{'s' if rest > 1 else ''}: with --verbose, or in results.json")


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
