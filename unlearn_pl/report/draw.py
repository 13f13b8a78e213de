"""A figure as a file, for a paper or a mail: SVG, PDF or PNG; the same figure gives the same bytes."""

import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unlearn_pl.files import write_bytes
from unlearn_pl.report.axes import SHORT, draw_panel, handles
from unlearn_pl.report.figure import Bars, Figure, Panel
from unlearn_pl.report.style import has_legend, looks_of, shown

PANEL = (4.2, 3.0)
MOST = 9.0
"""Width of the widest panel."""
LINE = 0.21
"""Height of a line of a legend, in inches as the panel's."""
LETTERS, SAMPLE = 15.5, 8
"""Letters of a legend in an inch, and how many of them the sample before a name is wide."""
TALL = 4
"""Entries of a legend that may stand below each other."""
LONG = 20
"""Characters of a category's name that takes more room."""
DOTS = 130
SETTINGS = {
    # SVG names its parts by their content, so that the same figure has the same names
    "svg.hashsalt": "unlearn_pl",
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
    # a dollar sign in a name is no formula
    "text.parse_math": False,
    "hatch.linewidth": 0.5,
    "font.size": 9,
    "axes.titlesize": 9.5,
    "legend.fontsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def draw(figure: Figure, *paths: str | Path) -> None:
    """Write the figure to each path, in the format that its ending names: ``.svg``, ``.pdf`` or ``.png``."""
    with _drawn(figure) as canvas:
        for path in map(Path, paths):
            write_bytes(path, _saved(canvas, figure, path.suffix.removeprefix(".")))


def image(figure: Figure, kind: str = "png") -> bytes:
    """The content of such a file."""
    with _drawn(figure) as canvas:
        return _saved(canvas, figure, kind)


@contextmanager
def _drawn(figure: Figure) -> Iterator[Any]:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
        # a name in a script that the font does not have shows as boxes
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        canvas = _canvas(figure)
        FigureCanvasAgg(canvas)
        # laid out once, so that a format looks the same after another one or alone
        canvas.draw_without_rendering()
        canvas.set_layout_engine("none")
        yield canvas


def _canvas(figure: Figure) -> Any:
    """All panels, and one legend below them."""
    from matplotlib.figure import Figure as Canvas

    columns = max(min(figure.columns, len(figure.panels)), 1)
    rows = max(-(-len(figure.panels) // columns), 1)
    looks = looks_of(figure)
    entries: dict[str, Any] = {}
    for panel in figure.panels:
        entries |= {name: one for name, one in handles(panel, looks).items() if name not in entries}
    width = columns * max(map(_width, figure.panels), default=PANEL[0])
    if len(entries) > TALL:  # else a narrow figure would be mostly its legend
        width = max(width, 2 * (max(map(len, entries)) + SAMPLE) / LETTERS + 0.1)
    side = _side(entries, width)
    lines = -(-len(entries) // side) if has_legend(figure, entries) else 0
    canvas = Canvas(figsize=(width, PANEL[1] * rows + LINE * lines), layout="constrained")
    axes = canvas.subplots(rows, columns, squeeze=False).flatten()
    for unused in axes[len(figure.panels) :]:
        unused.set_visible(False)
    for axis, panel in zip(axes, figure.panels, strict=False):
        draw_panel(axis, panel, looks)
    if lines:
        style = {"ncols": side, "frameon": False, "handlelength": 2.6, "columnspacing": 1.4}
        canvas.legend(list(entries.values()), list(entries), loc="outside lower center", **style)
    return canvas


def _width(panel: Panel) -> float:
    """A panel with many categories or bars is wider, more so with long names."""
    names = [len(name) for name in panel.x.categories or () if len(name) > SHORT]
    bars = sum(len(series.categories) for series in panel.series if isinstance(series, Bars))
    each = 0.42 if max(names, default=0) <= LONG else 0.8
    return min(max(PANEL[0], each * len(names) + 1, 0.17 * bars + 1), MOST)


def _side(entries: Mapping[str, Any], width: float) -> int:
    """Entries of a legend side by side in so many inches, about the same in each line."""
    widest = max(map(len, entries), default=1)
    most = max(min(int(width * LETTERS // (widest + SAMPLE)), len(entries)), 1)
    return -(-len(entries) // -(-len(entries) // most)) if entries else 1


def _saved(canvas: Any, figure: Figure, kind: str) -> bytes:
    stream = io.BytesIO()
    canvas.savefig(stream, format=kind, dpi=DOTS, metadata=_metadata(figure, kind))
    return stream.getvalue()


def _metadata(figure: Figure, kind: str) -> dict[str, Any]:
    """What the file says of itself: title, caption and the run; neither time nor the drawing software."""
    identity = "; ".join(f"{shown(name)}: {shown(value, 200)}" for name, value in figure.identity.items())
    title, caption = shown(figure.title, 200), shown(figure.caption, 1000)
    if kind == "svg":
        found = {"Title": title, "Description": caption, "Source": identity, "Date": None, "Creator": None}
        return {**found, "Format": None, "Type": None}
    if kind == "pdf":
        return {"Title": title, "Subject": caption, "Keywords": identity, "CreationDate": None, "Producer": None}
    return {"Title": title, "Description": _latin(caption), "Source": _latin(identity), "Software": None}


def _latin(text: str) -> str:
    """What the text of a PNG file can hold."""
    return text.encode("latin-1", "replace").decode("latin-1")
