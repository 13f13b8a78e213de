"""Table: rows of numbers with what stands behind each; `markdown.py`, `latex.py` and `table_files.py` write it out."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Direction = Literal["higher", "lower", "one half"]
ARROWS: dict[Direction | None, str] = {"higher": "↑", "lower": "↓", "one half": "→ 0.5", None: ""}
WORDS: dict[Direction | None, str] = {
    "higher": "higher is better",
    "lower": "lower is better",
    "one half": "best at one half",
    None: "",
}
BESIDE = "In brackets: the 95 % interval, and the number of rows, documents or questions behind a number (n)."
"""Note of a table that has intervals."""
DASH = "-"
"""Stands where there is no number."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A number with what stands behind it, or words; with neither, ``why``."""

    value: float | None = None
    low: float | None = None
    """Lower end of the 95 % interval."""
    high: float | None = None
    spread: float | None = None
    """Standard deviation over the seeds that ``value`` is the mean of."""
    n: int | None = None
    """Rows, documents or seeds that it was computed from."""
    text: str = ""
    """In place of a number."""
    why: str = ""
    """Why there is no number."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """What stands in a column."""

    name: str
    better: Direction | None = None
    """Which value is best; None where none is better than another."""
    digits: int = 3
    """Decimals: three, as the paper's tables have."""
    judged: bool = True
    """False: it stands there for comparison, and is never the best of a line (``Table.across``)."""
    measured: bool = True
    """False: it was given, and is the same for every seed."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A model, a term, a method."""

    name: str
    cells: Sequence[Cell]
    """One a column."""
    group: str = ""
    """Rows of a group stand together, and the best is the best among them."""
    judged: bool = True
    """False: it stands there for comparison, and is never the best of its group."""
    better: Direction | None = None
    """Which of its own values is best, where the columns are models (``Table.across``)."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A cell as it is read: ``0.916``, and beside it ``0.800 to 0.957``."""

    text: str
    aside: str = ""
    """The interval, empty without one."""
    n: str = ""
    """The number of rows behind it, where those of its column differ."""
    best: bool = False
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows and columns with a caption."""

    key: str
    """Name of its files: ``table_1``."""
    title: str
    caption: str
    """What was measured, on what, and which table of the paper it is, if any."""
    stub: str
    """Head of the column with the rows' names."""
    columns: Sequence[Column]
    rows: Sequence[Row]
    notes: Sequence[str] = ()
    """What a reader must know beside it."""

    across: bool = False
    """Whether the columns are models: values are then compared along a line, else down a column."""

    def __post_init__(self) -> None:
        assert all(len(row.cells) == len(self.columns) for row in self.rows), self.key

    @property
    def groups(self) -> list[str]:
        """The groups of the rows, in order."""
        return list(dict.fromkeys(row.group for row in self.rows))

    def rows_of(self, group: str) -> list[int]:
        """Places of the rows of a group."""
        return [place for place, row in enumerate(self.rows) if row.group == group]

    def heads(self) -> list[str]:
        """Head of each column, with an arrow to what is better and the number of rows behind all of it."""
        counts = [None if self.across else shared(row.cells[i] for row in self.rows) for i in range(len(self.columns))]
        return [titled(one.name, ARROWS[one.better], n) for one, n in zip(self.columns, counts, strict=True)]

    def name_of(self, row: int) -> str:
        """Name of a line, with the number of rows behind all of it where its cells are compared."""
        one = self.rows[row]
        return titled(one.name, ARROWS[one.better], shared(one.cells) if self.across else None)

    def shown(self, row: int, column: int) -> Shown:
        """A cell as it is read."""
        cell, digits = self.rows[row].cells[column], self.columns[column].digits
        if cell.value is None:
            return Shown(text=cell.text or DASH, why=cell.why)
        spread = "" if cell.spread is None else f" ± {cell.spread:.{digits}f}"
        ends = "" if cell.low is None or cell.high is None else f"{cell.low:.{digits}f} to {cell.high:.{digits}f}"
        peers = self.rows[row].cells if self.across else [one.cells[column] for one in self.rows]
        own = "" if cell.n is None or shared(peers) is not None else f"n {cell.n}"
        best = self.is_best(row, column)
        return Shown(text=f"{cell.value:.{digits}f}{spread}", aside=ends, n=own, best=best, why=cell.why)

    def is_best(self, row: int, column: int) -> bool:
        """Whether no number that it is compared with is better: those of its column and group, or of its line."""
        better = self.rows[row].better if self.across else self.columns[column].better
        digits = self.columns[column].digits
        known = self._compared(row, column)
        if better is None or len(known) < 2 or (row, column) not in known:
            return False
        # by what is read, so that of two numbers that look alike not one alone is in bold
        costs = {place: cost(better, round(value, digits)) for place, value in known.items()}
        return costs[row, column] == min(costs.values())

    def _compared(self, row: int, column: int) -> dict[tuple[int, int], float]:
        places = (
            [(row, c) for c, one in enumerate(self.columns) if one.judged]
            if self.across
            else [(r, column) for r in self.rows_of(self.rows[row].group) if self.rows[r].judged]
        )
        values = {(r, c): self.rows[r].cells[c].value for r, c in places}
        return {place: value for place, value in values.items() if value is not None}

    def reasons(self) -> list[str]:
        """Why there is a dash and where, a line for each reason."""
        found: dict[str, dict[str, list[str]]] = {}
        for row in self.rows:
            for column, cell in zip(self.columns, row.cells, strict=True):
                if cell.why:
                    found.setdefault(cell.why, {}).setdefault(row.name, []).append(column.name)
        return [f"{why} ({places(where)})" for why, where in found.items()]


def places(where: Mapping[str, Sequence[str]]) -> str:
    """Row -> columns, in few words: rows with the same columns stand together."""
    mates: dict[tuple[str, ...], list[str]] = {}
    for row, columns in where.items():
        mates.setdefault(tuple(dict.fromkeys(columns)), []).append(row)
    return "; ".join(f"{', '.join(rows)}: {', '.join(columns)}" for columns, rows in mates.items())


def shared(cells: Iterable[Cell]) -> int | None:
    """The number of rows behind all of the numbers, None if they differ or that of one is not known."""
    found = {cell.n for cell in cells if cell.value is not None}
    return found.pop() if len(found) == 1 else None


def titled(name: str, arrow: str, n: int | None) -> str:
    """A name with what belongs to it."""
    return " ".join(part for part in (name, arrow, "" if n is None else f"(n {n})") if part)


def cost(better: Direction, value: float) -> float:
    """How far from the best; lower is better."""
    # rounded, as 0.497 and 0.503 are equally far from one half
    return {"higher": -value, "lower": value, "one half": round(abs(value - 0.5), 9)}[better]


def cell_of(entry: Mapping[str, Any] | None, why: str = "not measured") -> Cell:
    """The cell of an entry of the ``scores`` of `results.json`."""
    if entry is None or number(entry.get("value")) is None:
        return Cell(why=why)
    return Cell(value=entry["value"], low=entry.get("low"), high=entry.get("high"), n=entry.get("n"))


def number(value: Any) -> float | None:
    """What a file holds, if it is a finite number; else None, as where nothing was measured."""
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if known else None
