"""What a browser draws in the panels of a figure: Plotly's traces, as plain dictionaries."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby, repeat
from typing import Any

from unlearn_pl.report.figure import Axis, Bars, Figure, Heat, Histogram, Line, Number, Panel, Points, Series
from unlearn_pl.report.style import GUIDE, Look, Scale, binned, finite, is_shaded, key_of, scale_of, shown

DIGITS = 6
"""Significant digits of a number in the page, which is more than a screen shows."""
MARKED = 60
"""Points of a line that show a marker each; a longer one is drawn without."""


@dataclass
class Tracer:
    """Makes the traces of one figure."""

    looks: Mapping[str, Look]
    listed: set[str] = field(default_factory=set)
    """Names that the legend has already."""

    def traces(self, figure: Figure) -> list[dict[str, Any]]:
        """All traces, those of a panel on the axes that bear its number."""
        found = []
        for number, panel in enumerate(figure.panels):
            axes = {"xaxis": f"x{number + 1 if number else ''}", "yaxis": f"y{number + 1 if number else ''}"}
            found += [trace | axes for trace in self.panel(panel, number)]
        return found

    def panel(self, panel: Panel, number: int) -> list[dict[str, Any]]:
        """The traces of one panel."""
        stairs = binned(panel)
        shares = iter(stairs.shares)
        scale = scale_of(panel)
        colours = None if scale is None else coloraxis(number)
        found: list[dict[str, Any]] = []
        for series in panel.series:
            match series:
                case Line():
                    found += self.line(series, panel, scale)
                case Points():
                    found.append(self.points(series, panel, colours))
                case Bars():
                    found.append(self.bars(series, panel))
                case Histogram():
                    found.append(self.stairs(series, next(shares), stairs.edges))
                case Heat():
                    found.append(self.heat(series, panel, colours))
        if colours and (coloured := [one for one in panel.series if isinstance(one, Line) and is_shaded(one)]):
            found.append(scale_bar(coloured[0], panel, colours))
        return found

    def _named(self, series: Series) -> dict[str, Any]:
        """Name and place in the legend, where a name stands once for all panels."""
        name = text(series.name)
        new = bool(name) and name not in self.listed and not is_shaded(series)
        if new:
            self.listed.add(name)
        return {"name": name, "legendgroup": name, "showlegend": new, "hoverinfo": "text"}

    def line(self, series: Line, panel: Panel, scale: Scale | None) -> list[dict[str, Any]]:
        """The line, after its band if it has one."""
        look = self.looks[key_of(series)]
        colour = look.colour if not is_shaded(series) else shade(series.shade, scale)
        x, y = axis_values(panel.x, series.x), axis_values(panel.y, series.y)
        marked = bool(look.marker) and not is_shaded(series) and (series.markers or len(x) <= MARKED)
        trace = {
            "type": "scatter",
            "mode": "lines+markers" if marked else "lines",
            "x": x,
            "y": y,
            "line": {"color": colour, "width": 2, "dash": "dash" if series.dashed else "solid"},
            # of a dashed line of one point only the marker is seen, so it is open
            "marker": {"color": colour, "symbol": look.symbol + "-open" * series.dashed, "size": 6},
            "hovertext": hover(series, panel),
            **self._named(series),
        }
        return [*self._band(series, panel, x, colour), trace]

    def _band(self, series: Line, panel: Panel, x: list[Any], colour: str) -> list[dict[str, Any]]:
        """The area between the ends of the intervals: a ring of points for each stretch without a gap."""
        if series.low is None or series.high is None:
            return []
        ends = zip(x, axis_values(panel.y, series.low), axis_values(panel.y, series.high), strict=True)
        rings: list[list[Any]] = [[], []]
        for known, stretch in groupby(ends, lambda end: None not in end):
            if known:
                places, low, high = zip(*stretch, strict=True)
                rings[0] += [*places, *reversed(places), None]
                rings[1] += [*low, *reversed(high), None]
        named = {"name": text(series.name), "legendgroup": text(series.name), "showlegend": False}
        area = {"type": "scatter", "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "fill": "toself"}
        return [{**area, "x": rings[0], "y": rings[1], "fillcolor": faint(colour, 0.15), **named}]

    def points(self, series: Points, panel: Panel, colours: str | None) -> dict[str, Any]:
        look = self.looks[key_of(series)]
        marker: dict[str, Any] = {"color": look.colour, "symbol": look.symbol, "size": 8}
        if series.shade is not None:
            marker = {"color": [number(value) for value in series.shade], "coloraxis": colours, "size": 11}
            marker["line"] = {"color": GUIDE, "width": 1}
            marker["symbol"] = ["circle-open" if finite(value) is None else "circle" for value in series.shade]
        elif series.ringed:
            marker = {"color": look.colour, "symbol": "circle-open", "size": 16, "line": {"width": 2.5}}
        y = axis_values(panel.y, series.y)
        trace = {
            "type": "scatter",
            "mode": "markers",
            "x": axis_values(panel.x, series.x),
            "y": y,
            "marker": marker,
            "hovertext": hover(series, panel),
            **self._named(series),
        }
        return trace | interval(series.low, y, series.high, look.colour)

    def bars(self, series: Bars, panel: Panel) -> dict[str, Any]:
        look = self.looks[key_of(series)]
        y = [number(value) for value in series.values]
        pattern = {"fillmode": "overlay", "fgcolor": "#ffffff", "fgopacity": 0.5, "solidity": 0.2, "size": 7}
        trace = {
            "type": "bar",
            "x": [text(name) for name in series.categories],
            "y": y,
            "marker": {"color": look.colour, "pattern": pattern | {"shape": look.pattern}},
            "hovertext": hover(series, panel),
            **self._named(series),
        }
        return trace | interval(series.low, y, series.high, GUIDE)

    def stairs(self, series: Histogram, shares: Sequence[float], edges: Sequence[float]) -> dict[str, Any]:
        look, count = self.looks[key_of(series)], len(series.values)
        told = [
            f"<b>{text(series.name)}</b><br>{low:.4g} to {high:.4g}: {share:.1%} of {count}"
            for low, high, share in zip(edges, edges[1:], shares, strict=False)
        ]
        return {
            "type": "scatter",
            "mode": "lines",
            "x": [number(edge) for edge in (edges[0], *edges)],
            "y": [0, *(number(share) for share in shares), 0],
            "line": {"color": look.colour, "width": 2, "shape": "hv"},
            "fill": "tozeroy",
            "fillcolor": faint(look.colour, 0.25),
            "hovertext": ["", *told, ""],
            **self._named(series),
        }

    def heat(self, series: Heat, panel: Panel, colours: str | None) -> dict[str, Any]:
        told = [
            [
                f"{text(panel.y.title)} {text(row)}<br>{text(panel.x.title)} {text(column)}<br>"
                f"{text(series.name)}: {told_number(value)}"
                for column, value in zip(series.columns, values, strict=True)
            ]
            for row, values in zip(series.rows, series.values, strict=True)
        ]
        return {
            "type": "heatmap",
            "x": [text(one) for one in series.columns],
            "y": [text(one) for one in series.rows],
            "z": [[number(value) for value in values] for values in series.values],
            "coloraxis": colours,
            "hovertext": told,
            **self._named(series),
        }


def scale_bar(line: Line, panel: Panel, colours: str) -> dict[str, Any]:
    """A mark that nobody sees, on the colour scale, which is then shown: lines Plotly does not put on one."""
    x, y = axis_values(panel.x, line.x[:1]), axis_values(panel.y, line.y[:1])
    marker = {"color": [number(line.shade)], "coloraxis": colours, "opacity": 0}
    seen: dict[str, Any] = {"type": "scatter", "mode": "markers", "x": x, "y": y, "marker": marker}
    return seen | {"name": "", "showlegend": False, "hoverinfo": "skip"}


def coloraxis(panel: int) -> str:
    """The name of the colour scale of a panel."""
    return f"coloraxis{panel + 1 if panel else ''}"


def hover(series: Line | Points | Bars, panel: Panel) -> list[str]:
    """What is said of each point: series, place, value with its interval, and the words of its own."""
    x: Sequence[Any] = series.categories if isinstance(series, Bars) else series.x
    y = series.values if isinstance(series, Bars) else series.y
    lows, highs, words = (values or repeat(None) for values in (series.low, series.high, series.text))
    shades = series.shade if isinstance(series, Points) and series.shade is not None else repeat(None)
    title = getattr(series, "shade_title", "")
    told = []
    for place, value, low, high, word, colour in zip(x, y, lows, highs, words, shades, strict=False):
        lines = [f"<b>{text(series.name)}</b>"]
        if not panel.bare:
            lines += [_told(panel.x, place), _told(panel.y, value)]
        if finite(low) is not None and finite(high) is not None:
            lines[-1] += f" (95 % interval {low:.4g} to {high:.4g})"
        if title and isinstance(series, Points):
            lines.append(f"{text(title)}: {told_number(colour)}")
        told.append("<br>".join([*lines, *([text(word, 400)] if word else [])]))
    return told


def _told(axis: Axis, value: Any) -> str:
    said = text(value) if isinstance(value, str) else told_number(value)
    return f"{text(axis.title)}: {said}" if axis.title else said


def told_number(value: Number) -> str:
    """A number for the eye."""
    return "not measured" if finite(value) is None else f"{value:.4g}"


@lru_cache(maxsize=4096)
def text(value: str, limit: int = 80) -> str:
    """Text of any origin, for Plotly, which reads a little HTML."""
    return html.escape(shown(str(value), limit), quote=False)


def number(value: Number) -> Number:
    """A number as short as the screen needs it; None is a gap."""
    return None if value is None or finite(value) is None else float(f"{value:.{DIGITS}g}")


def axis_values(axis: Axis, values: Sequence[Any]) -> list[Any]:
    """Values on an axis: names of categories, or numbers."""
    return [text(str(value)) if axis.categories is not None else number(value) for value in values]


def interval(
    low: Sequence[Number] | None, middle: Sequence[Any], high: Sequence[Number] | None, colour: str
) -> dict[str, Any]:
    """The bars from ``low`` to ``high``; none where one is not known."""
    if low is None or high is None:
        return {}
    above, below = [], []
    for bottom, value, top in zip(low, middle, high, strict=True):
        known = isinstance(value, float) and finite(bottom) is not None and finite(top) is not None
        above.append(number(max(top - value, 0)) if known and top is not None else None)
        below.append(number(max(value - bottom, 0)) if known and bottom is not None else None)
    style = {"color": colour, "thickness": 1.2, "width": 3}
    return {"error_y": {"type": "data", "symmetric": False, "array": above, "arrayminus": below} | style}


def faint(colour: str, share: float) -> str:
    """A colour (``#0072B2``) that lets through what is behind it."""
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},{share})"


# Cividis at ten even steps, as matplotlib has it
CIVIDIS = ["#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838"]


def shade(value: Number, scale: Scale | None) -> str:
    """The colour of a number on a scale, between the two steps it lies between."""
    if scale is None or value is None or finite(value) is None:
        return GUIDE
    place = min(max((value - scale.low) / (scale.high - scale.low), 0.0), 1.0) * (len(CIVIDIS) - 1)
    at = min(int(place), len(CIVIDIS) - 2)
    ends = [[int(CIVIDIS[at + step][i : i + 2], 16) for i in (1, 3, 5)] for step in (0, 1)]
    mixed = [round(a + (b - a) * (place - at)) for a, b in zip(*ends, strict=True)]
    return "#{:02x}{:02x}{:02x}".format(*mixed)
