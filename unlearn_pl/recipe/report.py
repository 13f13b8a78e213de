"""What a finished recipe shows: summary, table and pictures."""

import csv
from pathlib import Path
from typing import Any

from unlearn_pl.analysis.figures import plot_losses, plot_scores
from unlearn_pl.evaluation.results import read_results
from unlearn_pl.files import write_json, write_text
from unlearn_pl.metrics.headline import HEADLINE
from unlearn_pl.provenance import provenance
from unlearn_pl.recipe.recipe import Recipe
from unlearn_pl.report.markdown import plain
from unlearn_pl.report.scores import scores_table, terms_table

SCORES = (*HEADLINE, "terms")


def report(recipe: Recipe, records: list[dict[str, Any]]) -> None:
    """Write `summary.json`, `table.md` and the pictures, and print the table."""
    results = {name: read_scores(recipe.folder / "evaluation" / name) for name in recipe.models}
    seconds = sum(record["seconds"] for record in records)
    peak = max(record["peak_memory_gib"] for record in records)
    write_json(
        recipe.folder / "summary.json",
        {"models": results, "seconds": seconds, "seed": recipe.options.seed, "peak_memory_gib": peak, **provenance()},
    )
    table = plain(scores_table(results))
    write_text(recipe.folder / "table.md", f"{table}\n\n{plain(terms_table(results))}\n")
    plot_scores(results, recipe.folder / "scores.png")
    runs = {name: read_losses(recipe.folder / name / "metrics.csv") for name in recipe.options.all_fits}
    if all(runs.values()):
        plot_losses(runs, recipe.folder / "losses.png")
    print(f"\n{table}\n\nseed {recipe.options.seed}, {seconds:.0f} s, at most {peak:.1f} GiB")
    print(f"everything is in {recipe.folder}")


def read_scores(folder: Path) -> dict[str, Any]:
    """The scores of one model from its `results.json`."""
    results = read_results(folder).to_json()
    return {key: results[key] for key in SCORES}


def read_losses(path: Path) -> dict[str, list[tuple[int, float]]]:
    """The unweighted loss terms (`train/<slot>`) of a run from its `metrics.csv`; none if it has no such file."""
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    if not rows:
        return {}
    slots = [key for key in rows[0] if key.startswith("train/") and not key.endswith(("_weighted", "/loss"))]
    return {slot: [(int(row["step"]), float(row[slot])) for row in rows if row[slot]] for slot in slots}
