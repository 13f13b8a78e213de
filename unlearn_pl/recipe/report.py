"""What a finished recipe shows: summary, table and report."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from unlearn_pl.commands.report import report as write_report
from unlearn_pl.evaluation.results import read_results
from unlearn_pl.files import write_json, write_text
from unlearn_pl.metrics.headline import HEADLINE
from unlearn_pl.provenance import provenance
from unlearn_pl.recipe.recipe import Recipe
from unlearn_pl.report.markdown import plain
from unlearn_pl.report.scores import scores_table, terms_table

SCORES = (*HEADLINE, "terms")


def summarise(recipe: Recipe, records: Sequence[dict[str, Any]]) -> None:
    """Write `summary.json` and `table.md`, and print the table."""
    results = {name: read_scores(recipe.folder / "evaluation" / name) for name in recipe.models}
    cost = cost_of(records)
    facts = cost | {"seed": recipe.options.seed}
    made_from = provenance(config=asdict(recipe.options))
    write_json(recipe.folder / "summary.json", {"models": results, **facts, **made_from})
    table = plain(scores_table(results))
    write_text(recipe.folder / "table.md", f"{table}\n\n{plain(terms_table(results))}\n")
    seconds, peak = cost.values()
    told = "time and memory unknown, since a stage was interrupted"
    if seconds is not None:
        told = f"{seconds:.0f} s, at most {peak:.1f} GiB"
    print(f"\n{table}\n\nseed {recipe.options.seed}, {told}")


def cost_of(records: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """``seconds`` of all stages together, and the highest ``peak_memory_gib``; None where one of them is not known."""
    seconds, peaks = ([record[key] for record in records] for key in ("seconds", "peak_memory_gib"))
    return {
        "seconds": None if None in seconds else sum(seconds),
        "peak_memory_gib": None if None in peaks else max(peaks),
    }


def read_scores(folder: Path) -> dict[str, Any]:
    """The scores of one model from its `results.json`."""
    results = read_results(folder).to_json()
    return {key: results[key] for key in SCORES}


def report(folder: Path, runs: Sequence[Path]) -> None:
    """Write `report.html`, `figures/`, `tables/` and `MODEL_CARD.md` on finished ``runs`` into ``folder``."""
    write_report(
        [str(run) for run in runs],
        str(folder / "report.html"),
        figures=str(folder / "figures"),
        tables=str(folder / "tables"),
        card=str(folder / "MODEL_CARD.md"),
        overwrite=True,
    )
