"""Where the episodes of a LeRobot data set lie: rows of a table, and windows of videos.

In v3.0 many episodes follow one another in a file. An episode's window of a video must be as long as the episode and
begin where the one before ends: a window that lies elsewhere holds frames of another episode.
"""

from __future__ import annotations

import re
import string
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from robostack.common.files import check_regular, inside, read_json_lines
from robostack.common.text import one_line
from robostack.datasets.episodes import DataError
from robostack.datasets.formats.lerobot.values import listed, real, shown, whole

DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
OLD_DATA_PATH = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
OLD_VIDEO_PATH = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
MOST_EPISODES = 1_000_000
"""Rows of the largest table of episodes or tasks that is read."""


@dataclass(frozen=True)
class Window:
    """Where a camera's frames of an episode are: from `start` to `end` seconds of a video, to its end where that is not
    said."""

    file: Path
    start: float
    end: float | None
    doubt: str = ""
    """Why it cannot be the episode's, if it cannot."""


@dataclass(frozen=True)
class Place:
    """Where an episode lies."""

    number: int
    """The one that the data set gives it; numbers may be missing."""
    data: Path
    first_row: int
    from_index: int
    """Its first frame's place in the data set; 0 where it has a file of its own."""
    length: int
    videos: Mapping[str, Window]
    doubt: str = ""
    """Why it cannot be read, if it cannot."""


@dataclass(frozen=True)
class Places:
    """The episodes in order, what is to be told of them, and cameras whose files cannot be named."""

    places: Sequence[Place]
    remarks: tuple[str, ...]
    unusable: Mapping[str, str] = field(default_factory=dict)


def read_places(path: Path, info: Mapping[str, Any], is_old: bool, fps: float, cameras: Sequence[str]) -> Places:
    """The episodes of the data set at `path`. Those without frames are left out, with a remark; one whose entry is
    damaged has a doubt. Raises DataError or OSError where the tables cannot be read."""
    unusable: dict[str, str] = {}
    zeros: dict[str, int | str] = dict.fromkeys(_fields(is_old), 0)
    _path(info, "data_path", is_old, **zeros)
    for key in cameras:
        try:
            _path(info, "video_path", is_old, video_key=key, **zeros)
        except DataError as error:
            unusable[key] = one_line(error)
    usable = [key for key in cameras if key not in unusable]
    rows = list(_old_rows(path) if is_old else _modern_rows(path, usable))
    remarks = []
    places: dict[int, Place] = {}
    empty = []
    for row in rows:
        number = whole(row.get("episode_index"), "episode_index")
        place = _old_place(number, row, info, usable) if is_old else _modern_place(number, row, info, usable, fps)
        if place.length == 0 and not place.doubt:
            empty.append(number)
        elif number in places and places[number] != place:
            raise DataError(f"episode {number} is listed twice, with other entries")
        else:
            places[number] = place
    declared = info.get("total_episodes")
    if declared is not None and whole(declared, "total_episodes") != len(rows):
        said = (
            f"meta/info.json says {whole(declared, 'total_episodes')} episodes, the table of episodes has {len(rows)}"
        )
        remarks.append(f"{said}: a file may be missing, or the recording was cut off")
    if empty:
        remarks.append(f"without frames, and left out: episode {listed(sorted(empty))}")
    if missing := sorted(set(range(max(places, default=-1) + 1)) - places.keys() - set(empty)):
        remarks.append(f"no such episode: {listed(missing)}; the others are counted without it")
    ordered = [places[number] for number in sorted(places)]
    return Places(_within_windows(_with_first_rows(ordered), usable, fps), tuple(remarks), unusable)


# v3.0


def _modern_rows(path: Path, cameras: Sequence[str]) -> Iterator[dict[str, Any]]:
    wanted = ["episode_index", "length", "dataset_from_index", "dataset_to_index"]
    wanted += ["data/chunk_index", "data/file_index"]
    for key in cameras:
        wanted += [f"videos/{key}/{part}" for part in ("chunk_index", "file_index", "from_timestamp")]
    optional = [f"videos/{key}/to_timestamp" for key in cameras]
    count = 0
    for file in sorted((path / "meta/episodes").glob("*/*.parquet")):
        for row in read_table(file, wanted, optional):
            yield row
            count += 1
            if count > MOST_EPISODES:
                raise DataError(f"meta/episodes has more than {MOST_EPISODES:,} episodes")


