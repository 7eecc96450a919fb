"""What a flag or a file says as a number: in its bounds, before it costs memory or time, and finite."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any, TypeGuard


def check_bounds(settings: Any, low: float, high: float, *names: str) -> None:
    """Raises ValueError, naming the setting, unless each of these numbers lies from `low` to `high`; NaN does not.

    An upper bound is far beyond what anybody means; it tells a slip or a damaged file.
    """
    for name in names:
        value = getattr(settings, name)
        if not low <= value:
            raise ValueError(f"{name} must be at least {low:,}, got {value}")
        if value > high:
            raise ValueError(f"{name} must be at most {high:,}, got {value}")


def is_finite(value: Any) -> TypeGuard[float]:
    """Whether this is a number, neither infinite nor NaN, that a float can hold."""
    try:
        return isinstance(value, Real) and math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False
