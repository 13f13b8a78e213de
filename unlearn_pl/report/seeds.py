"""Seeds: runs of one recipe that differ by their seed alone, and the mean and spread of their tables."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath
from statistics import fmean, stdev
from typing import Any

from unlearn_pl.report.run import Fit, Run
from unlearn_pl.report.table import BESIDE, Cell, Row, Table

SEEDS = ("seed", "seed_everything")


def by_recipe(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs in groups whose settings are the same but for the seed, in order of their first; others stand alone."""
    groups: dict[str, list[Run]] = {}
    for place, run in enumerate(runs):
        found = recipe_of(run)
        mates = groups.get(found, []) if found else []
        alone = not found or seed_of(run) in [seed_of(mate) for mate in mates]
        groups.setdefault(f"alone {place}" if alone else found, []).append(run)
    return list(groups.values())


def recipe_of(run: Run) -> str:
    """What was run, whatever the seed and the folder; empty where no settings tell."""
    if not run.fits or any(fit.config is None for fit in run.fits.values()) or seed_of(run) is None:
        return ""
    found = {
        "fits": {name: settings_of(fit) for name, fit in run.fits.items()},
        "merges": {name: merge_of(merge.facts) for name, merge in run.merges.items()},
        "others": [sorted(run.searches), sorted(run.comparisons)],
    }
    return json.dumps(found, sort_keys=True, default=str)


def settings_of(fit: Fit) -> Any:
    """The configuration of a fit without its seeds, and with paths below its run's folder told from there. That it went
    on from a checkpoint of its own, after an interruption, is no setting."""
    config = dict(fit.config or {})
    trainer = config.get("trainer")
    root = trainer.get("default_root_dir") if isinstance(trainer, Mapping) else None
    if isinstance(root, str) and PurePath(str(config.get("ckpt_path"))).is_relative_to(root):
        config["ckpt_path"] = None
    return without_seed(config, str(PurePath(root).parent) if isinstance(root, str) else "")


def without_seed(value: Any, folder: str) -> Any:
    """The same settings without seeds and without the folder of the run."""
    if isinstance(value, Mapping):
        return {str(key): without_seed(one, folder) for key, one in value.items() if key not in SEEDS}
    if isinstance(value, list):
        return [without_seed(one, folder) for one in value]
    if isinstance(value, str) and folder not in ("", ".") and (value == folder or value.startswith(f"{folder}/")):
        return f"RUN{value[len(folder) :]}"
    return value


def merge_of(facts: Mapping[str, Any] | None) -> Any:
    """How adapters were merged, without which they were."""
    merge = (facts or {}).get("merge") or {}
    return {key: value for key, value in merge.items() if key not in ("adapters", *SEEDS)}


def seed_of(run: Run) -> int | None:
    """The seed of a recipe, or of its first fit."""
    if run.summary is not None and run.summary.get("seed") is not None:
        return int(run.summary["seed"])
    seeds = [fit.config.get("seed_everything") for fit in run.fits.values() if fit.config]
    return next((seed for seed in seeds if isinstance(seed, int)), None)


def family(runs: Sequence[Run]) -> str:
    """One name for runs that differ by their seed: that of the folder that holds them, if one does."""
    folders = {run.folder.resolve().parent for run in runs}
    return folders.pop().name if len(folders) == 1 else f"{runs[0].name} and others"


def averaged(tables: Sequence[Table]) -> Table:
    """Tables of the same columns, one a seed, as one: means with standard deviations, n being the number of seeds. One
    table stays as it is; a row that a table lacks counts as not measured there."""
    if len(tables) == 1:
        return tables[0]
    first = tables[0]
    assert all(one.columns == first.columns for one in tables), first.key
    rows = [counted(table.rows) for table in tables]
    keys = dict.fromkeys(key for found in rows for key in found)
    merged = []
    for key in keys:
        there = [found[key] for found in rows if key in found]
        cells = [
            mean_cell([row.cells[place] for row in there], len(tables)) if column.measured else there[0].cells[place]
            for place, column in enumerate(first.columns)
        ]
        merged.append(replace(there[0], cells=cells))
    note = f"± is the standard deviation over {len(tables)} seeds (of a sample, divisor n - 1); n: seeds."
    return replace(first, rows=merged, notes=[*(one for one in first.notes if one != BESIDE), note])


def counted(rows: Sequence[Row]) -> dict[tuple[str, str, int], Row]:
    """The rows by group, name, and which of several of one name."""
    found: dict[tuple[str, str, int], Row] = {}
    for row in rows:
        count = sum(key[:2] == (row.group, row.name) for key in found)
        found[row.group, row.name, count] = row
    return found


def mean_cell(cells: Sequence[Cell], seeds: int) -> Cell:
    """Mean and standard deviation of what was measured; words that all have in common stay."""
    values = [cell.value for cell in cells if cell.value is not None]
    if not values:
        texts, whys = {cell.text for cell in cells}, dict.fromkeys(cell.why for cell in cells)
        return Cell(text=texts.pop() if len(texts) == 1 else "", why="; ".join(filter(None, whys)))
    missing = seeds - len(values)
    why = f"{missing} of {seeds} seeds have no number" if missing else ""
    return Cell(value=fmean(values), spread=stdev(values) if len(values) > 1 else None, n=len(values), why=why)
