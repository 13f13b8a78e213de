"""Markdown: a table with aligned columns, and text that says nothing but itself."""

import re
from collections.abc import Sequence

from unlearn_pl.report.table import Table

SPECIAL = re.compile(r"[\\`*\[\]<>|&~$#!]|(?<![^\W_])_|_(?![^\W_])|(?<=:)/(?=/)")
"""What Markdown, or HTML in it, may read as a mark; an underscore only at the edge of a word."""


def escape(text: str) -> str:
    """The text as one line, of which nothing is a mark, a link or a tag."""
    return SPECIAL.sub(lambda found: "\\" + found[0], " ".join(text.split()))


def plain(table: Table) -> str:
    """The numbers alone, as the terminal and `table.md` have them: no arrows, nothing in bold."""
    columns = range(len(table.columns))
    lines = [[table.stub, *(column.name for column in table.columns)]]
    lines += [[row.name, *(table.shown(place, c).text for c in columns)] for place, row in enumerate(table.rows)]
    return aligned(lines)


def markdown(table: Table) -> str:
    """The whole table with its caption and what stands beside it; the best in bold."""
    several = len(table.groups) > 1
    lines = [[escape(table.stub), *map(escape, table.heads())]]
    for group in table.groups:
        if several:
            lines.append([f"*{escape(group)}*", *[""] * len(table.columns)])
        lines += [line(table, place) for place in table.rows_of(group)]
    beside = [f"- {escape(note)}" for note in (*table.notes, *(f"not there: {one}" for one in table.reasons()))]
    paragraphs = [f"**{escape(table.title)}.** {escape(table.caption)}", aligned(lines), "\n".join(beside)]
    return "\n\n".join(part for part in paragraphs if part) + "\n"


def line(table: Table, row: int) -> list[str]:
    """The cells of a row."""
    cells = [escape(table.name_of(row))]
    for column in range(len(table.columns)):
        shown = table.shown(row, column)
        text = f"**{escape(shown.text)}**" if shown.best else escape(shown.text)
        cells.append(" ".join([text, *(f"({part})" for part in (shown.aside, shown.n) if part)]))
    return cells


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Aligned Markdown of lines of cells, the first line being the head; the first column is text, the rest numbers."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [cells[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))]
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (w + 1) + ":" for w in widths[1:])]) + "|"
    return "\n".join([line(lines[0]), rule, *map(line, lines[1:])])
