"""Frozen dataclasses to JSON values and back, strictly: what is missing, unknown or of another type is an error."""

from __future__ import annotations

import json
from typing import Any

import cattrs

_CONVERTER = cattrs.Converter(forbid_extra_keys=True, detailed_validation=False)


def to_json(value: Any) -> Any:
    """A dataclass, nested ones, tuples, mappings and paths included, as what `json` can write."""
    return json.loads(json.dumps(_CONVERTER.unstructure(value)))


def from_json[T](kind: type[T], values: Any) -> T:
    """Undoes `to_json`. Raises ValueError in one line, naming `kind`, when the values are not exactly those of one."""
    try:
        value = _CONVERTER.structure(values, kind)
    except (cattrs.errors.CattrsError, KeyError, TypeError, AttributeError, ValueError) as error:
        line = " ".join(str(error).split()) or repr(error)
        raise ValueError(f"expected the fields of {kind.__name__}: {line}") from error
    # What was left out would have taken its default, and "3" would have become 3, without a word.
    if (again := to_json(value)) != values:
        raise ValueError(f"expected the fields of {kind.__name__} as it writes them, {_difference(again, values)}")
    return value


def _difference(expected: Any, came: Any, where: str = "") -> str:
    if isinstance(expected, dict) and isinstance(came, dict):
        for key in expected:
            if key not in came:
                return f"{where}{key} is missing"
            if expected[key] != came[key]:
                return _difference(expected[key], came[key], f"{where}{key}.")
    return f"{where.rstrip('.') or 'the whole'} is {came!r}"
