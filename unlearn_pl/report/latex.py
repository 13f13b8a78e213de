"""LaTeX: a table in the style of booktabs, which stands in a paper as it is."""

from unlearn_pl.report.table import DASH, Shown, Table

MARKS = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "`": r"\textasciigrave{}",
    "↑": r"$\uparrow$", "↓": r"$\downarrow$", "→": r"$\rightarrow$", "±": r"$\pm$", "–": "--", "≤": r"$\leq$",
    "β": r"$\beta$", "α": r"$\alpha$", "×": r"$\times$",
}  # fmt: skip
"""Character -> what sets it as itself; the packages booktabs and, with ``"``, fontenc (T1) are needed."""


def escape(text: str) -> str:
    """The text as one line that sets itself and commands nothing."""
    return "".join(MARKS.get(letter, letter) for letter in " ".join(text.split()))


WIDEST = 90
"""Characters of a line above which a table is scaled to the width of the text."""
LONGEST = 45
"""Rows above which it is set over several pages."""


def latex(table: Table) -> str:
    """The table with the best in bold. It needs the package booktabs; a wide one graphicx, a long one longtable."""
    wide, long = width(table) > WIDEST, len(table.rows) > LONGEST
    # over several pages nothing can be scaled
    lines = body(table, beside=not (wide and long))
    head = " & ".join(map(escape, (table.stub, *table.heads()))) + r" \\"
    columns = f"{{l{'r' * len(table.columns)}}}"
    if long:
        begin = [r"{\scriptsize", rf"\begin{{longtable}}{columns}", f"{caption(table)} \\\\", r"\toprule"]
        repeat = [head, r"\midrule", r"\endhead"]
        return "\n".join([*begin, *repeat, *lines, r"\bottomrule", r"\end{longtable}", "}", ""])
    return "\n".join(
        [
            r"\begin{table}[t]",
            r"\centering",
            caption(table),
            *([r"\resizebox{\textwidth}{!}{%"] if wide else []),
            rf"\begin{{tabular}}{columns}",
            r"\toprule",
            head,
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}" + ("}" if wide else ""),
            r"\end{table}",
            "",
        ]
    )


def caption(table: Table) -> str:
    """Title, caption and what stands beside the table, with the label to refer to it."""
    notes = " ".join(map(escape, (*table.notes, *(f"Not there: {one}." for one in table.reasons()))))
    text = f"{escape(table.caption)} {notes}".strip()
    return rf"\caption{{\textbf{{{escape(table.title)}.}} {text}}}" + f"\n\\label{{tab:{label(table.key)}}}"


def body(table: Table, beside: bool) -> list[str]:
    """The rows, those of a group below its name; intervals only if ``beside``."""
    lines: list[str] = []
    for number, group in enumerate(table.groups):
        lines += [r"\midrule"] if number else []
        if len(table.groups) > 1:
            lines += [rf"\multicolumn{{{len(table.columns) + 1}}}{{l}}{{\textit{{{escape(group)}}}}} \\"]
        lines += [line(table, place, beside) for place in table.rows_of(group)]
    return lines


def line(table: Table, row: int, beside: bool) -> str:
    """A row; the interval in small beside its number."""
    cells = [escape(table.name_of(row))]
    for column in range(len(table.columns)):
        shown = table.shown(row, column)
        text = "--" if shown.text == DASH else escape(shown.text)
        small = (shown.aside, shown.n) if beside else ()
        parts = [rf"{{\scriptsize ({escape(part)})}}" for part in small if part]
        cells.append(" ".join([rf"\textbf{{{text}}}" if shown.best else text, *parts]))
    return " & ".join(cells) + r" \\"


def label(key: str) -> str:
    """The key with only what a label may hold."""
    return "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in key)


def width(table: Table) -> int:
    """Characters of the widest line, each column as wide as its widest cell; what stands beside a number is smaller."""
    columns = [max((cells(table.shown(row, c)) for row in range(len(table.rows))), default=0)
               for c in range(len(table.columns))]  # fmt: skip
    names = max(map(len, (table.stub, *(table.name_of(row) for row in range(len(table.rows))))))
    return names + sum(max(one, len(head)) for one, head in zip(columns, table.heads(), strict=True))


def cells(shown: Shown) -> int:
    """Characters of a cell."""
    return len(shown.text) + len(shown.aside + shown.n) * 7 // 10
