"""The files of a table: Markdown, LaTeX and CSV."""

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

from unlearn_pl.files import write_text
from unlearn_pl.report.latex import latex
from unlearn_pl.report.markdown import markdown
from unlearn_pl.report.table import Cell, Table

UNFIT = re.compile(r"[^\w.-]+")
"""What a file's name does not have: keys hold names of runs."""
PARTS = ("low", "high", "spread", "n")
"""What a CSV has of a number beside itself, in columns of their own, where any row has it."""


def write_tables(tables: Sequence[Table], folder: Path) -> list[Path]:
    """Write each table as KEY.md, KEY.tex and KEY.csv, with a number where two have one key."""
    written: list[Path] = []
    for table in tables:
        stem = UNFIT.sub("-", table.key)
        taken = sum(re.fullmatch(rf"{re.escape(stem)}(_\d+)?\.md", path.name) is not None for path in written)
        name = f"{stem}_{taken + 1}" if taken else stem
        for ending, render in (("md", markdown), ("tex", latex), ("csv", comma_separated)):
            written.append(folder / f"{name}.{ending}")
            write_text(written[-1], render(table))
    return written


def comma_separated(table: Table) -> str:
    """The table for a program: every digit, columns for the ends of intervals, nothing where nothing was measured."""
    parts = [[part for part in PARTS if any(getattr(row.cells[i], part) is not None for row in table.rows)]
             for i in range(len(table.columns))]  # fmt: skip
    heads = [name for column, own in zip(table.columns, parts, strict=True)
             for name in (column.name, *(f"{column.name} {part}" for part in own))]  # fmt: skip
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["group", table.stub, *heads])
    for row in table.rows:
        cells = [one for cell, own in zip(row.cells, parts, strict=True) for one in values(cell, own)]
        writer.writerow([inert(row.group), inert(row.name), *cells])
    return stream.getvalue()


def values(cell: Cell, parts: Sequence[str]) -> list[float | str | None]:
    """A number and its parts."""
    return [inert(cell.text) if cell.value is None else cell.value, *(getattr(cell, part) for part in parts)]


def inert(text: str) -> str:
    """Text that a spreadsheet does not take for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
