"""The tables of the ZJUKLAB paper (arXiv 2503.21088) with its numbers beside those of runs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from unlearn_pl.report.run import Fit, Run, dig
from unlearn_pl.report.scores import AGGREGATE, AUC, CHOICE, DIRECTIONS, SCORE, TASK, measured, scores_table
from unlearn_pl.report.seeds import averaged, family
from unlearn_pl.report.table import Cell, Column, Row, Table, shared

PAPER = "ZJUKLAB (arXiv 2503.21088)"
PUBLISHED: dict[str, dict[str, float | None]] = {
    "model 1 (over-forgets)": {AGGREGATE: 0.481, TASK: 0.968, SCORE: 0.045, AUC: 0.022, CHOICE: 0.431},
    "model 2 (under-forgets)": {AGGREGATE: 0.504, TASK: 0.659, SCORE: 0.364, AUC: 0.818, CHOICE: 0.491},
    "merged (TIES)": {AGGREGATE: 0.806, TASK: 0.939, SCORE: 0.997, AUC: 0.501, CHOICE: 0.480},
    "merged, official test": {AGGREGATE: 0.487, TASK: 0.944, SCORE: 0.048, AUC: None, CHOICE: 0.471},
}
"""Table 1: OLMo-7B-0724-Instruct that memorised LUME; the last line is on the data of the competition."""
OFFICIAL = "merged, official test"
HEADS = {"Aggregate": AGGREGATE, "Task Aggregate": TASK, "MIA score": SCORE, "MIA AUC": AUC, "MMLU": CHOICE}
"""The columns in the paper's order."""
METHODS = {"linear": 0.244, "dare_linear": 0.440, "dare_ties": 0.561, "magnitude_prune": 0.558, "ties": 0.806}
"""Table 2: our name of a merge method -> its published Aggregate."""
SETTINGS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "batch size": ("1", "2", ("data.batch_size",)),
    "gradient accumulation": ("4", "4", ("data.micro_batches", "trainer.accumulate_grad_batches")),
    "epochs": ("5", "5", ("trainer.max_epochs",)),
    "learning rate": ("1e-4", "1e-4", ("model.learning_rate",)),
    "weight decay": ("0.01", "0.01", ("model.weight_decay",)),
    "maximum length": ("256", "256", ("data.max_length",)),
    "seed": ("42", "42", ("seed_everything",)),
    "LoRA rank": ("32", "32", ("model.lora.rank",)),
    "LoRA alpha": ("32", "32", ("model.lora.alpha",)),
    "LoRA dropout": ("0.05", "0.05", ("model.lora.dropout",)),
    "ga weight": ("0.4", "0.3", ("model.objectives.ga.init_args.weight",)),
    "gd weight": ("0.4", "0.3", ("model.objectives.gd.init_args.weight",)),
    "gk weight": ("0.2", "0.4", ("model.objectives.gk.init_args.weight",)),
}
"""Table 3: a setting -> its values for model 1 and model 2, and the keys of a resolved configuration whose product it
is."""


def table_1(groups: Sequence[Sequence[Run]]) -> Table:
    """The paper's models and those of runs; runs of one group differ by their seed, and stand there as their mean."""
    own = [scored(runs) for runs in groups]
    paper = [
        Row(name=name, cells=[Cell(value=scores[key], why="" if scores[key] is not None else "not published")
                              for key in HEADS.values()], group=PAPER, judged=name != OFFICIAL)
        for name, scores in PUBLISHED.items()
    ]  # fmt: skip
    return Table(
        key="table_1",
        title="Table 1",
        caption="Table 1 of the paper, as published for a model of 7B parameters, and what was run; with 95 % "
        "intervals, or mean and standard deviation over seeds. The best of each group is in bold. n: rows, documents "
        "or questions behind a number.",
        stub="model",
        columns=[Column(name=name, better=DIRECTIONS[key]) for name, key in HEADS.items()],
        rows=[*paper, *(row for table in own for row in table.rows)],
        notes=[*dict.fromkeys(note for table in own for note in table.notes), *chosen(groups)],
    )


def chosen(groups: Sequence[Sequence[Run]]) -> list[str]:
    """What is to be known of models that were chosen by documents that they are scored on."""
    names = dict.fromkeys(name for runs in groups for run in runs for name in run.searches if name in run.models)
    if not names:
        return []
    half = "half of the documents behind their MIA scores took part in their choice"
    return [f"Chosen by a balance search ({', '.join(names)}): {half}; the table of the search has those held out."]


