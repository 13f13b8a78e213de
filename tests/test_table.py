"""Tables of the report: golden files, what is bold, and what a hostile name may not do."""

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unlearn_pl.report.latex import escape as latex_escape
from unlearn_pl.report.latex import latex
from unlearn_pl.report.markdown import escape, markdown, plain
from unlearn_pl.report.scores import compared_table, every_score_table, merges_table, scores_table, terms_table
from unlearn_pl.report.table import Cell, Column, Row, Table
from unlearn_pl.report.table_files import comma_separated, write_tables

TABLE = Table(
    key="golden",
    title="Scores",
    caption="Of 5 % & more.",
    stub="model",
    columns=[
        Column(name="TA", better="higher"),
        Column(name="AUC", better="one half", digits=2),
        Column(name="leak", better="lower"),
        Column(name="norm"),
    ],
    rows=[
        Row(name="base", cells=[Cell(value=1.0, n=9), Cell(value=0.5, n=4), Cell(value=0.0), Cell()], judged=False),
        Row(
            name="a_b",
            cells=[
                Cell(value=0.91239, low=0.8, high=0.95, n=9),
                Cell(value=0.497, n=4),
                Cell(value=0.25, spread=0.012),
                Cell(value=2.0),
            ],
        ),
        Row(
            name="<c>",
            cells=[Cell(value=0.91241, n=9), Cell(value=0.503, n=5), Cell(why="no documents"), Cell(text="none")],
        ),
    ],
    notes=["one note"],
)

MARKDOWN = r"""**Scores.** Of 5 % \& more.

| model |              TA ↑ (n 9) |      AUC → 0.5 |        leak ↓ |  norm |
|-------|------------------------:|---------------:|--------------:|------:|
| base  |                   1.000 |     0.50 (n 4) |         0.000 |     - |
| a_b   | **0.912** (0.800 to 0.950) | **0.50** (n 4) | 0.250 ± 0.012 | 2.000 |
| \<c\> |               **0.912** | **0.50** (n 5) |             - |  none |

- one note
- not there: no documents (\<c\>: leak)
"""

LATEX = r"""\begin{table}[t]
\centering
\caption{\textbf{Scores.} Of 5 \% \& more. one note Not there: no documents (\textless{}c\textgreater{}: leak).}
\label{tab:golden}
\begin{tabular}{lrrrr}
\toprule
model & TA $\uparrow$ (n 9) & AUC $\rightarrow$ 0.5 & leak $\downarrow$ & norm \\
\midrule
base & 1.000 & 0.50 {\scriptsize (n 4)} & 0.000 & -- \\
a\_b & \textbf{0.912} {\scriptsize (0.800 to 0.950)} & \textbf{0.50} {\scriptsize (n 4)} & 0.250 $\pm$ 0.012 & 2.000 \\
\textless{}c\textgreater{} & \textbf{0.912} & \textbf{0.50} {\scriptsize (n 5)} & -- & none \\
\bottomrule
\end{tabular}
\end{table}
"""


def squeezed(text: str) -> list[str]:
    """Lines without the blanks and dashes that align them."""
    return [" ".join(line.split()).replace("-", "") if line.startswith("|--") else " ".join(line.split())
            for line in text.splitlines()]  # fmt: skip


def test_golden_markdown() -> None:
    """What looks alike (0.91239 and 0.91241, 0.497 and 0.503 at two decimals) is bold alike; the base is not judged;
    of one number alone nothing is the best."""
    assert squeezed(markdown(TABLE)) == squeezed(MARKDOWN)
    assert len({len(line) for line in markdown(TABLE).splitlines() if line.startswith("|")}) == 1


def test_golden_latex() -> None:
    assert latex(TABLE) == LATEX


