"""Figure: what is drawn, as plain numbers; `draw.py` makes files of it and `interactive.py` what a browser shows.

A figure is built once, from the files of a run, and knows nothing of a plotting library.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Number = float | None
"""None where nothing was measured: a gap, never a zero."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis of a panel."""

    title: str
    """What is measured, with its unit in brackets where it has one: ``NLL (nats per token)``."""
    limits: tuple[float, float] | None = None
    """Ends of the axis; None: as the numbers need."""
    logarithmic: bool = False
    categories: Sequence[str] | None = None
    """Names along the axis, where it has no numbers: the values of a series are then among these."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """Points joined in order."""

    name: str
    """Shown beside the line or in the legend."""
    x: Sequence[float | str]
    y: Sequence[Number]
    low: Sequence[Number] | None = None
    """Lower ends of the 95 % intervals, drawn as a band."""
    high: Sequence[Number] | None = None
    dashed: bool = False
    markers: bool = False
    colour: str | None = None
    """Name of what the colour stands for (a model, a task); lines of one ``colour`` look alike; None: ``name``."""
    text: Sequence[str] | None = None
    """What a browser shows of each point beside its numbers."""
    shade: Number = None
    """A number of the whole line, shown as its colour on a scale in place of ``colour``."""
    shade_title: str = ""


@dataclass(frozen=True, kw_only=True)
class Points:
    """Points that are not joined; a mark may be set apart (``ringed``)."""

    name: str
    x: Sequence[float | str]
    y: Sequence[Number]
    low: Sequence[Number] | None = None
    """Lower ends of the 95 % intervals, drawn as bars."""
    high: Sequence[Number] | None = None
    ringed: bool = False
    colour: str | None = None
    text: Sequence[str] | None = None
    shade: Sequence[Number] | None = None
    """A third number, shown as the colour of each point on a scale."""
    shade_title: str = ""


@dataclass(frozen=True, kw_only=True)
class Bars:
    """One bar for each category; several series stand side by side."""

    name: str
    categories: Sequence[str]
    values: Sequence[Number]
    low: Sequence[Number] | None = None
    high: Sequence[Number] | None = None
    colour: str | None = None
    text: Sequence[str] | None = None


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """How often a value came: the share of ``values`` in each of the bins that all histograms of a panel share."""

    name: str
    values: Sequence[float]
    colour: str | None = None


@dataclass(frozen=True, kw_only=True)
class Heat:
    """A number for each pair of a row and a column, as a colour."""

    name: str
    """Title of the colour scale, with its unit."""
    columns: Sequence[str]
    rows: Sequence[str]
    values: Sequence[Sequence[Number]]
    """[rows, columns]."""
    limits: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Guide:
    """A straight line across a panel: where one half is, or the pivot step."""

    at: float
    vertical: bool = False
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class Label:
    """Words at a place of a panel: the corner of a simplex."""

    x: float
    y: float
    text: str
    above: bool = False
    """Whether they stand above the place; else below."""


Series = Line | Points | Bars | Histogram | Heat


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Axes with what is drawn in them."""

    title: str
    x: Axis
    y: Axis
    series: Sequence[Series]
    guides: Sequence[Guide] = ()
    labels: Sequence[Label] = ()
    bare: bool = False
    """Without axes, both at one scale: places mean what the labels say."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Panels with one caption."""

    key: str
    """Name of its files: ``losses``."""
    title: str
    caption: str
    """What is seen, in a sentence or two: what was measured, on how much, what would be good, and which figure of the
    paper it is, if any."""
    panels: Sequence[Panel]
    columns: int = 3
    """Panels side by side at most."""
    identity: Mapping[str, str] = field(default_factory=dict)
    """What run it shows, for the file's metadata: ``{"run": "logs/demo", "commit": "22cb6b1"}``."""
