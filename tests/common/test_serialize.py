"""A config comes back from JSON as it went, or not at all."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from robostack.common.serialize import from_json, to_json


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


NESTED: list = []
for _ in range(5000):
    NESTED = [NESTED]
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
        ({"shares": {"a": [0.5, float("inf")]}}, "shares.a.1 is inf"),
        ({"shares": {"a": [0.5, float("nan")]}}, "shares.a.1 is nan"),
        ({"shares": {"a": [10**400]}}, "Outer"),
        ({"inner": {"kind": "two", "size": True}}, "inner.size is True"),
        ({"inner": {"kind": "two", "size": 5.5}}, "inner.size is 5.5"),
        ({"inner": {"kind": "two", "size": "x" * 1000}}, "Outer"),
        ({"path": NESTED}, "Outer"),
    ],
)
def test_what_is_not_exactly_a_config_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as told:
        from_json(Outer, {**to_json(VALUE), **change})
    assert "\n" not in str(told.value) and len(str(told.value)) < 500


def test_what_an_earlier_version_did_not_have_takes_its_default() -> None:
    values = {"inner": {"kind": "two"}, "path": "there"}
    assert from_json(Outer, values, fill=True) == Outer(Inner("two", 3), None, Path("there"))
    for change, message in (({"colour": 1}, "colour"), ({"inner": {"size": "5"}}, "inner.size is '5'")):
        with pytest.raises(ValueError, match=message):
            from_json(Outer, {**values, **change}, fill=True)


def test_a_whole_number_may_stand_for_another() -> None:
    value = from_json(Outer, {**to_json(VALUE), "shares": {"a": [1, 0]}})
    assert value.shares == {"a": (1.0, 0.0)}
