"""What meta/ of a LeRobot data set says, in v3.0, v2.1 and v2.0.

    v3.0                                                v2.1 and v2.0
    meta/info.json                                      meta/info.json
    meta/tasks.parquet                                  meta/tasks.jsonl
    meta/episodes/chunk-000/file-000.parquet            meta/episodes.jsonl
    data/chunk-000/file-000.parquet   many episodes     data/chunk-000/episode_000000.parquet
    videos/<key>/chunk-000/file-000.mp4   many          videos/chunk-000/<key>/episode_000000.mp4

Where data and videos lie is said by templates in info.json. What LeRobot does not know, such as units, robostack keeps
in robostack.json, which LeRobot passes over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from robostack.common.files import read_json, read_json_lines
from robostack.common.text import one_line
from robostack.datasets.episodes import DataError, Feature
from robostack.datasets.formats.lerobot.features import StoredFeature
from robostack.datasets.formats.lerobot.places import Place, read_places, read_table
from robostack.datasets.formats.lerobot.values import real, shown, whole
from robostack.datasets.formats.origin import FILE

VERSIONS = ("v3.0", "v2.1", "v2.0")
FILES_A_CHUNK = 1000


@dataclass(frozen=True)
class Metadata:
    """What meta/ says; `described` are the features in LeRobot's words."""

    version: str
    fps: float
    robot: str | None
    described: Mapping[str, Any]
    tasks: Mapping[int, str]
    twice: Mapping[int, tuple[str, str]]
    """Tasks that are listed twice, with other texts."""
    places: Sequence[Place]
    remarks: tuple[str, ...]
    unusable: Mapping[str, str]
    """Cameras whose files cannot be named, and why."""
    own: Mapping[str, Any]
    """What robostack kept beside: shapes, names and units of features."""


def read_metadata(path: Path) -> Metadata:
    """Reads meta/ of the data set at `path`. Raises DataError when it is missing, damaged or of another version."""
    if not (path / "meta/info.json").is_file():
        raise DataError(f"{path} is not a LeRobot data set: expected a folder with meta/info.json")
    try:
        info = read_json(path / "meta/info.json")
        if not isinstance(info, dict):
            raise DataError(f"expected an object, got {shown(info)}")
        version, described, robot = info.get("codebase_version"), info.get("features"), info.get("robot_type")
        if not isinstance(described, dict):
            raise DataError(f"features: expected an object, got {shown(described)}")
        fps = real(info.get("fps"), "fps")
        if not 1e-4 <= fps <= 1e6:
            raise DataError(f"fps {fps} cannot be")
        whole(info.get("chunks_size", FILES_A_CHUNK), "chunks_size", least=1)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}/meta/info.json cannot be read ({one_line(error)}): restore it from a copy") from error
    if version not in VERSIONS:
        expected = f"expected LeRobot {', '.join(VERSIONS)}, got {shown(version).strip(chr(39))}"
        raise DataError(f"{path}: {expected}: convert it with LeRobot first")
    is_old = version != "v3.0"
    cameras = [key for key, some in described.items() if isinstance(some, dict) and some.get("dtype") == "video"]
    try:
        tasks, twice = _tasks(path, is_old)
        found = read_places(path, info, is_old, fps, cameras)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}/meta cannot be read ({one_line(error)}): restore it from a copy") from error
    if not found.places:
        raise DataError(f"{path} has no episodes with frames: the table of episodes has {len(found.places)}")
    known = str(robot) if isinstance(robot, str) and robot not in ("", "unknown") else None
    remarks = (*found.remarks, *(_said_twice(index, texts) for index, texts in twice.items()))
    return Metadata(
        version, fps, known, described, tasks, twice, found.places, remarks, found.unusable, _read_own(path)
    )


def _tasks(path: Path, is_old: bool) -> tuple[dict[int, str], dict[int, tuple[str, str]]]:
    """Task texts by number, and those that have two."""
    rows = read_json_lines(path / "meta/tasks.jsonl") if is_old else _modern_tasks(path / "meta/tasks.parquet")
    tasks: dict[int, str] = {}
    twice: dict[int, tuple[str, str]] = {}
    for row in rows:
        text = row.get("task") if isinstance(row, dict) else None
        if not isinstance(row, dict) or not isinstance(text, str):
            raise DataError(f"meta/tasks: expected task_index and task, got {shown(row)}")
        index = whole(row.get("task_index"), "task_index")
        if tasks.setdefault(index, text) != text:
            twice.setdefault(index, (tasks[index], text))
    return tasks, twice


def _modern_tasks(file: Path) -> list[dict[str, Any]]:
    """The text is pandas' index, whose column has its name, or none."""
    try:
        return list(read_table(file, ["task_index", "task"]))
    except DataError as error:
        if "lacks the column task" not in str(error):
            raise
        rows = list(read_table(file, ["task_index", "__index_level_0__"]))
    return [{"task_index": row["task_index"], "task": row["__index_level_0__"]} for row in rows]


def _said_twice(index: int, texts: tuple[str, str]) -> str:
    return f"meta/tasks lists task {index} twice, as {shown(texts[0])} and as {shown(texts[1])}"


def _read_own(path: Path) -> dict[str, Any]:
    """What robostack kept of a data set that it wrote. It adds to what LeRobot says: where it is missing or damaged,
    there is nothing to add."""
    try:
        own = read_json(path / FILE)
    except (OSError, ValueError):
        return {}
    return own if isinstance(own, dict) else {}


def with_own(key: str, source: StoredFeature, own: Mapping[str, Any]) -> StoredFeature:
    """The shape, names and units that robostack kept of a feature, where they still fit it."""
    try:
        kept = own["features"][key]
        shape = tuple(whole(size, "size", least=1) for size in kept["shape"])
        names, units = (tuple(str(name) for name in kept[what]) for what in ("names", "units"))
        feature = Feature(shape, source.feature.dtype, names, units)
    except (KeyError, TypeError, ValueError):
        return source
    scalars = {(), (1,)}
    same = shape == source.feature.shape or {shape, source.feature.shape} <= scalars
    return replace(source, feature=feature) if same and kept.get("dtype") == source.feature.dtype else source
