"""Values of metadata that others wrote, taken for what they mean or refused in one line."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from robostack.common.text import printable
from robostack.datasets.episodes import DataError

LARGEST_COUNT = 1 << 48


def whole(value: Any, what: str, least: int = 0) -> int:
    """A count or an index, also where it was written as 3.0 or "3". Raises DataError for anything else, naming
    `what`."""
    number = real(value, what)
    if number != int(number) or not least <= number <= LARGEST_COUNT:
        raise DataError(f"{what}: expected a whole number of at least {least}, got {shown(value)}")
    return int(number)


def real(value: Any, what: str) -> float:
    """A finite number, also where it was written as a text. Raises DataError for anything else, naming `what`."""
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{what}: expected a number, got {shown(value)}")
    return number


def shown(value: Any) -> str:
    """A value as a message shows it: short and printable."""
    text = printable(repr(value))
    return text if len(text) <= 60 else text[:59] + "…"


def listed(numbers: Iterable[int], most: int = 5) -> str:
    """The first few of some numbers: "1, 4, 7 and 20 more"."""
    known = list(numbers)
    more = f" and {len(known) - most} more" if len(known) > most else ""
    return ", ".join(map(str, known[:most])) + more