def scored(runs: Sequence[Run]) -> Table:
    """The scores of the models of a run, or their mean over the seeds of several, in the paper's order of columns."""
    tables = [scores_table({name: model.results for name, model in run.models.items()}, group_of(runs)) for run in runs]
    found = averaged(tables)
    order = [[column.name for column in found.columns].index(name) for name in HEADS]
    rows = [replace(row, cells=[row.cells[place] for place in order]) for row in found.rows]
    return replace(found, columns=[found.columns[place] for place in order], rows=counted_below(rows, len(runs)))


def counted_below(rows: Sequence[Row], seeds: int) -> list[Row]:
    """The rows without the number behind each of their cells where one line below says it for all, or the head does."""
    counts = [shared(cells) for cells in zip(*(row.cells for row in rows), strict=True)]
    there = [any(row.cells[place].value is not None for row in rows) for place in range(len(counts))]
    if seeds > 1:
        return [replace(row, cells=[replace(c, n=None if c.n == seeds else c.n) for c in row.cells]) for row in rows]
    if any(known and count is None for known, count in zip(there, counts, strict=True)):
        return list(rows)
    cells = [Cell(text="" if count is None else str(count)) for count in counts]
    below = Row(name="n", cells=cells, group=rows[0].group, judged=False)
    return [*(replace(row, cells=[replace(cell, n=None) for cell in row.cells]) for row in rows), below]


def group_of(runs: Sequence[Run]) -> str:
    """How rows of a run, or of several that differ by their seed, are headed."""
    if len(runs) == 1:
        return runs[0].name
    return f"{family(runs)}, mean of {len(runs)} seeds"


COLUMNS_2 = {
    "Aggregate": AGGREGATE,
    "Task Aggregate": TASK,
    "MIA AUC": AUC,
    "MMLU": CHOICE,
}


def table_2(groups: Sequence[Sequence[Run]]) -> Table | None:
    """Merge methods: the paper's Aggregate beside those of comparisons; None without a comparison."""
    own = [averaged(tables) for runs in groups for tables in comparisons(runs)]
    if not own:
        return None
    return Table(
        key="table_2",
        title="Table 2",
        caption="Merge methods with equal weights: Table 2 of the paper, as published, and what was run. A sum of two "
        "adapters is larger than their mean, so a method is scored at the scale of its definition and once more with "
        "the norm of the mean of both.",
        stub="method",
        columns=own[0].columns,
        rows=[row for table in own for row in [*table.rows, *others(table)]],
        notes=list(dict.fromkeys(note for table in own for note in table.notes)),
    )


def comparisons(runs: Sequence[Run]) -> list[list[Table]]:
    """For each comparison of more than one method its tables, one a run."""
    names = dict.fromkeys(name for run in runs for name in run.comparisons)
    found = [[compared(run, name, group_of(runs)) for run in runs if name in run.comparisons] for name in names]
    return [tables for tables in found if any(len({row.name for row in table.rows}) > 1 for table in tables)]


def compared(run: Run, name: str, group: str) -> Table:
    """The methods of a comparison in the columns of Table 2."""
    scores = [Column(name=head, better=DIRECTIONS[key]) for head, key in COLUMNS_2.items()]
    rows = [
        Row(
            name=method["method"],
            cells=[
                published(method["method"]),
                *(measured(method["defined"], key) for key in COLUMNS_2.values()),
                measured(method["defined"], "norm"),
                measured(method["normalised"], AGGREGATE),
                Cell(text="none") if method["density"] is None else measured(method, "density"),
            ],
            group=f"{group}, {name}",
        )
        for method in run.comparisons[name].found["methods"]
    ]
    beside = [Column(name="norm", digits=2), Column(name="Aggregate at the common norm", better="higher")]
    columns = [
        Column(name="Aggregate, paper", measured=False),
        *scores,
        *beside,
        Column(name="density", digits=2, measured=False),
    ]
    return Table(key="table_2", title="", caption="", stub="method", columns=columns, rows=rows)


def published(method: str) -> Cell:
    """What the paper has of a merge method."""
    return Cell(value=METHODS[method]) if method in METHODS else Cell(why="not in the paper's table")


