"""What a benchmark gives, checked: a class of one's own may give anything, and what it gives becomes a result."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from unlearn_pl.data.records import Record
from unlearn_pl.errors import InputError
from unlearn_pl.metrics.number import number
from unlearn_pl.tasks.base import Benchmark, RowSet, Term


def checked_sets(benchmark: Benchmark) -> list[RowSet]:
    """The sets of a benchmark. Raises InputError unless one is to be forgotten, and names and rows are told apart."""
    name = type(benchmark).__name__
    found = benchmark.sets()
    if not isinstance(found, Sequence) or not all(isinstance(one, RowSet) for one in found):
        raise InputError(f"{name}.sets must be a list of RowSet, got {found!r:.60}")
    sets = list(found)
    for one in sets:
        refuse_other_rows(one, name)
    if not any(one.role == "forget" and one.rows for one in sets):
        raise InputError(f"{name} has no row to be forgotten: one set needs the role forget")
    for what, names in (("sets", [one.name for one in sets]), ("rows", [row.id for one in sets for row in one.rows])):
        most, count = Counter(names).most_common(1)[0]
        if count > 1:
            raise InputError(f"{name} has {count} {what} called {most!r:.80}; they must differ")
    return sets


def checked_settings(benchmark: Benchmark) -> dict[str, Any]:
    """What a benchmark was made with. Raises InputError unless the results can hold it."""
    name = f"{type(benchmark).__name__}.settings"
    found = benchmark.settings()
    if not isinstance(found, dict):
        raise InputError(f"{name} must be a dict, got {found!r:.60}")
    for key, value in found.items():
        try:
            json.dumps({key: value}, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InputError(f"{name} must be what JSON holds, got {value!r:.60} for {key!r:.60}") from error
    return found


def refuse_other_rows(one: RowSet, benchmark: str) -> None:
    """Raise InputError unless the rows of a set are a list or tuple of records."""
    kinds = {type(row).__name__ for row in one.rows if not isinstance(row, Record)} if sized(one.rows) else set()
    if kinds or not sized(one.rows):
        got = ", ".join(sorted(kinds)) or type(one.rows).__name__
        raise InputError(f"rows of the set {one.name!r} of {benchmark} must be a list of Record, got {got}")


def sized(rows: object) -> bool:
    """Whether rows can be gone over more than once."""
    return isinstance(rows, Sequence) and not isinstance(rows, str)


def row_score(benchmark: Benchmark, row: Record, text: str) -> float | None:
    """The score of a text. Raises InputError unless it is in [0, 1] or None."""
    found = number(benchmark.score(row, text), f"{type(benchmark).__name__}.score of the row {row.id!r:.80}")
    if found is not None and not 0 <= found <= 1:
        raise InputError(f"{type(benchmark).__name__}.score of the row {row.id!r:.80} must be in [0, 1], got {found}")
    return None if found is None else float(found)


def task_value(benchmark: Benchmark, terms: Sequence[Term]) -> float | None:
    """The task aggregate. Raises InputError unless it is a finite number or None."""
    return number(benchmark.task_aggregate(terms), f"{type(benchmark).__name__}.task_aggregate")


def aggregate_value(
    benchmark: Benchmark, task: float | None, membership: float | None, choice: float | None
) -> float | None:
    """The aggregate of three scores. Raises InputError unless it is a finite number or None."""
    return number(benchmark.aggregate(task, membership, choice), f"{type(benchmark).__name__}.aggregate")
