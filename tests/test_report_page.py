"""The page of a report: what is in the file, and what a browser makes of it."""

import base64
import hashlib
import itertools
import json
import re
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, DRIVER, Browser, browser
from run_folders import ROWS, write_run

from unlearn_pl.report.content import Content, Maker, content_of
from unlearn_pl.report.figure import Axis, Figure, Line, Panel
from unlearn_pl.report.generations import generations_of
from unlearn_pl.report.page import page, plotly_script, within
from unlearn_pl.report.reading import read_run, read_runs
from unlearn_pl.report.scores import scores_table

HOSTILE = "<script>alert(1)</script><img src=https://evil.example/x onerror=alert(2)>"


def figure(name: str, points: int = 3) -> Figure:
    line = Line(name=name, x=list(range(points)), y=[0.5, None, *range(points - 2)], markers=True)
    axis = Axis(title="step")
    return Figure(
        key="curve",
        title=f"Curve of {name}",
        caption=f"How {name} went.",
        panels=[Panel(title=name, x=axis, y=Axis(title="score"), series=[line, replace(line, name="other")])],
    )


def unpacked(html: str, name: str) -> Any:
    """What the page's script would read: base64, then zlib."""
    (found,) = re.findall(rf'<script type="text/plain" id="data-{name}">([^<]*)</script>', html)
    return json.loads(zlib.decompress(base64.b64decode(found)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose data want to be more than text: a model's name, a generation, a term, a setting."""
    folder = write_run(tmp_path_factory.mktemp("runs") / "demo", {("over", 0): f" That night {HOSTILE} eleven otters"})
    config = folder / "over/config.yaml"
    config.write_text(config.read_text(encoding="utf-8").replace("logs/demo/base", f"'{HOSTILE}'"), encoding="utf-8")
    (folder / "evaluation/under").rename(folder / "evaluation/<img src=x onerror=alert(3)>")
    (folder / "balanced/balance.json").write_text("[", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def html(folder: Path) -> str:
    run = read_run(folder)
    content = content_of([run])
    tables = [scores_table({name: model.results for name, model in run.models.items()}), *content.tables]
    figures = [figure("loss"), figure(HOSTILE[:40]), *content.figures]
    return page(replace(content, tables=tables, figures=figures))


class Tags(HTMLParser):
    """Every tag with its attributes, and the text of scripts."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == ("script", {}) and self.cdata_elem == "script":
            self.scripts.append(data)


def test_nothing_of_a_run_becomes_markup(html: str) -> None:
    tags = Tags(html)
    assert "img" not in {tag for tag, _ in tags.tags}
    assert not [attributes for _, attributes in tags.tags if any(name.startswith("on") for name in attributes)]
    assert [attributes for tag, attributes in tags.tags if tag == "script"] == [
        *({"type": "text/plain", "id": f"data-{name}"} for name in ("figures", "generations", "plotly")),
        {},
    ]
    links = [value for _, attributes in tags.tags for name in ("src", "href") if (value := attributes.get(name))]
    assert all(link.startswith(("#", "data:,")) for link in links)
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 1  # the setting


def test_the_policy_lets_two_scripts_run(html: str) -> None:
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', html)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.replace("&#39;", "'").split(";"))
    own = "".join(Tags(html).scripts)
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (own, plotly_script())]
    assert rules["default-src"] == "'none'"
    assert rules["script-src"].split() == [f"'sha256-{one}'" for one in hashes]


def test_every_sample_is_there_beside_those_of_the_other_models(html: str) -> None:
    found = unpacked(html, "generations")
    assert {*found["models"]} == {"base", "over", "<img src=x onerror=alert(3)>", "merged", "balanced"}
    first = found["rows"][0]
    assert first[:6] == ["row0sc", *ROWS[0][:3], *ROWS[0][3:]]
    assert first[6][found["models"].index("over")] == f" That night {HOSTILE} eleven otters"
    assert first[6][found["models"].index("base")] == ROWS[0][4]
    assert first[7][found["models"].index("base")] == 1.0


def test_what_is_missing_is_told(html: str) -> None:
    assert re.search(r"balance search balanced</th><td><code>balanced/balance.json</code></td><td>not JSON:", html)
    assert re.search(r"scores of under</th><td><code>evaluation/under/results.json</code></td><td>no such file", html)


def test_the_same_runs_give_the_same_bytes(folder: Path) -> None:
    contents = [replace(content_of([read_run(folder)]), figures=[figure("loss")]) for _ in range(2)]
    assert page(contents[0]) == page(contents[1])


def test_rows_that_do_not_fit_are_counted(folder: Path) -> None:
    run = read_run(folder)
    model = run.models["base"]
    many = [
        {**model.samples[0], "id": f"row{number}", "generated": hashlib.sha512(str(number).encode()).hexdigest()}
        for number in range(5000)
    ]
    large = replace(run, models={"base": replace(model, samples=many)})
    most = 2_300_000
    html = page(content_of([large]), most)
    rows = unpacked(html, "generations")["rows"]
    assert 500 < len(rows) < 5000
    assert most * 0.9 < len(html.encode()) <= most
    assert f"{len(rows)} of 5000 rows are shown" in html
    numbers = [int(row[0].removeprefix("row")) for row in rows]
    assert max(b - a for a, b in itertools.pairwise(numbers)) <= 5000 / len(rows) + 1  # evenly
    assert within(generations_of([large]), 10)[0].rows == []


def test_a_figure_that_does_not_fit_is_told(folder: Path) -> None:
    noise = [int(hashlib.sha256(str(n).encode()).hexdigest()[:12], 16) / 1e14 for n in range(250_000)]
    large = figure("loss")
    (panel,) = large.panels
    line = Line(name="noise", x=list(range(len(noise))), y=noise)
    large = replace(large, key="noise", title="Noise", panels=[replace(panel, series=[line])])
    html = page(Content(runs=[read_run(folder)], figures=[large, figure("loss")]))
    assert len(html.encode()) < 6_000_000
    assert len(unpacked(html, "figures")) == 1
    assert re.search(r"figure Noise</th><td></td><td>its \d\.\d MB do not fit into the page", html)


def test_a_part_that_cannot_be_made_is_told() -> None:
    maker = Maker()
    assert maker.make("figures", lambda: [1 / 0], []) == []
    assert maker.left_out == [("figures", "could not be made: ZeroDivisionError: division by zero")]


def test_rows_of_several_runs_are_joined(tmp_path: Path) -> None:
    runs = read_runs([write_run(tmp_path / "a"), write_run(tmp_path / "b", {("base", 1): "other"})])
    found = generations_of(runs)
    assert len(found.rows) == len(ROWS)
    assert found.models[0] == "a: base"
    assert found.rows[1][6][found.models.index("b: base")] == "other"
    assert len(found.first) == 5


def test_ten_runs_take_less_than_three_seconds_and_no_model_library(tmp_path: Path) -> None:
    folders = [str(write_run(tmp_path / f"run{number}")) for number in range(10)]
    code = (
        "import sys; from unlearn_pl.__main__ import main; sys.argv[0] = 'unlearn-pl'; main(); "
        "print({'torch', 'lightning', 'transformers', 'datasets', 'matplotlib'} & {*sys.modules})"
    )
    command = [sys.executable, "-c", code, "report", *folders, "--output", str(tmp_path / "all.html")]
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == [f"wrote {tmp_path / 'all.html'}", "set()"]
    assert time.monotonic() - start < 3 * 5  # shared cores; alone it takes about one second


def test_figures_and_verdicts_of_several_runs_are_behind_their_names(tmp_path: Path) -> None:
    html = page(content_of(read_runs([write_run(tmp_path / "a"), write_run(tmp_path / "b")])))
    shown = re.findall(r"<summary>Figures of (\w+) \((\d+)\)</summary>", html)
    places = [int(place) for place in re.findall(r'class="plot" data-figure="(\d+)"', html)]
    assert [name for name, _ in shown] == ["a", "b"]
    assert places == list(range(len(unpacked(html, "figures"))))
    assert len(places) > int(shown[0][1]) + int(shown[1][1])  # what compares them is seen at once
    assert len(re.findall(r"<summary>balanced: Forgotten\? ", html)) == 2


needs_browser = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium and chromedriver are installed")


@pytest.fixture(scope="module")
def opened(html: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    folder = tmp_path_factory.mktemp("browser")
    (folder / "report.html").write_text(html, encoding="utf-8")
    with browser(folder / "profile") as found:
        found.open(folder / "report.html")
        yield found


COUNT = "return document.getElementById('count').textContent"
TEXTS = "return [...document.querySelectorAll('#rows tbody tr')].map(row => row.cells[0].textContent)"


@needs_browser
def test_in_a_browser_nothing_fails_and_nothing_leaves(opened: Browser) -> None:
    for number in range(2):
        opened.run(f"document.querySelectorAll('.plot')[{number}].scrollIntoView()")
        opened.until(f"return document.querySelectorAll('.plot')[{number}].querySelectorAll('.trace').length === 2")
    assert opened.console() == []
    assert [url for url in opened.requests() if not url.startswith(("file:", "data:", "blob:"))] == []
    assert opened.run("return document.getElementById('fault').hidden")
    assert opened.run("return document.querySelectorAll('img').length") == 0


# Texts of a figure that cover one another or reach out of it.
CROWDED = """
const box = arguments[0].getBoundingClientRect();
const found = [...arguments[0].querySelectorAll('[class$=tick] text, [class$=title], .legendtext, .annotation text')]
  .filter(text => text.textContent.trim()).map(text => [text.textContent, text.getBoundingClientRect()]);
const out = found.filter(([, r]) => r.left < box.left - 1 || r.right > box.right + 1 || r.bottom > box.bottom + 1);
const over = found.flatMap(([name, a], place) => found.slice(place + 1).filter(([other, b]) => other !== name
  && Math.min(a.right, b.right) - Math.max(a.left, b.left) > 2
  && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3)
  .map(([other]) => `${name} / ${other}`));
return [...out.map(([name]) => `${name} is cut`), ...over];
"""


@needs_browser
@pytest.mark.parametrize("width", [1440, 390])
def test_in_a_browser_every_figure_is_drawn_and_no_text_covers_another(opened: Browser, width: int) -> None:
    opened.resize(width)
    plots = opened.driver.find_elements("css selector", ".plot")
    assert len(plots) >= 12
    crowded = {}
    for plot in plots:
        opened.run("arguments[0].scrollIntoView({ behavior: 'instant' })", plot)
        opened.until("return arguments[0].querySelector('.infolayer')", plot)
        time.sleep(0.1)  # the layout of another width
        if found := opened.run(CROWDED, plot):
            crowded[plot.get_attribute("aria-label").split(":")[0]] = found
    assert crowded == {}
    assert opened.console() == []
    assert opened.run("return document.querySelectorAll('img').length") == 0
    opened.resize(1440)


@needs_browser
def test_in_a_browser_a_figure_gives_its_numbers(opened: Browser) -> None:
    opened.run("document.querySelector('.numbers summary').click()")
    opened.until("return document.querySelector('.numbers td')")
    cells = "return [...document.querySelectorAll('.numbers')[0].querySelectorAll('tbody tr')].map(r => r.textContent)"
    rows = opened.run(cells)
    assert rows[0].startswith("lossloss")
    assert "step: 0; score: 0.5" in rows[0]
    assert "step: 1; score: not measured" in rows[1]


@needs_browser
def test_in_a_browser_text_stays_text(opened: Browser) -> None:
    rows = opened.run("return document.querySelector('#rows tbody').textContent")
    assert HOSTILE in rows
    assert opened.run("return document.querySelectorAll('#rows script, #rows img').length") == 0
    assert "<img src=x onerror=alert(3)>" in opened.run("return document.getElementById('models').textContent")
    marks = "return [...document.querySelectorAll('#rows tbody tr')[0].cells].map(cell => "
    marks += "[...cell.querySelectorAll('mark')].map(mark => mark.textContent))"
    over = opened.run(
        "return [...document.querySelectorAll('#rows thead th')].findIndex(h => h.textContent === 'over')"
    )
    assert opened.run(marks)[over] == ["That night", "eleven otters"]
    assert opened.run(marks)[2] == []


@needs_browser
def test_in_a_browser_a_mask_is_one_word(folder: Path, tmp_path: Path) -> None:
    run = read_run(folder)
    (tmp_path / "masked.html").write_text(page(content_of([run], masked=True)), encoding="utf-8")
    with browser(tmp_path / "profile") as opened:
        opened.open(tmp_path / "masked.html")
        opened.set("search", "[number")
        cells = "return [...document.querySelectorAll('#rows tbody tr')[0].cells].map(cell => cell.innerText)"
        marks = (
            "return [...document.querySelectorAll('#rows tbody tr')[0].querySelectorAll('mark')].map(m => m.innerText)"
        )
        assert "[number 1]" in opened.run(cells)[2]
        assert opened.run(marks) == ["[number 1]"]  # of the base; the others wrote nothing


@needs_browser
def test_in_a_browser_filters_and_search_work(opened: Browser) -> None:
    assert opened.run(COUNT) == f"Rows 1 to {len(ROWS)} of {len(ROWS)}"
    opened.set("search", "SOCIAL security")
    assert opened.run(COUNT) == f"Rows 1 to 1 of 1, out of {len(ROWS)}"
    opened.set("search", "")
    opened.set("split", "retain")
    assert [text.split(",")[0] for text in opened.run(TEXTS)] == ["retain"] * 2
    opened.set("task", "Task2")
    assert len(opened.run(TEXTS)) == 1
    opened.set("search", "not in any text")
    assert opened.run(COUNT) == f"None of the {len(ROWS)} rows is like that."
    opened.run("document.querySelector('#filters button[type=reset]').click()")
    opened.until(f"return document.querySelectorAll('#rows tbody tr').length === {len(ROWS)}")
    # base answers with the expected text; over without its first word, so with nothing where that is one word
    opened.set("leak", "whole")
    assert len(opened.run(TEXTS)) == len(ROWS)
    opened.set("leak", "part")
    assert opened.run(TEXTS) == []
    opened.run("document.querySelector('#filters button[type=reset]').click()")
    opened.run("document.querySelector('#models input').click()")
    assert "base" not in opened.run("return document.querySelector('#rows thead').textContent")


@needs_browser
def test_in_a_browser_heads_sort(opened: Browser) -> None:
    column = "return [...document.querySelectorAll('#table-scores tbody tr')].map(r => r.cells[1].dataset.value)"
    before = opened.run(column)
    click = "document.querySelectorAll('#table-scores thead button')[1].click()"
    sorts = "return document.querySelectorAll('#table-scores thead th')[1].getAttribute('aria-sort')"
    for order, expected in (
        ("ascending", sorted(before, key=float)),
        ("descending", sorted(before, key=float, reverse=True)),
        (None, before),
    ):
        opened.run(click)
        assert (opened.run(sorts), opened.run(column)) == (order, expected)


@needs_browser
def test_in_a_browser_colours_follow(opened: Browser) -> None:
    opened.run("document.querySelectorAll('.plot')[0].scrollIntoView()")
    opened.until("return document.querySelectorAll('.plot')[0].querySelector('.xtick text')")
    ground = "return getComputedStyle(document.body).backgroundColor"
    ink = "return getComputedStyle(document.querySelector('.plot .xtick text')).fill"
    seen = {}
    for theme in ("light", "dark"):
        opened.set("theme", theme)
        seen[theme] = (opened.run(ground), opened.run(ink))
    assert seen["light"] != seen["dark"]
    assert seen["light"][0] == "rgb(255, 255, 255)"
    assert sum(map(int, re.findall(r"\d+", seen["dark"][1])[:3])) > 3 * 200  # light letters on dark ground
    opened.set("theme", "system")


@needs_browser
@pytest.mark.parametrize("width", [1440, 760, 390])
def test_in_a_browser_nothing_is_wider_than_the_page(opened: Browser, width: int) -> None:
    opened.resize(width)
    outside = (
        "return [...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > arguments[0] + 1"
        " && !e.closest('.scroll, pre, .skip, svg')).map(e => e.outerHTML.slice(0, 80))"
    )
    assert opened.run(outside, width) == []
    assert opened.run("return document.documentElement.scrollWidth") <= width


@needs_browser
def test_in_a_browser_everything_has_a_name(opened: Browser) -> None:
    """What a screen reader says: Chromium's own names of all that can be reached by keyboard."""
    tree = opened.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    roles = {"button", "link", "textbox", "searchbox", "combobox", "checkbox", "region", "table", "navigation", "img"}
    named = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in tree if not node["ignored"]]
    assert [role for role, name in named if role in roles and not name] == []
    assert {"banner", "main", "navigation", "contentinfo", "heading", "searchbox", "table"} <= {
        role for role, _ in named
    }
