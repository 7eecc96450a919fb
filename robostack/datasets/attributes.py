"""What a store says of itself: the attributes of its Zarr group, read once, typed and checked.

A store may come from anybody. What is believed of it here is only its words; that the arrays are there and as large as
it says, `store` and `rows` check.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from robostack.common.files import inside, read_json
from robostack.common.serialize import from_json, to_json
from robostack.common.text import one_line, printable
from robostack.datasets.episodes import DataError, Feature
from robostack.datasets.rows import NUMBER_TYPES

FORMAT = "robostack-episodes-2"
INDEX = ("episode_ends", "segment_ends", "segment_task")
"""Names of the arrays that are no features."""
LARGEST_FPS = 1e6
LONGEST_NAME = 255
"""Bytes between two slashes of a feature's name: it names a folder."""


@dataclass(frozen=True)
class Attributes:
    """Of the Zarr group of a store. Raises DataError where they contradict themselves or name impossible things."""

    format: str
    fps: float
    robot: str | None
    features: dict[str, Feature]
    tasks: tuple[str, ...]
    provenance: dict[str, Any]
    statistics: dict[str, Any] | None
    """None while episodes are added; read by `store` when they are asked for."""
    episodes: int
    segments: int

    def __post_init__(self) -> None:
        if not 0 < self.fps <= LARGEST_FPS:
            raise DataError(f"expected a number of frames a second from 0 to {LARGEST_FPS:g}, got {self.fps}")
        if not 0 <= self.episodes <= self.segments:
            raise DataError(f"expected at least a segment an episode, got {self.segments} of {self.episodes}")
        if not self.features:
            raise DataError("a data set needs a feature, got none")
        check_names(self.features)
        for key, feature in self.features.items():
            if feature.dtype not in NUMBER_TYPES:
                raise DataError(f"{_shown(key)} is of {feature.dtype}, which no Zarr array holds: give it as float64")
        check_text(self.robot or "", json.dumps(self.provenance, ensure_ascii=False), *self.tasks, *self.features)
        for feature in self.features.values():
            check_text(*feature.names, *feature.units)

    def to_json(self) -> dict[str, Any]:
        """As the group keeps them. Raises TypeError where the provenance holds what JSON does not."""
        return to_json(self)

    @staticmethod
    def read(path: Path) -> Attributes:
        """Of the store at `path`. Raises DataError in one line where there is none, or it is not one of ours."""
        if not (path / "zarr.json").exists():
            raise DataError(f"{path} is not a robostack data set: {_what_is_at(path)}")
        try:
            group = read_json(path / "zarr.json")
            values = group["attributes"]
            if not isinstance(values, dict) or group["node_type"] != "group":
                raise ValueError("expected the attributes of a Zarr group")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}/zarr.json cannot be read ({one_line(error, 200)}): restore it from a copy"
            ) from error
        if (named := values.get("format")) != FORMAT:
            raise DataError(f"{path}: expected format {FORMAT!r}, got {_shown(named)}: collect it again")
        try:
            # Others may have added attributes of their own.
            known = {field.name: values[field.name] for field in fields(Attributes) if field.name in values}
            # What from_json would change: 50 frames a second to 50.0; NaN is unlike itself.
            free = {name: known[name] for name in ("fps", "provenance", "statistics")}
            if not isinstance(free["provenance"], dict) or not isinstance(free["statistics"], dict | None):
                raise ValueError("provenance and statistics are expected to be objects")
            typed = {"features": _with_defaults(known["features"]), "provenance": {}, "statistics": None}
            if isinstance(free["fps"], bool):
                raise ValueError("fps is expected to be a number")
            return replace(from_json(Attributes, known | typed), **free)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise DataError(f"{path} is damaged: {one_line(error)}: restore it from a copy") from error


def check_names(names: Iterable[str]) -> None:
    """Raises DataError for a feature's name that cannot name an array: a name may hold anything, and a slash makes
    groups of what stands before it, but it has to stay in the store, beside the other arrays."""
    names = set(names)
    for name in names:
        try:
            inside(Path(), name)
            parts = name.split("/")
            fits = not {"", ".", "zarr.json"} & {*parts} and parts[0] not in INDEX
            fits = fits and max(len(part.encode(errors="surrogatepass")) for part in parts) <= LONGEST_NAME
        except ValueError:
            fits = False
        if not fits:
            raise DataError(f"no feature can have the name {_shown(name)}, which names a file of its own: rename it")
        above = {*accumulate(name.split("/"), lambda one, other: f"{one}/{other}")} - {name}
        if taken := above & names:
            raise DataError(
                f"the features {_shown(taken.pop())} and {_shown(name)} would lie in each other: rename one"
            )


def check_text(*texts: str) -> None:
    """Raises DataError for a text that no file can hold."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{_shown(text)} is no Unicode text: it has a surrogate without its other half") from error


def _with_defaults(features: Any) -> dict[str, Any]:
    """Features as they were written before `Feature` knew of some of its fields."""
    defaults = to_json(Feature((1,), "float32"))
    return {key: defaults | feature if isinstance(feature, Mapping) else feature for key, feature in features.items()}


def _what_is_at(path: Path) -> str:
    if not path.exists():
        return "it does not exist"
    if not path.is_dir() and not path.is_file():
        return "it is neither a folder nor a file"
    if path.is_dir() and next(path.iterdir(), None) is None:
        return "it is an empty folder"
    from robostack.datasets.formats import detect

    try:
        known = detect(path).name
    except (ValueError, OSError):
        return "expected a folder with zarr.json"
    return f"it holds the format {known}; `robostack convert {path} NEW` makes one of it"


def _shown(value: Any) -> str:
    return printable(json.dumps(value)[:80] if isinstance(value, str) else repr(value)[:80])
