"""One panel of a figure on matplotlib's axes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unlearn_pl.report.figure import Axis, Bars, Guide, Heat, Histogram, Line, Number, Panel, Points
from unlearn_pl.report.style import (
    GROUP,
    GUIDE,
    SCALE,
    Look,
    binned,
    finite,
    is_shaded,
    key_of,
    scale_of,
    shown,
    whole_range,
)

NAN = float("nan")
MARKS = 8
"""Markers on a line of many points: enough to tell lines apart in grey."""
CELLS = 120
"""Cells of a heat map that show their numbers too."""
CROWDED = 24
"""Characters of all categories together that fit beside each other."""
SHORT = 5
"""Characters of a category's name, like the number of a layer or `other`, that is not turned."""
TICKS = 16
"""Short names along an axis; of more, every second or third is shown."""


def draw_panel(axes: Any, panel: Panel, looks: Mapping[str, Look]) -> None:
    """Everything of a panel but its legend."""
    Drawing(axes, panel, looks, _scale(axes, panel)).draw()


def handles(panel: Panel, looks: Mapping[str, Look]) -> dict[str, Any]:
    """The legend of a panel: name -> what it looks like; what is on a colour scale has none."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    found: dict[str, Any] = {}
    for series in panel.series:
        look, name = looks[key_of(series)], shown(series.name)
        if isinstance(series, Heat) or is_shaded(series) or not name or name in found:
            continue
        if isinstance(series, Bars | Histogram):
            found[name] = Patch(facecolor=look.colour, hatch=look.hatch, edgecolor="white")
            continue
        dash = "none" if isinstance(series, Points) else "--" if series.dashed else "-"
        inside = "none" if dash == "--" else look.colour
        mark: dict[str, Any] = {"marker": look.marker or None, "markersize": 4.5, "markerfacecolor": inside}
        found[name] = Line2D([], [], color=look.colour, linestyle=dash, **mark)
        if isinstance(series, Points) and series.ringed:
            found[name].set(**_ring(look))
    for guide in panel.guides:
        if guide.name:
            found.setdefault(shown(guide.name), Line2D([], [], **GUIDE_LINE))
    return found


GUIDE_LINE: dict[str, Any] = {"color": GUIDE, "linewidth": 0.9, "linestyle": ":"}


def _ring(look: Look) -> dict[str, Any]:
    return {"marker": "o", "markersize": 11, "markerfacecolor": "none", "markeredgecolor": look.colour} | {
        "markeredgewidth": 1.6
    }


def _scale(axes: Any, panel: Panel) -> Any:
    """The colour scale of a panel, drawn beside it; None if nothing in it is on one."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.ticker import MaxNLocator

    scale = scale_of(panel)
    if scale is None:
        return None
    colours = ScalarMappable(Normalize(scale.low, scale.high), SCALE)
    ticks = MaxNLocator(nbins=6, integer=scale.whole)
    axes.figure.colorbar(colours, ax=axes, label=shown(scale.title), pad=0.02, ticks=ticks)
    return colours


