"""A config comes back from JSON as it went, or not at all."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from robostack.serialize import from_json, to_json


@dataclass(frozen=True)
class Inner:
    kind: Literal["one", "two"] = "one"
    size: int = 3


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    crop: tuple[int, int] | None = None
    path: Path = Path("here")
    shares: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


VALUE = Outer(Inner("two", 5), (64, 48), Path("there"), {"a": (0.5, 1.0)})


def test_round_trip() -> None:
    assert from_json(Outer, json.loads(json.dumps(to_json(VALUE)))) == VALUE
    assert from_json(Outer, to_json(Outer())) == Outer()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 1}, "colour"),
        ({"inner": {"kind": "three", "size": 5}}, "three"),
        ({"inner": {"kind": "two", "size": "5"}}, "inner.size is '5'"),
        ({"inner": {"kind": "two"}}, "inner.size is missing"),
        ({"crop": [1, 2, 3]}, "crop|values"),
        ({"shares": None}, "Outer"),
    ],
)
def test_what_is_not_exactly_a_config_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_json(Outer, {**to_json(VALUE), **change})
