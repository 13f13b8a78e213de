"""The scores of an evaluation as they are written: value, interval, number of rows, direction and range."""

from dataclasses import dataclass, field
from typing import Any

from unlearn_pl.metrics.intervals import Interval
from unlearn_pl.metrics.table import Metric


@dataclass
class Scores:
    """Scores by name. What was not measured is not there; what was, and has no value, is there as None."""

    resamples: int
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """Why a value is None, and what else a reader must know."""

    def add(
        self, name: str, metric: Metric, better: str, value: float | None, n: int, interval: Interval = None
    ) -> None:
        """Add a score from ``n`` rows, unless it was not measured."""
        if value is None:
            return
        low, high = (None, None) if interval is None else interval
        self.entries[name] = {"value": value, "low": low, "high": high, "n": n, "better": better, "range": metric.range}

    def undefined(self, name: str, metric: Metric, better: str) -> None:
        """Add a score that was measured and says nothing: no row has one."""
        empty = {"value": None, "low": None, "high": None, "n": 0}
        self.entries[name] = empty | {"better": better, "range": metric.range}

    def value(self, name: str) -> float | None:
        """The score ``name``, None if it was not measured or says nothing."""
        return self.entries[name]["value"] if name in self.entries else None

    def interval(self, name: str) -> Interval:
        """Its interval, None if it has none."""
        entry = self.entries.get(name)
        return None if entry is None or entry["low"] is None else (entry["low"], entry["high"])
