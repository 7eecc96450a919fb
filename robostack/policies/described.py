"""What a processor must be, whoever wrote it down: its parts fit each other, and its numbers are possible."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from robostack.common.numbers import check_bounds
from robostack.common.text import printable

if TYPE_CHECKING:
    from robostack.policies.processor import Processor, Robot

MOST_NUMBERS = 1_000_000
"""Of a state or an action."""
LARGEST_SIDE = 16_384
"""Pixels of a camera, either way."""
MOST_WORDS = 10_000
"""Of a task text."""
MOST_IDS = 10_000_000
"""Of a tokenizer."""


def check_described(processor: Processor) -> None:
    """Raises ValueError, in one line, where something does not fit or cannot be."""
    check_bounds(processor, 1, MOST_NUMBERS, "action_dim")
    check_bounds(processor, 1e-6, 1e6, "rate")
    check_bounds(processor.tokenizer, 0, MOST_WORDS, "length")
    check_bounds(processor.tokenizer, 0, MOST_IDS, "size")
    if processor.prompt.tells_state and processor.scaling.normalization == "mean_std":
        raise ValueError("a prompt that tells the state needs it in −1..1: set --normalization to quantiles or min_max")
    check_bounds(processor.scaling, 0.0, 1e30, "smallest_scale")
    if processor.largest_return is not None:
        check_bounds(processor, 1e-300, 1e300, "largest_return")
    for key, size in processor.state.items():
        _within(f"the size of {key}", size, 1, MOST_NUMBERS)
    for name, size in processor.cameras.items():
        for side in size:
            _within(f"a side of the camera {name}", side, 1, LARGEST_SIDE)
    for side in processor.entities or ():
        _within("a side of the entities", side, 1, MOST_NUMBERS)
    if not processor.robots:
        raise ValueError("expected at least one robot, got none")
    sizes = {**processor.state, "action": processor.action_dim}
    for name, robot in processor.robots.items():
        try:
            _check_robot(robot, sizes, processor.cameras)
        except ValueError as error:
            raise ValueError(f"robot {printable(name)}: {error}") from error


def _check_robot(robot: Robot, sizes: Mapping[str, int], cameras: Mapping[str, tuple[int, int]]) -> None:
    if "action" not in robot.places:
        raise ValueError("it has no action")
    if unknown := [key for key in robot.places if key not in sizes] + [c for c in robot.cameras if c not in cameras]:
        raise ValueError(f"{printable(unknown[0])} is none of the policy's features")
    if len(robot.relative) != len(robot.places["action"]):
        raise ValueError(
            f"{len(robot.relative)} entries are said to be relative or not, of {len(robot.places['action'])}"
        )
    for name, scale in robot.depth.items():
        if name not in robot.cameras:
            raise ValueError(f"{printable(name)} measures depth and is none of its cameras")
        _within(f"the unit of {name}", scale, 1e-9, 1e9)
    for what, by_key in (("names", robot.names), ("units", robot.units)):
        for key, told in by_key.items():
            if key not in robot.places or len(told) != len(robot.places[key]):
                raise ValueError(f"it has {len(told)} {what} of {printable(key)}, expected one of each of its entries")
    for key, places in robot.places.items():
        if len(set(places)) != len(places) or not all(0 <= place < sizes[key] for place in places):
            raise ValueError(f"expected different places in 0..{sizes[key] - 1} for {key}, got {str(places)[:60]}")
        if (statistics := robot.statistics.get(key)) is None:
            continue  # told when it is asked for
        for name in ("mean", "std", "min", "max", "q01", "q99"):
            values = getattr(statistics, name)
            if len(values) != len(places):
                raise ValueError(f"{name} of {key} has {len(values)} numbers, expected {len(places)}")
            if not all(map(math.isfinite, values)):
                raise ValueError(f"{name} of {key} is not finite")
        if any(value < 0 for value in statistics.std):
            raise ValueError(f"a deviation of {key} is negative")


def _within(what: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{printable(what)} must be from {low:,} to {high:,}, got {value}")