def others(table: Table) -> list[Row]:
    """Lines for the paper's methods that a comparison does not have."""
    nothing = [Cell(why="not among the methods that were compared") for _ in range(len(table.columns) - 1)]
    absent = [name for name in METHODS if name not in {row.name for row in table.rows}]
    return [Row(name=name, cells=[published(name), *nothing], group=table.rows[0].group) for name in absent]


def own_settings(run: Run) -> Table | None:
    """The hyper-parameters of the fits of a run, without the paper's."""
    beside = table_3([[run]])
    if beside is None:
        return None
    rows = [replace(row, cells=row.cells[2:]) for row in beside.rows]
    caption = "From the resolved configuration of every fit."
    return replace(beside, title="Hyper-parameters", caption=caption, columns=beside.columns[2:], rows=rows, notes=())


def table_3(groups: Sequence[Sequence[Run]]) -> Table | None:
    """Hyper-parameters: the paper's beside those of every fit's resolved configuration; None without one."""
    fits = {f"{group_of(runs)}: {name}" if len(groups) > 1 else name: [run.fits[name] for run in runs]
            for runs in groups for name, fit in runs[0].fits.items() if fit.config is not None}  # fmt: skip
    if not fits:
        return None
    rows = [
        Row(name=name, cells=[Cell(text=first), Cell(text=second), *(setting(one, keys) for one in fits.values())])
        for name, (first, second, keys) in SETTINGS.items()
    ]
    unknown = [Cell(why="not in the paper's table") for _ in range(2)]
    rows += [
        Row(name=f"{slot} term", cells=[*unknown, *(term(one[0], slot) for one in fits.values())])
        for slot in dict.fromkeys(slot for one in fits.values() for slot in terms_of(one[0]))
    ]
    return Table(
        key="table_3",
        title="Table 3",
        caption="Hyper-parameters: Table 3 of the paper, and every fit that was run, from its resolved configuration.",
        stub="setting",
        columns=[Column(name=f"paper, model {number}") for number in (1, 2)] + [Column(name=name) for name in fits],
        rows=rows,
        notes=[
            "The paper's order (NPO, GDR, KLR) gives gd to the retain loss and gk to the retain KL; the released code "
            "gives gd to KL and gk to the loss. What each slot of a fit computes is in the last lines.",
            "Gradient accumulation counts the micro-batches that are computed together and those that are not.",
        ],
    )


def setting(fits: Sequence[Fit], keys: Sequence[str]) -> Cell:
    """The value of a configuration under a key, or the product of the values under several; of fits that differ by
    their seed, each that there is."""
    found = [product(fit.config, keys) for fit in fits]
    texts = list(dict.fromkeys(written(value) for value in found if value is not None))
    return Cell(text=", ".join(texts)) if texts else Cell(why="not in the configuration")


def product(config: Any, keys: Sequence[str]) -> Any:
    """The value under a key, or the product of the numbers under several; None without one."""
    values = [value for key in keys if (value := dig(config, key)) is not None]
    if len(values) == 1 or not all(isinstance(value, int | float) for value in values):
        return values[0]
    return math.prod(values) if values else None


def term(fit: Fit, slot: str) -> Cell:
    """The class in a slot of the loss, with its arguments but for the weight."""
    found = terms_of(fit).get(slot)
    if found is None:
        return Cell(why="the fit has no such term")
    given = found.get("init_args")
    arguments = {name: value for name, value in given.items() if name != "weight"} if isinstance(given, Mapping) else {}
    name = str(found.get("class_path")).rsplit(".", 1)[-1]
    return Cell(text=", ".join([name, *(f"{key} {written(value)}" for key, value in arguments.items())]))


def terms_of(fit: Fit) -> dict[str, Mapping[str, Any]]:
    """The slots of the loss of a fit."""
    found = dig(fit.config, "model.objectives")
    return {slot: one for slot, one in found.items() if isinstance(one, Mapping)} if isinstance(found, Mapping) else {}


def written(value: Any) -> str:
    """A setting as a table has it: ``1e-4`` for 0.0001."""
    if isinstance(value, float):
        mantissa, _, exponent = (f"{value:g}" if value == 0 or abs(value) >= 1e-3 else f"{value:e}").partition("e")
        return f"{float(mantissa):g}e{int(exponent)}" if exponent else mantissa
    return str(value)
