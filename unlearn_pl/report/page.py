"""Page: everything of one or several runs in one HTML file that loads nothing from elsewhere.

The scripts that may run are named by their hashes in the page's policy, so that no text of a model or a data file can
become one, whatever it holds.
"""

import base64
import functools
import hashlib
import importlib.resources
import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from markupsafe import Markup

from unlearn_pl import __version__
from unlearn_pl.metrics.headline import HEADLINE
from unlearn_pl.report.content import Content
from unlearn_pl.report.facts import facts_of
from unlearn_pl.report.figure import Figure
from unlearn_pl.report.generations import Generations, generations_of
from unlearn_pl.report.interactive import spec

MOST = 6_000_000
"""Bytes of a page."""
FIGURES = 2_500_000
"""Bytes of its figures, at most."""
OPENED = ("table_1", "table_2", "study")
"""Tables that are seen at once; the others are behind their titles."""
PARTS = {
    "verdict": "Verdict",
    "scores": "Tables",
    "study": "Best run",
    "figures": "Figures",
    "generations": "Generations",
    "settings": "Settings",
    "missing": "What is missing",
}


def page(content: Content, most: int = MOST) -> str:
    """The HTML file, of at most ``most`` bytes: generations beyond that are left out, evenly, and the page says how
    many."""
    keys = [table.key for table in content.tables]
    figures, left_out = fitting(content.figures, FIGURES)
    packed = {"figures": pack(json.dumps([one for _, one in figures], allow_nan=False)), "plotly": packed_plotly()}
    values: dict[str, Any] = {
        "title": title(content),
        "version": __version__,
        "policy": policy(),
        "style": read("page.css"),
        "script": read("page.js"),
        "parts": [(id, name) for id, name in PARTS.items() if id != "study" or (content.study and content.study.best)],
        "opened": [key for key in OPENED if key in keys] or keys[:1],
        "judge": HEADLINE[content.study.judge] if content.study and content.study.judge else "",
        "limit": f"{most / 1e6:g}",
        "figures": by_run([figure for figure, _ in figures], len(content.runs)),
        "made": [{"name": run.name, "facts": facts_of(run)} for run in content.runs],
        "missing": [(run.name, one) for run in content.runs for one in run.missing],
        "left_out": [*content.left_out, *left_out],
        **{name: getattr(content, name) for name in ("runs", "verdicts", "tables", "study", "masked")},
    }
    generations = generations_of(content.runs, content.masked)
    empty = rendered(values, packed | {"generations": ""}, generations)
    shown, text = within(generations, most - len(empty.encode()) - 1000)
    return rendered(values, packed | {"generations": text}, shown)


def rendered(values: dict[str, Any], packed: Mapping[str, str], generations: Generations) -> str:
    """The template with everything in it; what is not of this package is escaped."""
    counts = {"shown": len(generations.rows), "total": generations.total}
    safe = {name: Markup(values[name]) for name in ("style", "script")}  # of this package  # nosec B704
    return environment().get_template("page.html").render(**values | safe, packed=packed, generations=counts)


def title(content: Content) -> str:
    """What the page is called."""
    named = ", ".join(run.name for run in content.runs[:3])
    return f"Report of {named}" + (f" and {len(content.runs) - 3} more" if len(content.runs) > 3 else "")


@functools.cache
def environment() -> jinja2.Environment:
    """Where templates come from; a name that is not given is an error."""
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(read),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def read(name: str) -> str:
    """A file beside the templates."""
    return (importlib.resources.files("unlearn_pl.report") / "templates" / name).read_text(encoding="utf-8")


@functools.cache
def plotly_script() -> str:
    """Plotly's script, as its Python package brings it."""
    return (importlib.resources.files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")


@functools.cache
def packed_plotly() -> str:
    """Plotly's script for the page."""
    return pack(plotly_script())


def policy() -> str:
    """The Content-Security-Policy: our script and Plotly's, styles of the page, images that it makes; nothing else."""
    hashes = [hashlib.sha256(text.encode()).digest() for text in (read("page.js"), plotly_script())]
    scripts = " ".join(f"'sha256-{base64.b64encode(one).decode()}'" for one in hashes)
    return (
        f"default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def pack(text: str) -> str:
    """zlib, then base64: what the page's script undoes."""
    return base64.b64encode(zlib.compress(text.encode(), 6)).decode()


def fitting(figures: Sequence[Figure], most: int) -> tuple[list[tuple[Figure, dict[str, Any]]], list[tuple[str, str]]]:
    """The figures as a browser takes them, the largest left out until the rest has at most ``most`` bytes, and what was
    left out."""
    made = [(figure, spec(figure)) for figure in figures]
    sizes = {place: len(pack(json.dumps(one, allow_nan=False))) for place, (_, one) in enumerate(made)}
    left_out = []
    while sum(sizes.values()) > most:
        place = max(sizes, key=lambda one: sizes[one])
        reason = f"its {sizes.pop(place) / 1e6:.1f} MB do not fit into the page; its file shows it"
        left_out.append((f"figure {made[place][0].title}", reason))
    return [made[place] for place in sizes], left_out


def by_run(figures: Sequence[Figure], runs: int) -> list[tuple[str, list[tuple[int, Figure]]]]:
    """The figures with their places, under the name of the run that they are of; under none what is of several runs,
    and all of a single one."""
    found: dict[str, list[tuple[int, Figure]]] = {}
    for place, figure in enumerate(figures):
        found.setdefault(figure.identity.get("run", "") if runs > 1 else "", []).append((place, figure))
    return list(found.items())


def within(generations: Generations, most: int) -> tuple[Generations, str]:
    """As many of the rows as fit into ``most`` bytes when packed, and those packed."""
    shown, text = generations, pack(json.dumps(generations.to_json(), ensure_ascii=False))
    while len(text) > most and shown.rows:
        # a little less than in proportion, since fewer rows pack less well
        count = min(int(len(shown.rows) * max(most, 0) / len(text) * 0.97), len(shown.rows) - 1)
        shown = generations.thinned(count)
        text = pack(json.dumps(shown.to_json(), ensure_ascii=False))
    return shown, text