def test_wide_and_long_tables_fit_the_page_in_latex() -> None:
    """Scaled to the text's width, or over several pages; braces stay in pairs."""
    wide = Table(key="w", title="t", caption="c", stub="s", columns=[Column(name="x" * 30) for _ in range(4)],
                 rows=[Row(name="r", cells=[Cell(value=1.0) for _ in range(4)])])  # fmt: skip
    long = Table(
        key="l", title="t", caption="c", stub="s", columns=[], rows=[Row(name=str(i), cells=[]) for i in range(46)]
    )
    assert "\\resizebox{\\textwidth}{!}{%\n\\begin{tabular}{lrrrr}" in latex(wide)
    assert "\\end{tabular}}\n\\end{table}" in latex(wide)
    assert (
        "\\begin{longtable}{l}\n\\caption{\\textbf{t.} c}\n\\label{tab:l} \\\\\n\\toprule\ns \\\\\n\\midrule\n\\endhead"
        in latex(long)
    )
    both = replace(
        long, columns=wide.columns, rows=[Row(name="r", cells=[Cell(value=1.0, low=0.2, high=0.3)] * 4)] * 46
    )
    assert "to 0.300" not in latex(both)  # would run over the margin; the CSV has it
    assert "to 0.300" in latex(replace(both, rows=both.rows[:45]))
    for text in (latex(wide), latex(long), latex(both), latex(TABLE)):
        plain_text = text.replace("\\{", "").replace("\\}", "")
        assert plain_text.count("{") == plain_text.count("}")


@pytest.mark.parametrize("value", ["0.5", True, float("nan"), float("inf"), [1], {}])
def test_what_is_no_finite_number_is_a_dash(value: object) -> None:
    """A file that was written by something else, or by a broken model."""
    entry = {"value": value, "low": value, "high": value, "n": 3, "better": "lower"}
    models = {"m": {"aggregate": value, "terms": {"t": value}, "scores": {"t": entry}}}
    for table in (scores_table(models), terms_table(models), every_score_table(models), compared_table(models)):
        assert not [cell for row in table.rows for cell in row.cells if cell.value is not None or not cell.why]
        markdown(table)


def test_documents_behind_the_auc_of_a_search() -> None:
    scores = {"over": {"membership_auc": 0.4, "holdout_auc": 0.3}}
    found = compared_table(scores, "b", {"member": 24, "nonmember": 72, "holdout": [12, 36]}).heads()
    assert (found[2], found[4]) == ("AUC → 0.5 (n 96)", "AUC, held out → 0.5 (n 48)")
    assert compared_table(scores, "b", {"member": "x", "holdout": 3}).heads()[2] == "AUC → 0.5"


def test_csv_has_every_digit_and_nothing_where_nothing_was_measured() -> None:
    rows = list(csv.DictReader(io.StringIO(comma_separated(TABLE))))
    assert rows[1] == {
        "group": "", "model": "a_b", "TA": "0.91239", "TA low": "0.8", "TA high": "0.95", "TA n": "9", "AUC": "0.497",
        "AUC n": "4", "leak": "0.25", "leak spread": "0.012", "norm": "2.0"
    }  # fmt: skip
    assert (rows[2]["leak"], rows[2]["TA low"], rows[2]["norm"], rows[0]["norm"]) == ("", "", "none", "")


def test_a_formula_in_a_name_is_text() -> None:
    table = Table(key="k", title="", caption="", stub="s", columns=[], rows=[Row(name='=HYPERLINK("x")', cells=[])])
    assert list(csv.reader(io.StringIO(comma_separated(table))))[1] == ["", '\'=HYPERLINK("x")']


def test_the_best_is_that_of_its_group() -> None:
    rows = [
        Row(name=str(v), cells=[Cell(value=v)], group=group) for v, group in ((9, "a"), (8, "a"), (1, "b"), (2, "b"))
    ]
    table = Table(key="k", title="", caption="", stub="", columns=[Column(name="x", better="higher")], rows=rows)
    assert [table.is_best(place, 0) for place in range(4)] == [True, False, False, True]
    assert r"\midrule" + "\n" + r"\multicolumn{2}{l}{\textit{b}} \\" in latex(table)


