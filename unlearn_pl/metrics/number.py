"""A number that somebody's own code gave: a score, an aggregate or a metric."""

import math
from numbers import Real
from typing import Any

from unlearn_pl.errors import InputError


def number(value: Any, what: str) -> float | None:
    """A number of any kind, NumPy's for one, as JSON can hold it. Raises InputError, beginning with ``what``, unless it
    is finite or None."""
    if value is None:
        return None
    if hasattr(value, "item"):  # of NumPy or torch
        value = value.item()
    if not isinstance(value, Real) or not math.isfinite(value):
        raise InputError(f"{what} must be a finite number or None, got {value!r:.60}")
    return value if isinstance(value, int | float) else float(value)
