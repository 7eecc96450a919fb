"""Where LeRobot keeps what: the metadata of a data set and the places of its episodes, in v3.0, v2.1 and v2.0.

    v3.0                                                v2.1 and v2.0
    meta/info.json                                      meta/info.json
    meta/tasks.parquet                                  meta/tasks.jsonl
    meta/episodes/chunk-000/file-000.parquet            meta/episodes.jsonl
    data/chunk-000/file-000.parquet   many episodes     data/chunk-000/episode_000000.parquet
    videos/<key>/chunk-000/file-000.mp4   many          videos/chunk-000/<key>/episode_000000.mp4

Where data and videos lie is said by templates in info.json.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from robostack.datasets.episodes import DataError, Feature

if TYPE_CHECKING:
    import pyarrow as pa

VERSIONS = ("v3.0", "v2.1", "v2.0")
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
FILES_A_CHUNK = 1000
NUMBERS = ("bool", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)), "float32", "float64")
"""The dtypes of numbers that are read and written."""


@dataclass(frozen=True)
class Place:
    """Where an episode lies: its rows in a parquet file, and its first moment in each camera's video, in seconds."""

    data: Path
    first_row: int
    length: int
    videos: Mapping[str, tuple[Path, float]]


@dataclass(frozen=True)
class Metadata:
    """What meta/ says; `described` are the features in LeRobot's words."""

    version: str
    fps: float
    robot: str | None
    described: Mapping[str, Mapping[str, Any]]
    tasks: Mapping[int, str]
    places: Sequence[Place]


def read_metadata(path: Path) -> Metadata:
    """Reads meta/ of the data set at `path`. Raises DataError when it is missing, damaged or of another version."""
    if not (path / "meta/info.json").is_file():
        raise DataError(f"{path} is not a LeRobot data set: expected a folder with meta/info.json")
    try:
        info = json.loads((path / "meta/info.json").read_text())
        version, fps, declared = info["codebase_version"], float(info["fps"]), int(info["total_episodes"])
        described: dict[str, dict[str, Any]] = dict(info["features"])
        robot = None if info.get("robot_type") is None else str(info["robot_type"])
        chunks_size = int(info["chunks_size"])
        if not 0 < fps < 1e6 or chunks_size < 1:
            raise DataError(f"fps {fps} and chunks_size {chunks_size} cannot be")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}/meta/info.json cannot be read ({one_line(error)}): restore it from a copy") from error
    if version not in VERSIONS:
        raise DataError(f"{path}: expected LeRobot {', '.join(VERSIONS)}, got {version}: convert it with LeRobot first")
    try:
        tasks, places = _modern(path, info) if version == "v3.0" else _old(path, info)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}/meta cannot be read ({one_line(error)}): restore it from a copy") from error
    if len(places) != declared:
        raise DataError(
            f"{path}: meta/info.json says {declared} episodes, the table of episodes has {len(places)}: "
            "the recording was cut off or a file is missing; restore it from a copy"
        )
    return Metadata(version, fps, robot, described, tasks, places)


def read_feature(key: str, described: Mapping[str, Any]) -> Feature:
    """A feature in our terms. Raises DataError, saying of what kind it is, for one that has none."""
    dtype, shape, names = described["dtype"], tuple(int(size) for size in described["shape"]), described.get("names")
    if isinstance(names, dict):  # {"motors": [...]}
        names = next(iter(names.values())) if len(names) == 1 else None
    if not isinstance(names, list):
        names = []
    if dtype in ("image", "video"):
        info = described.get("info") or described.get("video_info") or {}
        if info.get("is_depth_map") or info.get("video.is_depth_map"):
            raise DataError("depth")
        # Without names, the axis of three is the colours'.
        channels_first = names[0] in ("channels", "channel") if names else len(shape) == 3 and shape[2] != 3
        height, width, channels = (*shape[1:], shape[0]) if channels_first else shape
        if channels != 3 or min(shape) < 1:
            raise DataError(f"{dtype} of shape {shape}, not RGB")
        return Feature((height, width, 3), "uint8")
    if dtype not in NUMBERS:
        raise DataError(f"dtype {dtype}")
    if key == "timestamp" and shape == (1,):
        shape = ()
    named = len(shape) == 1 and len(names) == shape[0]
    return Feature(shape, dtype, tuple(map(str, names)) if named else ())


