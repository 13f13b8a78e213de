"""A number that code outside of this package computed: a score or an aggregate of somebody's own benchmark."""

import math
from numbers import Real

from unlearn_pl.errors import InputError


def checked_number(value: object, what: str, unit_range: bool = False) -> float | None:
    """``value``, a number of NumPy as one of Python; None as it is.

    Raises InputError, beginning with ``what``, on NaN, infinities and all that is no number, and with ``unit_range`` on
    what is not in [0, 1]: it would end a long evaluation in its last line, or count in a mean that says nothing.
    """
    if value is None:
        return None
    if isinstance(value, Real) and math.isfinite(value) and (not unit_range or 0.0 <= float(value) <= 1.0):
        return value if type(value) in (int, float) else float(value)  # type: ignore[return-value]
    allowed = "a number in [0, 1]" if unit_range else "a finite number"
    raise InputError(f"{what} must be {allowed} or None, got {value!r:.60}")
