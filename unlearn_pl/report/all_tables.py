"""All tables of runs, and which could not be made."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from unlearn_pl.report.paper import group_of, table_1, table_2, table_3
from unlearn_pl.report.run import Run
from unlearn_pl.report.scores import compared_table, every_score_table, merges_table, terms_table
from unlearn_pl.report.seeds import averaged, by_recipe
from unlearn_pl.report.study import study_of, study_table
from unlearn_pl.report.table import Table


def tables_of(runs: Sequence[Run]) -> list[Table]:
    """Those of the paper, then each run's own; what differs by the seed alone is one table of means."""
    groups = by_recipe(runs)
    scored = [found for mates in groups if (found := [run for run in mates if run.models])]
    paper = [table_1(scored) if scored else None, table_2(groups), table_3(groups)]
    tables = [table for table in paper if table is not None]
    study = study_of(runs)
    tables += [study_table(study)] if study else []
    for mates in groups:
        for same in alike([(run, table) for run in mates for table in tables_of_run(run)]):
            table = averaged([table for _, table in same])
            tables.append(belonging(table, [run for run, _ in same]) if len(groups) > 1 else table)
    return tables


def tables_of_run(run: Run) -> list[Table]:
    """The tables of one run but for the paper's."""
    results = {name: model.results for name, model in run.models.items()}
    tables = [terms_table(results), every_score_table(results)] if results else []
    tables += [
        compared_table(one.found["compared"], name, one.found.get("documents")) for name, one in run.searches.items()
    ]
    return tables + [merges_table(c.found["parents"], c.found["methods"], name) for name, c in run.comparisons.items()]


def alike(tables: Sequence[tuple[Run, Table]]) -> list[list[tuple[Run, Table]]]:
    """The tables of one kind and of the same columns together, with the run that each is of."""
    found: dict[tuple[str, tuple[str, ...]], list[tuple[Run, Table]]] = {}
    for run, table in tables:
        found.setdefault((table.key, tuple(column.name for column in table.columns)), []).append((run, table))
    return list(found.values())


def belonging(table: Table, runs: Sequence[Run]) -> Table:
    """A table that says which run it is of, among those of others."""
    return replace(table, key=f"{table.key}_{group_of(runs)}", title=f"{table.title}: {group_of(runs)}")


ABSENT: dict[str, tuple[Callable[[Run], object], str]] = {
    "Table 1, terms, every score": (lambda run: run.models, "no evaluated model"),
    "Table 2, merge methods": (lambda run: run.comparisons, "no comparison of merge methods"),
    "Table 3, hyper-parameters": (
        lambda run: [fit for fit in run.fits.values() if fit.config],
        "no fit with a resolved configuration",
    ),
    "balance search": (lambda run: run.searches, "no balance search"),
}
"""A table -> what of a run it needs, and what to say where no run has it."""


def not_made(runs: Sequence[Run]) -> list[str]:
    """The tables that no run gives, and why, a line each."""
    return [f"{table}: {why} in what was given" for table, (needs, why) in ABSENT.items() if not any(map(needs, runs))]