@dataclass
class Drawing:
    """A panel on its axes."""

    axes: Any
    panel: Panel
    looks: Mapping[str, Look]
    colours: Any
    """The colour scale."""

    def draw(self) -> None:
        bars = [series for series in self.panel.series if isinstance(series, Bars)]
        stairs = binned(self.panel)
        shares = iter(stairs.shares)
        for number, series in enumerate(self.panel.series):
            match series:
                case Line():
                    self.line(series, number)
                case Points():
                    self.points(series)
                case Bars():
                    self.bars(series, bars.index(series), len(bars))
                case Histogram():
                    self.stairs(series, next(shares), stairs.edges)
                case Heat():
                    self.heat(series)
        for guide in self.panel.guides:
            self.guide(guide)
        for label in self.panel.labels:
            side = "bottom" if label.above else "top"
            self.axes.text(label.x, label.y, shown(label.text), ha="center", va=side, fontsize=8)
        self.name_axes()

    def line(self, series: Line, number: int) -> None:
        look = self.looks[key_of(series)]
        x, y = places(self.panel.x, series.x), places(self.panel.y, series.y)
        shade = finite(series.shade)
        colour = look.colour if not is_shaded(series) else GUIDE if shade is None else self.colours.to_rgba(shade)
        marker = None if is_shaded(series) else look.marker or None
        every = 1 if series.markers else max(-(-len(x) // MARKS), 1)
        style = {"color": colour, "linestyle": "--" if series.dashed else "-", "linewidth": 1.3}
        # of a dashed line of one point only the marker is seen, so it is open
        style |= {"marker": marker, "markersize": 4, "markerfacecolor": "none" if series.dashed else colour}
        # lines of one place have their markers at different points
        self.axes.plot(x, y, markevery=(number % every, every), **style)
        if series.low is not None and series.high is not None:
            low, high = places(self.panel.y, series.low), places(self.panel.y, series.high)
            self.axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)

    def points(self, series: Points) -> None:
        look = self.looks[key_of(series)]
        x, y = places(self.panel.x, series.x), places(self.panel.y, series.y)
        self._interval(x, y, series, look.colour)
        if series.shade is not None:
            kept = [finite(value) for value in series.shade]
            fills = ["none" if value is None else self.colours.to_rgba(value) for value in kept]
            self.axes.scatter(x, y, s=34, c=fills, edgecolors=GUIDE, linewidths=0.6, zorder=3)
        elif series.ringed:
            self.axes.plot(x, y, linestyle="none", zorder=4, **_ring(look))
        else:
            self.axes.plot(x, y, linestyle="none", marker=look.marker, markersize=5, color=look.colour)

    def bars(self, series: Bars, place: int, count: int) -> None:
        look, width = self.looks[key_of(series)], GROUP / count
        shift = (place + 0.5) * width - GROUP / 2
        x = [position + shift for position in places(self.panel.x, series.categories)]
        heights = [finite(value) for value in series.values]
        known = [NAN if height is None else height for height in heights]
        self.axes.bar(x, known, width * 0.92, color=look.colour, hatch=look.hatch, edgecolor="white", linewidth=0.3)
        self._interval(x, known, series, "#333333")
        for position, height in zip(x, heights, strict=True):
            if height is None:
                self.axes.annotate("–", (position, 0), ha="center", va="bottom", color=look.colour, weight="bold")

    def stairs(self, series: Histogram, shares: Sequence[float], edges: Sequence[float]) -> None:
        look = self.looks[key_of(series)]
        self.axes.stairs(
            shares, edges, fill=True, facecolor=look.colour, alpha=0.25, hatch=look.hatch, edgecolor="white"
        )
        first = next(one for one in self.panel.series if isinstance(one, Histogram))
        self.axes.stairs(shares, edges, color=look.colour, linewidth=1.3, linestyle="-" if series is first else "--")

    def heat(self, series: Heat) -> None:
        import numpy as np

        values = np.array([[NAN if finite(v) is None else v for v in row] for row in series.values], dtype=float)
        self.axes.set_facecolor("#DDDDDD")
        self.axes.imshow(values, cmap=SCALE, norm=self.colours.norm, aspect="auto", interpolation="nearest")
        if values.size <= CELLS:
            for (row, column), value in np.ndenumerate(values):
                dark = not np.isnan(value) and self.colours.norm(value) < 0.5
                text = "–" if np.isnan(value) else f"{value:.3g}"
                self.axes.text(
                    column, row, text, ha="center", va="center", color="white" if dark else "black", fontsize=7
                )

    def guide(self, guide: Guide) -> None:
        (self.axes.axvline if guide.vertical else self.axes.axhline)(guide.at, zorder=1, **GUIDE_LINE)

    def _interval(self, x: Sequence[float], y: Sequence[float], series: Points | Bars, colour: str) -> None:
        if series.low is None or series.high is None:
            return
        ends = zip(x, y, series.low, series.high, strict=True)
        known = [(a, b, low, high) for a, b, low, high in ends if finite(low) is not None and finite(high) is not None]
        if known:
            places_, middles, lows, highs = zip(*known, strict=True)
            below = [max(m - low, 0) for m, low in zip(middles, lows, strict=True)]
            above = [max(high - m, 0) for m, high in zip(middles, highs, strict=True)]
            style = {"color": colour, "linestyle": "none", "capsize": 1.5, "elinewidth": 0.8, "capthick": 0.8}
            self.axes.errorbar(places_, middles, yerr=[below, above], **style)

    def name_axes(self) -> None:
        self.axes.set_title(shown(self.panel.title))
        if self.panel.bare:
            self.axes.set_axis_off()
            self.axes.set_aspect("equal")
            self.axes.margins(0.12)
            return
        self.axes.set_xlabel(shown(self.panel.x.title, 80))
        self.axes.set_ylabel(shown(self.panel.y.title, 80))
        for name, axis in (("x", self.panel.x), ("y", self.panel.y)):
            self._fit(name, axis)

    def _fit(self, name: str, axis: Axis) -> None:
        setter = {"x": self.axes.set_xticks, "y": self.axes.set_yticks}[name]
        if axis.logarithmic:
            {"x": self.axes.set_xscale, "y": self.axes.set_yscale}[name]("log")
            ticks = {"x": self.axes.xaxis, "y": self.axes.yaxis}[name]
            ticks.set_major_formatter(lambda value, _: f"{value:g}")
            ticks.set_minor_formatter(lambda value, _: "")
        if axis.categories is not None:
            names = [shown(one, 36) for one in axis.categories]
            crowded = name == "x" and sum(map(len, names)) > CROWDED and max(map(len, names)) > SHORT
            every = 1 if crowded else -(-len(names) // TICKS)
            turned = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if crowded else {}
            setter(range(0, len(names), every), names[::every], **turned)
            if not any(isinstance(series, Heat) for series in self.panel.series):
                limits = {"x": self.axes.set_xlim, "y": self.axes.set_ylim}[name]
                limits(-0.6, len(names) - 0.4)
        elif name == "x" and whole_range(self.panel) is not None:
            self.axes.xaxis.get_major_locator().set_params(integer=True)
        if axis.categories is None and axis.limits is not None:
            {"x": self.axes.set_xlim, "y": self.axes.set_ylim}[name](*axis.limits)


def places(axis: Axis, values: Sequence[float | str | None]) -> list[float]:
    """Where values stand on an axis: the place of a category, NaN where nothing was measured."""
    if axis.categories is not None:
        order = {name: float(place) for place, name in enumerate(axis.categories)}
        return [order[str(value)] for value in values]
    known: list[Number] = [None if isinstance(value, str) else finite(value) for value in values]
    return [NAN if value is None else value for value in known]