def numbers(table: pa.Table, key: str, feature: Feature) -> np.ndarray:
    """A column of a table as (rows, *shape). Raises DataError where it is ragged, missing or of another type."""
    import pyarrow as pa

    column = table.column(key).combine_chunks()
    if isinstance(column, pa.ExtensionArray):  # LeRobot's matrices, where its package has told pyarrow of them
        column = column.storage
    shape: list[int] = []
    while isinstance(column, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray):
        lengths = column.value_lengths() if not isinstance(column, pa.FixedSizeListArray) else [column.type.list_size]
        if column.null_count or len(distinct := set(np.asarray(lengths).tolist())) != 1:
            raise DataError(f"{key}: expected {feature.shape} in every frame, got missing or ragged ones")
        shape.append(distinct.pop())
        column = column.flatten()
    values = column.to_numpy(zero_copy_only=False)
    if column.null_count or values.dtype.kind not in "biuf":
        raise DataError(f"{key}: expected {feature.dtype}, got {column.type} of which {column.null_count} are missing")
    if tuple(shape) != feature.shape and not (tuple(shape) in ((), (1,)) and feature.shape in ((), (1,))):
        raise DataError(f"{key}: expected shape {feature.shape}, got {tuple(shape)}")
    # As LeRobot does, a number is taken as the type that info.json says; a float64 may lose digits by it, no other.
    cast = values.astype(feature.dtype)
    if not values.dtype.kind == cast.dtype.kind == "f" and not np.array_equal(cast, values):
        raise DataError(f"{key}: expected {feature.dtype}, got {values.dtype} that does not fit")
    return cast.reshape(len(table), *feature.shape)


def inside(path: str) -> Path:
    """A path in the data set; raises DataError where it would lead out of it."""
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts:
        raise DataError(f"the path {path} leads out of the data set")
    return Path(pure)


def one_line(error: Exception) -> str:
    """What an exception says, in one line."""
    if isinstance(error, KeyError) and error.args:
        return f"{error.args[0]} is missing"
    return " ".join(str(error).split())[:250] or type(error).__name__


def _modern(path: Path, info: Mapping[str, Any]) -> tuple[dict[int, str], list[Place]]:
    """Tasks and places of v3.0."""
    import pyarrow.parquet as pq

    table = pq.ParquetFile(path / "meta/tasks.parquet").read()
    # The text is pandas' index, whose column has its name, or none.
    texts = table.column("task" if "task" in table.column_names else "__index_level_0__").to_pylist()
    tasks = dict(zip(table.column("task_index").to_pylist(), texts, strict=True))

    cameras = _in_video(info)
    columns = ["episode_index", "length", "dataset_from_index", "dataset_to_index"]
    columns += ["data/chunk_index", "data/file_index"]
    columns += [f"videos/{key}/{part}" for key in cameras for part in ("chunk_index", "file_index", "from_timestamp")]
    rows: list[dict[str, Any]] = []
    for file in sorted((path / "meta/episodes").glob("*/*.parquet")):
        rows += pq.ParquetFile(file).read(columns=columns).to_pylist()  # not the statistics beside them
    places = []
    first_rows: dict[Path, int] = {}  # the index in the data set of each file's first row
    for index, row in enumerate(_in_order(rows)):
        if row["dataset_to_index"] - row["dataset_from_index"] != row["length"]:
            raise DataError(f"episode {index} has the length {row['length']}, but other bounds in the data set")
        data = _place(info, "data_path", **_chunk_and_file(row, "data"))
        first_row = row["dataset_from_index"] - first_rows.setdefault(data, row["dataset_from_index"])
        videos = {}
        for key in cameras:
            file = _place(info, "video_path", video_key=key, **_chunk_and_file(row, f"videos/{key}"))
            videos[key] = (file, float(row[f"videos/{key}/from_timestamp"]))
        places.append(Place(data, first_row, row["length"], videos))
    return tasks, places


def _old(path: Path, info: Mapping[str, Any]) -> tuple[dict[int, str], list[Place]]:
    """Tasks and places of v2.1 and v2.0, where an episode has files of its own."""
    tasks = {int(line["task_index"]): str(line["task"]) for line in _lines(path / "meta/tasks.jsonl")}
    places = []
    for index, row in enumerate(_in_order(_lines(path / "meta/episodes.jsonl"))):
        fields = {"episode_index": index, "episode_chunk": index // int(info["chunks_size"])}
        videos = {key: (_place(info, "video_path", video_key=key, **fields), 0.0) for key in _in_video(info)}
        places.append(Place(_place(info, "data_path", **fields), 0, row["length"], videos))
    return tasks, places


def _in_video(info: Mapping[str, Any]) -> list[str]:
    return [key for key, described in info["features"].items() if described["dtype"] == "video"]


def _in_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a table of episodes by index. Raises DataError unless it has each once, with a length."""
    rows = sorted(rows, key=lambda row: row["episode_index"])
    if [row["episode_index"] for row in rows] != list(range(len(rows))):
        raise DataError(f"expected episodes 0 to {len(rows) - 1}, each once")
    for index, row in enumerate(rows):
        if not isinstance(row["length"], int) or row["length"] < 1:
            raise DataError(f"episode {index} has the length {row['length']}")
    return rows


def _place(info: Mapping[str, Any], template: str, **fields: int | str) -> Path:
    """A path from a template of info.json, in which only these fields may stand, as {name} or {name:03d}."""
    text = str(info[template])
    for _, name, form, conversion in string.Formatter().parse(text):
        if name is not None and (name not in fields or conversion or not re.fullmatch(r"(0\dd)?", form or "")):
            raise DataError(f"{template} of meta/info.json has the unknown field {{{name}}}")
    return inside(text.format(**fields))


def _chunk_and_file(row: Mapping[str, Any], prefix: str) -> dict[str, int | str]:
    return {name: int(row[f"{prefix}/{name}"]) for name in ("chunk_index", "file_index")}


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
