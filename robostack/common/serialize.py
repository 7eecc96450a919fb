"""Frozen dataclasses to JSON values and back, strictly: what is missing, unknown or of another type is an error.

What an earlier robostack wrote may be filled up: a field that it did not have yet takes its default.
"""

from __future__ import annotations

import json
import math
from typing import Any

import cattrs

from robostack.common.text import one_line

_CONVERTER = cattrs.Converter(forbid_extra_keys=True, detailed_validation=False)


def to_json(value: Any) -> Any:
    """A dataclass, nested ones, tuples, mappings and paths included, as what `json` can write."""
    return json.loads(json.dumps(_CONVERTER.unstructure(value)))


def from_json[T](kind: type[T], values: Any, fill: bool = False) -> T:
    """Undoes `to_json`. Raises ValueError in one line, naming `kind`, when the values are not exactly those of one;
    with `fill`, fields that have a default may be missing, in nested ones too."""
    try:
        value = _CONVERTER.structure(values, kind)
        # What was left out has taken its default, and "3" would have become 3, without a word.
        difference = _difference(to_json(value), values, fill)
    except (cattrs.errors.CattrsError, KeyError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise ValueError(f"expected the fields of {kind.__name__}: {one_line(error)}") from error
    except RecursionError as error:
        raise ValueError(f"expected the fields of {kind.__name__}: they are nested too deeply") from error
    if difference:
        raise ValueError(f"expected the fields of {kind.__name__} as it writes them, {difference}")
    return value


def _difference(expected: Any, got: Any, fill: bool, where: str = "") -> str:
    """In words, the first place where two JSON values are not the same, or ""; true is no 1, and 1.5 no whole number,
    but 1 may stand for 1.0. NaN and infinity are never the same: JSON does not have them."""
    if isinstance(expected, dict) and isinstance(got, dict):
        for key in expected:
            if key not in got:
                if fill:
                    continue
                return f"{where}{key} is missing"
            if told := _difference(expected[key], got[key], fill, f"{where}{key}."):
                return told
        unknown = [key for key in got if key not in expected]
        return f"{where}{unknown[0]} is unknown" if unknown else ""
    if isinstance(expected, list) and isinstance(got, list) and len(expected) == len(got):
        for place, (one, other) in enumerate(zip(expected, got, strict=True)):
            if told := _difference(one, other, fill, f"{where}{place}."):
                return told
        return ""
    alike = type(expected) is type(got) or (type(expected), type(got)) == (float, int)
    if alike and expected == got and not (isinstance(got, float) and math.isinf(got)):
        return ""
    return f"{where.rstrip('.') or 'the whole'} is {_shown(got)}"


def _shown(value: Any, longest: int = 60) -> str:
    shown = ascii(value)
    return shown if len(shown) <= longest else f"{shown[: longest - 1]}…"