def read_table(file: Path, wanted: Sequence[str], optional: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """The rows of some columns of a parquet file. Raises DataError where a wanted one is missing, or for more rows
    than `MOST_EPISODES`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    check_regular(file)
    try:
        table = pq.ParquetFile(file, buffer_size=1 << 20)
        names = table.schema_arrow.names
        if missing := [name for name in wanted if name not in names]:
            raise DataError(f"{file.name} lacks the column {missing[0]}")
        if table.metadata.num_rows > MOST_EPISODES:
            raise DataError(f"{file} has {table.metadata.num_rows:,} rows, expected at most {MOST_EPISODES:,}")
        columns = [*wanted, *(name for name in optional if name in names)]  # not the statistics beside them
        for batch in table.iter_batches(batch_size=1024, columns=columns):
            yield from batch.to_pylist()
    except pa.ArrowException as error:
        raise DataError(f"{file.name}: {one_line(error)}") from error


def _modern_place(
    number: int, row: Mapping[str, Any], info: Mapping[str, Any], cameras: Sequence[str], fps: float
) -> Place:
    data, videos, length, begin = Path(), {}, 0, 0
    try:
        length = whole(row["length"], "its length")
        begin, after = (whole(row[f"dataset_{name}_index"], f"dataset_{name}_index") for name in ("from", "to"))
        if after - begin != length:
            raise DataError(f"it has the length {length}, but bounds in the data set of {after - begin} frames")
        data = _path(info, "data_path", False, **_chunk_and_file(row, "data"))
        for key in cameras:
            file = _path(info, "video_path", False, video_key=key, **_chunk_and_file(row, f"videos/{key}"))
            start, stop = row[f"videos/{key}/from_timestamp"], row.get(f"videos/{key}/to_timestamp")
            start = real(start, f"{key}: from_timestamp")
            end = start + length / fps if stop is None else real(stop, f"{key}: to_timestamp")
            videos[key] = Window(file, start, end)
    except DataError as error:
        return Place(number, data, 0, begin, length, videos, f"its entry in meta/episodes is damaged: {error}")
    return Place(number, data, 0, begin, length, videos)


def _chunk_and_file(row: Mapping[str, Any], prefix: str) -> dict[str, int | str]:
    return {name: whole(row[f"{prefix}/{name}"], f"{prefix}/{name}") for name in ("chunk_index", "file_index")}


def _with_first_rows(places: Sequence[Place]) -> list[Place]:
    """Rows are counted from the first episode that is listed in a file."""
    first: dict[Path, int] = {}
    for place in places:
        if not place.doubt:
            first[place.data] = min(first.get(place.data, place.from_index), place.from_index)
    return [replace(place, first_row=place.from_index - first.get(place.data, 0)) for place in places]


# v2.1 and v2.0, where an episode has files of its own


def _old_rows(path: Path) -> Iterator[dict[str, Any]]:
    rows = read_json_lines(path / "meta/episodes.jsonl")
    if len(rows) > MOST_EPISODES:
        raise DataError(f"meta/episodes.jsonl has {len(rows):,} episodes, expected at most {MOST_EPISODES:,}")
    for row in rows:
        if not isinstance(row, dict):
            raise DataError(f"meta/episodes.jsonl: expected an object a line, got {shown(row)}")
        yield row


def _old_place(number: int, row: Mapping[str, Any], info: Mapping[str, Any], cameras: Sequence[str]) -> Place:
    chunk = number // whole(info.get("chunks_size", 1000), "chunks_size", least=1)
    fields: dict[str, int | str] = {"episode_index": number, "episode_chunk": chunk}
    data = _path(info, "data_path", True, **fields)
    videos = {key: Window(_path(info, "video_path", True, video_key=key, **fields), 0.0, None) for key in cameras}
    try:
        return Place(number, data, 0, 0, whole(row.get("length"), "its length"), videos)
    except DataError as error:
        return Place(number, data, 0, 0, 0, videos, f"its entry in meta/episodes.jsonl is damaged: {error}")


# Paths


def _fields(is_old: bool) -> tuple[str, str]:
    return ("episode_index", "episode_chunk") if is_old else ("chunk_index", "file_index")


def _path(info: Mapping[str, Any], template: str, is_old: bool, **fields: int | str) -> Path:
    """A path from a template of info.json, in which only these fields may stand, as {name} or {name:03d}. Raises
    DataError for another template, or where the path would leave the data set."""
    usual = {"data_path": (DATA_PATH, OLD_DATA_PATH), "video_path": (VIDEO_PATH, OLD_VIDEO_PATH)}[template][is_old]
    text = info.get(template) or usual
    if not isinstance(text, str) or len(text) > 250:
        raise DataError(f"{template} of meta/info.json: expected the form of a path, got {shown(text)}")
    try:
        parts = list(string.Formatter().parse(text))
    except ValueError as error:
        raise DataError(f"{template} of meta/info.json is no form of a path ({one_line(error)})") from error
    for _, name, form, conversion in parts:
        if name is not None and (name not in fields or conversion or not re.fullmatch(r"(0?\d{1,2}d?)?", form or "")):
            raise DataError(f"{template} of meta/info.json has the unknown field {{{shown(name)[1:-1]}}}")
    try:
        found = text.format(**fields)
    except ValueError as error:
        raise DataError(f"{template} of meta/info.json is no form of a path ({one_line(error)})") from error
    try:
        return inside(Path(), found)
    except ValueError as error:
        raise DataError(f"the path {shown(found)} leads out of the data set") from error


# Windows


def _within_windows(places: Sequence[Place], cameras: Sequence[str], fps: float) -> list[Place]:
    """The places, with a doubt on each window that cannot be its episode's."""
    placed = list(places)
    for key in cameras:
        files: defaultdict[Path, list[int]] = defaultdict(list)
        for index, place in enumerate(placed):
            if key in place.videos and place.videos[key].end is not None and not place.doubt:
                files[place.videos[key].file].append(index)
        for inside_file in files.values():
            for index, doubt in _doubts(placed, inside_file, key, fps).items():
                window = replace(placed[index].videos[key], doubt=doubt)
                placed[index] = replace(placed[index], videos={**placed[index].videos, key: window})
    return placed


def _doubts(places: Sequence[Place], inside_file: Sequence[int], key: str, fps: float) -> dict[int, str]:
    """What is wrong with the windows of the episodes in one video, by their index in `places`.

    Every window must begin where the one before ends, the first at 0, to within half a period; where episodes are
    missing in between, later. Who is off at both ends, or too short, is wrong; else it is not known who is, and the
    episodes from there on are doubted, since the beginning of the file is sure.
    """
    half = 0.5 / fps
    order = sorted(inside_file, key=lambda index: (places[index].videos[key].start, places[index].number))
    starts = np.array([places[index].videos[key].start for index in order])
    ends = np.array([places[index].videos[key].end for index in order], float)
    numbers = np.array([places[index].number for index in order])
    lengths = np.array([places[index].length for index in order]) / fps
    follows = np.diff(numbers) == 1
    gaps = np.concatenate([[starts[0]], starts[1:] - ends[:-1]])
    gap_allowed = np.concatenate([[_follows_a_gap(places, order[0], key)], ~follows])
    off = np.where(gap_allowed, gaps < -half, np.abs(gaps) > half)  # off[k]: between k - 1 and k
    off_after = np.append(off[1:], False)
    short = ends - starts < lengths - half
    long = ends - starts > lengths + half
    wrong = short | (long & (off | off_after)) | (off & off_after) | (numbers != np.sort(numbers))
    doubts: dict[int, str] = {}
    lost = False
    for k, index in enumerate(order):
        known = wrong[k] or (k and wrong[k - 1])
        lost = lost or bool(off[k] and not known)
        if wrong[k] or lost:
            window = f"{starts[k]:.4f} to {ends[k]:.4f} s"
            before = f"the one before ends at {ends[k - 1]:.4f} s" if k else "the video begins at 0 s"
            what = f"its window of {key} in the video, {window} for {places[index].length} frames at {fps:g} a second, "
            doubts[index] = (
                f"{what}cannot be its own: {before}; restore meta/episodes, or frames of another episode come"
            )
    return doubts


def _follows_a_gap(places: Sequence[Place], first: int, key: str) -> bool:
    """Whether episodes before the first one of a file are missing, so that it need not begin at 0."""
    return (first > 0 and places[first].number != places[first - 1].number + 1) or (first == 0 and places[0].number > 0)
