"""A figure as a browser shows it: what ``Plotly.newPlot`` takes, with names, values and intervals on hover."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unlearn_pl.report.figure import Axis, Bars, Figure, Guide, Heat, Panel
from unlearn_pl.report.style import GROUP, GUIDE, Look, finite, has_legend, key_of, looks_of, scale_of, whole_range
from unlearn_pl.report.traces import CIVIDIS, Tracer, coloraxis, text

WIDTHS = {"wide": 900, "narrow": 320}
"""Least width that a layout is made for, in pixels as all that follows."""
HEIGHT = 240
"""Of a panel."""
TITLE, FOOT, ENTRY, LEFT, RIGHT = 34, 54, 29, 56, 14
LETTER = 7.2
"""Width of a letter."""
FEW = 7
"""Steps along an axis that are marked each."""
SHORT = 5
"""Letters of a category's name that need no turn: the number of a layer, or `other`."""
COLOURS = {
    "light": {"text": "#1c1e21", "grid": "#e3e5e8", "line": "#9aa0a6", "hover": "#ffffff"},
    "dark": {"text": "#e6e8eb", "grid": "#3a3f45", "line": "#7d848c", "hover": "#24282d"},
}


def spec(figure: Figure) -> dict[str, Any]:
    """What a browser needs of a figure, ready for JSON.

    ``data``, ``layout`` and ``config`` are for ``Plotly.newPlot``. ``narrow`` is the layout for less than 900 pixels,
    one panel below the other. ``light`` and ``dark`` are what ``Plotly.relayout`` takes to change the colours; both
    layouts have the light ones, on the page's own background.
    """
    data = Tracer(looks_of(figure)).traces(figure)
    return {
        "data": data,
        "layout": Layout(figure, data, "wide").build(),
        "narrow": Layout(figure, data, "narrow").build(),
        "light": theme(figure, "light"),
        "dark": theme(figure, "dark"),
        "config": {
            # which would cover the titles; a double click undoes a zoom
            "displayModeBar": False,
            "responsive": True,
        },
    }


def theme(figure: Figure, name: str) -> dict[str, str]:
    """Path in the layout -> colour, for ``Plotly.relayout``."""
    colours = COLOURS[name]
    found = {"font.color": colours["text"], "hoverlabel.font.color": colours["text"]}
    found |= {"hoverlabel.bgcolor": colours["hover"], "hoverlabel.bordercolor": colours["line"]}
    for letter in "xy":
        for number in range(len(figure.panels)):
            axis = f"{letter}axis{suffix(number)}"
            found |= {f"{axis}.gridcolor": colours["grid"], f"{axis}.linecolor": colours["line"]}
    return found


def suffix(number: int) -> str:
    """What ends the name of the axes of a panel: nothing for the first, 2 for the second."""
    return str(number + 1) if number else ""


