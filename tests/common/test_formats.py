"""A description of an earlier version becomes one of this, step by step; of another, it is told what it is."""

from typing import Any

import pytest

from robostack.common.formats import Format


def refuse(values: dict[str, Any]) -> dict[str, Any]:
    if values["kind"] == "blind":
        raise ValueError("it was trained blind: train it again")
    return values


FORMAT = Format(
    "thing", {2: lambda of: {**of, "width": of["size"]}, 3: refuse, 4: lambda of: {**of, "width": 2 * of["width"]}}
)


def test_migrations_run_one_after_the_other() -> None:
    brought = {"format": "thing-5", "size": 3, "kind": "seeing", "width": 6}
    assert FORMAT.brought_up({"format": "thing-2", "size": 3, "kind": "seeing"}) == (brought, 2)
    assert FORMAT.brought_up(brought) == (brought, 5)
    assert FORMAT.brought_up({"format": "thing-4", "width": 4}) == ({"format": "thing-5", "width": 8}, 4)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"format": "thing-6"}, "a later robostack wrote it, in format 'thing-6', and this one reads up to 'thing-5'"),
        ({"format": "thing-1"}, "an early robostack wrote it, in format 'thing-1', and this one reads from 'thing-2'"),
        ({"format": "thing-2", "size": 1, "kind": "blind"}, "it was trained blind: train it again"),
        ({"format": "thing"}, "expected format 'thing-5', got 'thing'"),
        ({"format": "thing-5\n"}, "expected format 'thing-5', got"),
        ({"format": "thing-" + "9" * 5000}, "expected format 'thing-5', got"),
        ({"format": ["thing-5"]}, "expected format 'thing-5', got"),
        ({}, "expected format 'thing-5', got None"),
        ([], "expected an object, got list"),
    ],
)
def test_what_cannot_be_read_is_named_for_what_it_is(values: Any, told: str) -> None:
    with pytest.raises(ValueError) as caught:
        FORMAT.brought_up(values)
    assert str(caught.value).startswith(told) and "\n" not in str(caught.value) and len(str(caught.value)) < 300