def test_terms_are_compared_along_their_line() -> None:
    """A forgotten term is 1 - score, so the ends of its interval change places; n stands once for a line."""
    entry = {"value": 0.25, "low": 0.125, "high": 0.5, "n": 8, "better": "lower"}
    models = {
        "base": {"terms": {"forget/a": 0.0}, "scores": {"forget/a": {"value": 1.0, "n": 8}}},
        "over": {"terms": {"forget/a": 0.75}, "scores": {"forget/a": entry}},
        "under": {"terms": {"forget/a": None}, "scores": {}},
        "merged": {"terms": {"forget/a": 0.5}, "scores": {"forget/a": entry | {"value": 0.5}}},
    }
    line = markdown(terms_table(models)).splitlines()[4]
    assert line.split("|")[1:6] == [
        " forget/a ↑ (n 8) ", " 0.000 ", " **0.750** (0.500 to 0.875) ", "     - ", " 0.500 (0.500 to 0.875) "
    ]  # fmt: skip


@given(st.text())
def test_a_name_is_one_cell_of_markdown(name: str) -> None:
    table = Table(
        key="k", title="t", caption="", stub="s", columns=[Column(name=name)], rows=[Row(name=name, cells=[Cell()])]
    )
    lines = markdown(table).split("\n\n")[1].strip("\n").split("\n")
    assert len(lines) == 3
    assert all(line.replace("\\|", "").count("|") == 3 for line in lines)


@given(st.text(alphabet="\\`*_[]<>|&~$#!a: /\n"))
def test_escaped_markdown_reads_as_it_was(name: str) -> None:
    """Every mark has a backslash of its own, and without those the text is what it was, as one line."""
    read, letters = "", iter(escape(name))
    for letter in letters:
        assert letter not in "`*[]<>|&~$#!"
        read += next(letters) if letter == "\\" else letter
    assert read == " ".join(name.split())


@pytest.mark.parametrize("name", ["a_b", "50 % & $x$ #1 {y} ^ ~ \\input{x}", "<b>|`\"'"])
def test_escaped_latex_commands_nothing(name: str) -> None:
    """Outside of the commands that stand for a character no character is active."""
    rest = latex_escape(name)
    for command in ("textbackslash{}", "textasciicircum{}", "textasciitilde{}", "textless{}", "textgreater{}",
                    "textbar{}", "textquotedbl{}", "textasciigrave{}", "%", "&", "$", "#", "{", "}", "_"):  # fmt: skip
        rest = rest.replace("\\" + command, "")
    assert not set(rest) & set("\\{}$&#%_^~")


def test_plain_tables_are_as_before() -> None:
    """Written down by hand: aligned, three decimals, the norm with two, a dash for what is not there."""
    scores = {"task_aggregate": 0.9, "membership_auc": 0.4, "membership_score": 0.8, "mmlu": None, "aggregate": None}
    assert plain(scores_table({"base": scores})).splitlines() == [
        "| model | Task Aggregate | MIA AUC | MIA score | MMLU | Aggregate |",
        "|-------|---------------:|--------:|----------:|-----:|----------:|",
        "| base  |          0.900 |   0.400 |     0.800 |    - |         - |",
    ]
    defined, levelled = scores | {"norm": 2.0}, scores | {"norm": 1.0}
    method = {"method": "cat", "density": None, "sign_conflict": 0.5, "trimmed_mass": None}
    merged = plain(merges_table({"over": defined}, [method | {"defined": defined, "normalised": levelled}]))
    assert [" ".join(line.split()) for line in merged.splitlines()[2:]] == [
        "| over | - | - | - | 2.00 | 0.900 | 0.400 | - | - | - | - | - | - | - |",
        "| cat | - | 0.500 | - | 2.00 | 0.900 | 0.400 | - | - | 1.00 | 0.900 | 0.400 | - | - |",
    ]
    assert "0.481" in plain(compared_table({"over": scores | {"holdout_auc": 0.481, "aggregate_holdout": 0.5}}))


def test_files(tmp_path: Path) -> None:
    """Three of each table, the same bytes each time."""
    for folder in ("a", "b"):
        assert [path.name for path in write_tables([TABLE], tmp_path / folder)] == [
            "golden.md",
            "golden.tex",
            "golden.csv",
        ]
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