@dataclass
class Layout:
    """Where everything stands: panels in rows, the legend below them all."""

    figure: Figure
    data: list[dict[str, Any]]
    side: str

    def __post_init__(self) -> None:
        panels = self.figure.panels
        self.columns = max(min(self.figure.columns if self.side == "wide" else 1, len(panels)), 1)
        self.rows = max(-(-len(panels) // self.columns), 1)
        self.width = (WIDTHS[self.side] - (LEFT + RIGHT) * self.columns) / self.columns
        feet = [FOOT + turned(panel, self.width) for panel in panels] or [FOOT]
        self.feet = [max(feet[row * self.columns : (row + 1) * self.columns]) for row in range(self.rows)]
        self.inner = self.rows * (HEIGHT + TITLE) + sum(self.feet[:-1]) - TITLE

    def build(self) -> dict[str, Any]:
        """The layout, with light colours."""
        entries, legend = self._legend()
        layout: dict[str, Any] = {
            "height": self.inner + TITLE + self.feet[-1] + legend,
            "margin": {"l": LEFT, "r": RIGHT, "t": TITLE, "b": self.feet[-1] + legend},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"size": 12, "family": "system-ui, sans-serif"},
            # on a narrow screen, fingers move the page
            "dragmode": "zoom" if self.side == "wide" else False,
            "hovermode": "closest",
            "hoverlabel": {"align": "left"},
            "bargap": 1 - GROUP,
            "annotations": [],
            "shapes": [],
            "showlegend": has_legend(self.figure, entries),
            "legend": {"orientation": "h", "yref": "container", "y": 0.0, "yanchor": "bottom"},
        }
        layout["legend"] |= {
            "x": 0.5,
            "xanchor": "center",
            "tracegroupgap": 0,
            "entrywidth": self._entry(entries),
        }
        for number, panel in enumerate(self.figure.panels):
            layout |= self._panel(number, panel)
            layout["annotations"] += [*self._words(number, panel), *dashes(number, panel, looks_of(self.figure))]
            layout["shapes"] += [guide_line(number, guide, entries) for guide in panel.guides]
        for path, colour in theme(self.figure, "light").items():
            put(layout, path, colour)
        return layout

    def _legend(self) -> tuple[dict[str, bool], int]:
        """Its entries, and its height; those that are lines across panels are still to be shown (True)."""
        entries = {trace["name"]: False for trace in self.data if trace["showlegend"]}
        guides = [guide.name for panel in self.figure.panels for guide in panel.guides if guide.name]
        entries |= {text(name): True for name in guides}
        if not has_legend(self.figure, entries):
            return entries, 0
        side = max(int((WIDTHS[self.side] - LEFT - RIGHT) // (self._entry(entries) + 44)), 1)
        return entries, -(-len(entries) // side) * ENTRY + 8

    def _entry(self, entries: Mapping[str, bool]) -> int:
        """Width of a name in the legend."""
        return int(LETTER * max(map(len, entries), default=1)) + 6

    def _domain(self, number: int, panel: Panel) -> tuple[list[float], list[float]]:
        """The part of the width and of the height that a panel has."""
        row, column = divmod(number, self.columns)
        width = WIDTHS[self.side] - LEFT - RIGHT
        gap = (LEFT + 8) / width
        share = (1 - gap * (self.columns - 1)) / self.columns
        left, right = column * (share + gap), column * (share + gap) + share
        if scale_of(panel):
            right -= 64 / width
        top = self.inner - row * (HEIGHT + TITLE) - sum(self.feet[:row])
        bottom = max((top - HEIGHT) / self.inner, 0.0)
        return [round(left, 5), round(min(right, 1.0), 5)], [round(bottom, 5), round(top / self.inner, 5)]

    def _panel(self, number: int, panel: Panel) -> dict[str, Any]:
        end = suffix(number)
        (left, right), (bottom, top) = self._domain(number, panel)
        x = axis_of(panel.x, panel, "x", turned(panel, self.width)) | {"domain": [left, right], "anchor": f"y{end}"}
        y = axis_of(panel.y, panel, "y", 0) | {"domain": [bottom, top], "anchor": f"x{end}"}
        if panel.bare:
            y |= {"scaleanchor": f"x{end}", "scaleratio": 1}
        found = {f"xaxis{end}": x, f"yaxis{end}": y}
        if scale := scale_of(panel):
            bar = {"x": right + 0.01, "xanchor": "left", "y": (bottom + top) / 2, "len": top - bottom, "thickness": 11}
            bar |= {"title": {"text": text(scale.title), "side": "right"}, "outlinewidth": 0}
            bar |= {"dtick": max(1, round((scale.high - scale.low) / 6))} if scale.whole else {}
            steps = [[round(at / (len(CIVIDIS) - 1), 4), colour] for at, colour in enumerate(CIVIDIS)]
            found[coloraxis(number)] = {"cmin": scale.low, "cmax": scale.high, "colorscale": steps, "colorbar": bar}
        return found

    def _words(self, number: int, panel: Panel) -> list[dict[str, Any]]:
        """The title of a panel, and the labels in it."""
        (left, right), (_, top) = self._domain(number, panel)
        fixed = {"showarrow": False, "font": {"size": 13}}
        title = {
            "text": f"<b>{text(panel.title)}</b>",
            "x": (left + right) / 2,
            "y": top,
            "xref": "paper",
            "yref": "paper",
        }
        found = [title | {"xanchor": "center", "yanchor": "bottom", "yshift": 5} | fixed] if panel.title else []
        for label in panel.labels:
            place = {"x": label.x, "y": label.y, "xref": f"x{suffix(number)}", "yref": f"y{suffix(number)}"}
            place |= {"yanchor": "bottom" if label.above else "top", "text": text(label.text)}
            found.append(place | {"showarrow": False})
        return found


def axis_of(axis: Axis, panel: Panel, letter: str, turn: int) -> dict[str, Any]:
    """One axis without its place."""
    found: dict[str, Any] = {"title": {"text": text(axis.title), "standoff": 6}, "zeroline": False, "showline": True}
    if panel.bare:
        return {"visible": False, "range": [-0.15, 1.15 if letter == "x" else 1.0], "constrain": "domain"}
    if axis.categories is not None:
        names = [text(name) for name in axis.categories]
        found |= {"type": "category", "categoryorder": "array", "categoryarray": names, "showgrid": letter == "y"}
        if turn:
            found["tickangle"] = -35
        ends = [-0.5, len(names) - 0.5]
        # a heat map has its first row on top, as a table has
        mapped = letter == "y" and any(isinstance(series, Heat) for series in panel.series)
        return found | {"range": ends[::-1] if mapped else ends}
    found["type"] = "log" if axis.logarithmic else "linear"
    steps = whole_range(panel) if letter == "x" else None
    if steps is not None and steps[1] - steps[0] < FEW:
        found["dtick"] = 1
    if axis.limits is not None:
        found["range"] = [math.log10(end) if axis.logarithmic else end for end in axis.limits]
    return found


def turned(panel: Panel, width: float) -> int:
    """How far names of categories reach below the axis beyond a line, since many long ones stand at an angle."""
    names = [text(name) for name in panel.x.categories or ()]
    longest = max(map(len, names), default=0)
    return 0 if longest <= SHORT or len(names) * (longest + 2) * LETTER < width else int(longest * LETTER * 0.52)


def dashes(number: int, panel: Panel, looks: Mapping[str, Look]) -> list[dict[str, Any]]:
    """A dash in the place of each bar of what was not measured, which would look like a zero."""
    bars = [series for series in panel.series if isinstance(series, Bars)]
    width, axes = GROUP / max(len(bars), 1), {"xref": f"x{suffix(number)}", "yref": f"y{suffix(number)}"}
    return [
        {
            **axes,
            "x": list(panel.x.categories or series.categories).index(name) + (place + 0.5) * width - GROUP / 2,
            "y": 0,
            "yanchor": "bottom",
            "text": "–",
            "font": {"color": looks[key_of(series)].colour},
            "hovertext": f"<b>{text(series.name)}</b><br>{text(name)}: not measured",
            "showarrow": False,
        }
        for place, series in enumerate(bars)
        for name, value in zip(series.categories, series.values, strict=True)
        if finite(value) is None
    ]


def guide_line(number: int, guide: Guide, entries: dict[str, bool]) -> dict[str, Any]:
    """A line across a panel; the first of a name stands in the legend."""
    along, across = ("y", "x") if guide.vertical else ("x", "y")
    name, end = text(guide.name), suffix(number)
    found: dict[str, Any] = {
        "type": "line",
        f"{across}0": guide.at,
        f"{across}1": guide.at,
        f"{across}ref": f"{across}{end}",
        f"{along}0": 0,
        f"{along}1": 1,
        f"{along}ref": f"{along}{end} domain",
        "line": {"color": GUIDE, "width": 1.4, "dash": "dot"},
        "layer": "below",
    }
    if entries.get(name):
        entries[name] = False
        found |= {"showlegend": True, "name": name}
    return found


def put(layout: dict[str, Any], path: str, value: Any) -> None:
    """Set what is at a path like ``xaxis.gridcolor``."""
    *outer, last = path.split(".")
    for name in outer:
        layout = layout.setdefault(name, {})
    layout[last] = value
