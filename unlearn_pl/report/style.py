"""Style: how a figure looks, in files and in a browser alike.

The colours are those of Okabe and Ito, which colour-blind readers tell apart, without black and yellow, which vanish on
a dark and on a light page. Each goes with a marker and a hatching, so that print in grey is legible too.
"""

import math
import unicodedata
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass, replace
from functools import lru_cache

from unlearn_pl.report.figure import Bars, Figure, Heat, Histogram, Line, Number, Panel, Points, Series


@dataclass(frozen=True)
class Look:
    """How everything of one ``colour`` is drawn."""

    colour: str
    marker: str
    """matplotlib's name; none: without markers."""
    symbol: str
    """Plotly's name of the marker."""
    hatch: str
    """matplotlib's hatching of bars."""
    pattern: str
    """Plotly's."""


LOOKS = (
    Look("#0072B2", "o", "circle", "", ""),
    Look("#D55E00", "s", "square", "///", "/"),
    Look("#009E73", "^", "triangle-up", "\\\\\\", "\\"),
    Look("#CC79A7", "D", "diamond", "xxx", "x"),
    Look("#E69F00", "v", "triangle-down", "...", "."),
    Look("#56B4E9", "P", "cross", "---", "-"),
    Look("#7A7A7A", "X", "x", "|||", "|"),
)
BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, GREY = LOOKS

KNOWN = {
    "base": GREY,
    "over": VERMILLION,
    "under": BLUE,
    "merged": GREEN,
    "balanced": PURPLE,
    "members": VERMILLION,
    "non-members": BLUE,
    "chosen": VERMILLION,
    "chance": Look("#9A9A9A", "", "circle", "", ""),
}
"""What looks the same in every figure."""

GUIDE = "#7A7A7A"
SCALE = "cividis"
"""Colour scale of numbers: it grows lighter evenly, for every kind of eye."""
LONGEST = 48
"""Characters of a name that are shown."""
GROUP = 0.8
"""Width of the bars of one category, of the 1 that there is."""
BINS = 24


def looks_of(figure: Figure) -> dict[str, Look]:
    """The look of each ``colour`` in a figure: what is known first, the rest by the looks that are left, in order;
    after seven a colour comes again with another marker. Beside known ones the looks of no known model are first, so
    that a further model looks the same in figures that show all models and in those that show some."""
    keys = list(dict.fromkeys(key_of(series) for panel in figure.panels for series in panel.series))
    fixed = {key: KNOWN[key] for key in keys if key in KNOWN}
    free = _free(set(fixed.values()), (ORANGE, SKY, *LOOKS) if fixed else LOOKS)
    return {key: fixed.get(key) or next(free) for key in keys}


def _free(taken: Iterable[Look], order: Iterable[Look]) -> Iterator[Look]:
    taken = set(taken)
    yield from (look for look in dict.fromkeys(order) if look not in taken)
    shift = 0
    while True:
        shift += 1
        for number, look in enumerate(LOOKS):
            other = LOOKS[(number + shift) % len(LOOKS)]
            yield replace(other, colour=look.colour)


def key_of(series: Series) -> str:
    """What the colour of a series stands for."""
    return series.name if isinstance(series, Heat) else series.colour or series.name


def is_shaded(series: Series) -> bool:
    """Whether its colours are numbers on a scale."""
    if isinstance(series, Line):
        return series.shade is not None or bool(series.shade_title)
    return isinstance(series, Heat) or (isinstance(series, Points) and series.shade is not None)


def has_legend(figure: Figure, entries: Sized) -> bool:
    """Whether names have to be told: there are several, or one stands beside what is on a colour scale."""
    shaded = any(is_shaded(series) for panel in figure.panels for series in panel.series)
    return len(entries) > 1 or (shaded and len(entries) == 1)


@dataclass(frozen=True)
class Scale:
    """The colour scale of a panel."""

    title: str
    low: float
    high: float
    whole: bool = False
    """Whether it counts (layers), so that ticks between two of its numbers say nothing."""


def scale_of(panel: Panel) -> Scale | None:
    """The scale that all shaded series of a panel share, None if there is nothing on one."""
    shaded = [series for series in panel.series if is_shaded(series)]
    numbers = [value for series in shaded for value in map(finite, _shades(series)) if value is not None]
    given = [series.limits for series in shaded if isinstance(series, Heat) and series.limits]
    if given:
        numbers = [end for limits in given for end in limits]
    if not numbers:
        return None
    first = shaded[0]
    assert not isinstance(first, Bars | Histogram)
    low, high = min(numbers), max(numbers)
    title = first.name if isinstance(first, Heat) else first.shade_title
    whole = not isinstance(first, Heat) and all(float(number).is_integer() for number in numbers)
    return Scale(title, low, high if high > low else low + 1, whole)


def _shades(series: Series) -> list[Number]:
    if isinstance(series, Heat):
        return [value for row in series.values for value in row]
    assert not isinstance(series, Bars | Histogram)
    return [series.shade] if isinstance(series, Line) else list(series.shade or ())


@dataclass(frozen=True)
class Binned:
    """Histograms of one panel in the same bins."""

    edges: list[float]
    shares: list[list[float]]
    """[histograms, bins]; those of a histogram add up to 1."""


def binned(panel: Panel) -> Binned:
    """The histograms of a panel, between the ends of its axis if they are given; what is not finite is left out."""
    kept = [[v for v in one.values if math.isfinite(v)] for one in panel.series if isinstance(one, Histogram)]
    known = [value for values in kept for value in values]
    low, high = panel.x.limits or ((min(known), max(known)) if known else (0.0, 1.0))
    if high <= low:
        low, high = low - 0.5, high + 0.5
    edges = [low + (high - low) * step / BINS for step in range(BINS + 1)]
    shares = []
    for values in kept:
        counts = [0] * BINS
        for value in values:
            counts[min(max(int((value - low) / (high - low) * BINS), 0), BINS - 1)] += 1
        shares.append([count / max(len(values), 1) for count in counts])
    return Binned(edges, shares)


def whole_range(panel: Panel) -> tuple[int, int] | None:
    """The least and the largest place along a panel if all are whole numbers: steps, which have no halves."""
    places = [place for series in panel.series if isinstance(series, Line | Points) for place in series.x]
    known = [place for place in places if isinstance(place, int)]
    return (min(known), max(known)) if known and len(known) == len(places) else None


def finite(value: Number) -> Number:
    """None where there is no number, or none that can be drawn."""
    return value if value is not None and math.isfinite(value) else None


@lru_cache(maxsize=4096)  # the names of series and axes come with every point
def shown(text: str, limit: int = LONGEST) -> str:
    """Text of any origin as one line that every format takes: no control character, no half of a surrogate pair; the
    middle of a long one is left out."""
    kept = "".join(" " if c.isspace() else "�" if unicodedata.category(c) in ("Cc", "Cs", "Co") else c for c in text)
    kept = " ".join(kept.split())
    half = limit // 2
    return kept if len(kept) <= limit else f"{kept[:half]}…{kept[len(kept) - (limit - half - 1) :]}"
