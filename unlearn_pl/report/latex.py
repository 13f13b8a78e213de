"""LaTeX: a table as booktabs have it, which stands in a paper as it is."""

from unlearn_pl.report.table import DASH, Table

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


def latex(table: Table) -> str:
    """The table as a floating ``table``, the best in bold; needs ``\\usepackage{booktabs}``."""
    width = len(table.columns) + 1
    body: list[str] = []
    for number, group in enumerate(table.groups):
        body += [r"\midrule"] if number else []
        body += [rf"\multicolumn{{{width}}}{{l}}{{\textit{{{escape(group)}}}}} \\"] if len(table.groups) > 1 else []
        body += [line(table, place) for place in table.rows_of(group)]
    notes = " ".join(map(escape, (*table.notes, *(f"Not there: {one}." for one in table.reasons()))))
    return "\n".join(
        [
            r"\begin{table}[t]",
            r"\centering",
            rf"\caption{{\textbf{{{escape(table.title)}.}} {escape(table.caption)}{' ' if notes else ''}{notes}}}",
            rf"\label{{tab:{label(table.key)}}}",
            rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
            r"\toprule",
            " & ".join(map(escape, (table.stub, *table.heads()))) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def line(table: Table, row: int) -> str:
    """A row; the interval in small beside its number."""
    cells = [escape(table.name_of(row))]
    for column in range(len(table.columns)):
        shown = table.shown(row, column)
        text = "--" if shown.text == DASH else escape(shown.text)
        beside = [rf"{{\scriptsize ({escape(part)})}}" for part in (shown.aside, shown.n) if part]
        cells.append(" ".join([rf"\textbf{{{text}}}" if shown.best else text, *beside]))
    return " & ".join(cells) + r" \\"


def label(key: str) -> str:
    """The key with only what a label may hold."""
    return "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in key)
