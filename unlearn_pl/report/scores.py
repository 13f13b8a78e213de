"""Tables of what was measured: the five scores of models, the terms behind them, a search's models, merge methods."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from unlearn_pl.metrics.headline import HEADLINE
from unlearn_pl.report.table import BESIDE, Cell, Column, Direction, Row, Table, cell_of, number

TASK, AUC, SCORE, CHOICE, AGGREGATE = HEADLINE
Scores = Mapping[str, Any]
"""The content of `results.json`, or the five scores and the terms of it."""
DIRECTIONS: dict[str, Direction] = {
    TASK: "higher", AUC: "one half", SCORE: "higher", CHOICE: "higher", AGGREGATE: "higher"
}  # fmt: skip
COLUMNS = {"Task Aggregate": TASK, "MIA AUC": AUC, "MIA score": SCORE, "MMLU": CHOICE, "Aggregate": AGGREGATE}
"""Head of a column -> key of the score."""
ENTRIES = {
    TASK: "task_aggregate",
    AUC: "membership/loss/auc",
    SCORE: "membership/loss/score",
    CHOICE: "choice/micro",
    AGGREGATE: "aggregate",
}
"""Key of a headline score -> its entry in ``scores``, with interval and number of rows."""
NEEDS = {
    AUC: "no documents of non-members were given, or the model is broken",
    CHOICE: "no multiple-choice questions were given",
}
"""Why a score is not there."""
REFERENCE = "base"
"""The model that nothing was forgotten by: it stands there for comparison."""


def headline_cell(results: Scores, key: str) -> Cell:
    """One of the five scores, with its interval where `results.json` has it."""
    value = number(results.get(key))
    if value is None:
        return Cell(why=NEEDS.get(key) or f"not measured, or a part of it: {NEEDS[CHOICE]}, or {NEEDS[AUC]}")
    entry = results.get("scores", {}).get(ENTRIES[key])
    return cell_of(entry) if entry and entry["value"] == value else Cell(value=value)


def scores_table(models: Mapping[str, Scores], group: str = "") -> Table:
    """One line a model with its five scores, each in [0, 1]; a dash where the data for a score was not given."""
    rows = [
        Row(
            name=name,
            cells=[headline_cell(results, key) for key in COLUMNS.values()],
            group=group,
            judged=name != REFERENCE,
        )
        for name, results in models.items()
    ]
    return Table(
        key="scores",
        title="Scores",
        caption="The five scores of each model; the best of those that forgot is in bold.",
        notes=[BESIDE],
        stub="model",
        columns=[Column(name=name, better=DIRECTIONS[key]) for name, key in COLUMNS.items()],
        rows=rows,
    )


def term_cell(results: Scores, term: str) -> Cell:
    """A term of the task aggregate: 1 - the score where rows are to be forgotten, so higher is better for all."""
    value = number(results.get("terms", {}).get(term))
    if value is None:
        return Cell(why="no row of it could be scored")
    entry = results.get("scores", {}).get(term, {})
    low, high, n = (entry.get(key) for key in ("low", "high", "n"))
    if entry.get("better") == "lower" and low is not None and high is not None:
        low, high = 1 - high, 1 - low
    return Cell(value=value, low=low, high=high, n=n)


def terms_table(models: Mapping[str, Scores]) -> Table:
    """One line a term of the Task Aggregate, as the benchmark names them, one column a model."""
    terms = dict.fromkeys(term for results in models.values() for term in results.get("terms", {}))
    return Table(
        key="terms",
        title="Terms of the Task Aggregate",
        caption="Higher is better in every line: what had to be forgotten counts as one minus its score.",
        notes=[BESIDE],
        stub="term",
        columns=[Column(name=name, judged=name != REFERENCE) for name in models],
        across=True,
        rows=[
            Row(name=term, cells=[term_cell(one, term) for one in models.values()], better="higher") for term in terms
        ],
    )


def every_score_table(models: Mapping[str, Scores]) -> Table:
    """One line for everything that was measured, with the direction that is better, one column a model."""
    names = dict.fromkeys(name for results in models.values() for name in results.get("scores", {}))
    found = [{name: one.get("scores", {}).get(name) for name in names} for one in models.values()]
    why = "not measured for this model"
    return Table(
        key="every_score",
        title="Every score",
        caption="Everything that was measured.",
        notes=[BESIDE],
        stub="score",
        columns=[Column(name=name, judged=name != REFERENCE) for name in models],
        across=True,
        rows=[
            Row(
                name=name,
                cells=[cell_of(one[name], why) for one in found],
                better=next((direction(one[name]) for one in found if one[name]), None),
            )
            for name in names
        ],
    )


def direction(entry: Mapping[str, Any]) -> Direction | None:
    """Which values of a score are better, as `results.json` says it."""
    said = entry.get("better")
    return said if said in ("higher", "lower", "one half") else None


COMPARED = {
    "Task Aggregate": TASK,
    "MMLU": CHOICE,
    "AUC": AUC,
    "Aggregate": AGGREGATE,
    "AUC, held out": "holdout_auc",
    "Aggregate, held out": "aggregate_holdout",
}


def compared_table(models: Mapping[str, Scores], name: str = "search", documents: Any = None) -> Table:
    """One line a model of a balance search: scores with the AUC of all documents and of the held-out half.

    ``documents`` of `balance.json` says how many there are.
    """
    held: dict[str, Direction] = {"holdout_auc": "one half", "aggregate_holdout": "higher"}
    counts = counted(documents)
    rows = [
        Row(name=one, cells=[replace(measured(scores, key), n=counts.get(key)) for key in COMPARED.values()])
        for one, scores in models.items()
    ]
    return Table(
        key=f"balance_{name}",
        title=f"Balance search, {name}",
        caption="The two adapters alone, plain TIES, and the chosen merge; the held-out half of the documents took no "
        "part in the choice. n: documents behind an AUC.",
        stub="model",
        columns=[Column(name=head, better=(DIRECTIONS | held)[key]) for head, key in COMPARED.items()],
        rows=rows,
    )


def counted(documents: Any) -> dict[str, int]:
    """AUC -> documents behind it, so far as `balance.json` says."""
    if not isinstance(documents, Mapping):
        return {}
    sides = {AUC: [documents.get("member"), documents.get("nonmember")], "holdout_auc": documents.get("holdout")}
    return {
        key: sum(both)
        for key, both in sides.items()
        if isinstance(both, list) and len(both) == 2 and all(isinstance(one, int) for one in both)
    }


MERGED = {"TA": TASK, "AUC": AUC, "MMLU": CHOICE, "Aggregate": AGGREGATE}


def merges_table(parents: Mapping[str, Scores], methods: Sequence[Scores], name: str = "merges") -> Table:
    """One line a merge method: norm of the delta, sign conflict, trimmed mass, the scores at the scale of its
    definition and those at the common norm."""
    scores = [Column(name=head, better=DIRECTIONS[key]) for head, key in MERGED.items()]
    facts = [Column(name=head, measured=head != "density") for head in ("density", "conflict", "trimmed")]
    nothing = [Cell() for _ in range(len(MERGED) + 1)]
    rows = [Row(name=one, cells=[Cell(), Cell(), Cell(), *sized(scores_), *nothing], judged=False)
            for one, scores_ in parents.items()]  # fmt: skip
    rows += [
        Row(
            name=one["method"],
            cells=[
                *(Cell(value=number(one.get(key))) for key in ("density", "sign_conflict", "trimmed_mass")),
                *sized(one["defined"]),
                *sized(one["normalised"]),
            ],
        )
        for one in methods
    ]
    return Table(
        key=f"merge_methods_{name}",
        title=f"Merge methods, {name}",
        caption="Each method at the scale that its definition gives the delta, and (columns with =) at the norm of the "
        "mean of both deltas; conflict: share of the entries whose signs differ, trimmed: share of the mass that the "
        "method drops.",
        stub="method",
        columns=[
            *facts,
            Column(name="norm", digits=2),
            *scores,
            Column(name="norm =", digits=2),
            *(Column(name=f"{one.name} =", better=one.better) for one in scores),
        ],
        rows=rows,
    )


def sized(scores: Scores) -> list[Cell]:
    """Norm and scores of one merge."""
    return [measured(scores, "norm"), *(measured(scores, key) for key in MERGED.values())]


def measured(scores: Scores, key: str) -> Cell:
    """A score, or why it is not there."""
    value = number(scores.get(key))
    return Cell(why="not measured, or not finite") if value is None else Cell(value=value)
