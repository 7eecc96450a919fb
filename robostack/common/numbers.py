"""Bounds of settings: what a flag or a file says is refused before it costs memory or time."""

from __future__ import annotations

from typing import Any


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
