"""What a finished recipe shows: summary, table and pictures."""

import csv
from pathlib import Path
from typing import Any

from unlearn_pl.evaluation.results import read_results
from unlearn_pl.files import write_json, write_text
from unlearn_pl.metrics.headline import HEADLINE
from unlearn_pl.provenance import provenance
from unlearn_pl.recipe.recipe import Recipe
from unlearn_pl.report.draw import draw
from unlearn_pl.report.figures.headlines import headlines
from unlearn_pl.report.figures.losses import losses
from unlearn_pl.report.figures.scales import identity
from unlearn_pl.report.markdown import plain
from unlearn_pl.report.scores import scores_table, terms_table

SCORES = (*HEADLINE, "terms")


def report(recipe: Recipe, records: list[dict[str, Any]]) -> None:
    """Write `summary.json`, `table.md` and the pictures, and print the table."""
    whole = {name: read_results(recipe.folder / "evaluation" / name).to_json() for name in recipe.models}
    results = {name: {key: one[key] for key in SCORES} for name, one in whole.items()}
    made, seed = provenance(), recipe.options.seed
    seconds = sum(record["seconds"] for record in records)
    peak = max(record["peak_memory_gib"] for record in records)
    write_json(
        recipe.folder / "summary.json",
        {"models": results, "seconds": seconds, "seed": seed, "peak_memory_gib": peak, **made},
    )
    table = plain(scores_table(results))
    write_text(recipe.folder / "table.md", f"{table}\n\n{plain(terms_table(results))}\n")
    run = identity(recipe.folder.name, made | {"seed": seed})
    draw(headlines(whole, run), recipe.folder / "scores.png")
    runs = {name: read_losses(recipe.folder / name / "metrics.csv") for name in recipe.options.all_fits}
    if all(runs.values()):
        draw(losses(runs, identity=run), recipe.folder / "losses.png")
    print(f"\n{table}\n\nseed {recipe.options.seed}, {seconds:.0f} s, at most {peak:.1f} GiB")
    print(f"everything is in {recipe.folder}")


def read_losses(path: Path) -> dict[str, list[tuple[int, float]]]:
    """The unweighted loss terms (`train/<slot>`) and their weighted sum (`train/loss`) of a run from its `metrics.csv`;
    none if it has no such file."""
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    if not rows:
        return {}
    slots = [key for key in rows[0] if key.startswith("train/") and not key.endswith("_weighted")]
    return {slot: [(int(row["step"]), float(row[slot])) for row in rows if row[slot]] for slot in slots}
