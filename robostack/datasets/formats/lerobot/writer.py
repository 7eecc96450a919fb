"""Writes LeRobot v3.0 without LeRobot. The layout is in `layout`.

While it is written, the data set is a folder of pieces, one folder per episode, each committed by one rename; `finish`
joins them, encoding no picture anew, and meta/info.json, without which nobody sees a data set, is its last file:

    <path>/.robostack/settings.json
    <path>/.robostack/episode-000000/   data.parquet, <camera>.mp4 of each camera in a video, episode.json (statistics)

A kill therefore loses the episode in flight; a kill in `finish` loses nothing, `resume` and `finish` do it again.
While `finish` works, the data lies on the disk twice. Pictures pass one at a time, PNGs in row groups of 64 MB.

LeRobot knows neither shape (), which becomes (1,), nor units: they are kept in robostack.json beside. Depth is kept in
TIFF pictures, as LeRobot does, also where colours are in videos. `timestamp` is written as it was given, or as
frame / fps; a video needs timestamps at the rate, since LeRobot finds frames by them.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from robostack.common.extras import require_extra
from robostack.common.text import one_line
from robostack.datasets.episodes import Column, DataError, Feature, check_episode, task_of_each_frame
from robostack.datasets.formats.lerobot import statistics
from robostack.datasets.formats.lerobot.assembly import Assembly
from robostack.datasets.formats.lerobot.settings import (
    CODECS,
    ROW_GROUP,
    CodecName,
    Images,
    Settings,
    arrow_column,
    check_settings,
    parquet_writer,
    table_schema,
    write_json,
)
from robostack.datasets.formats.origin import FILE
from robostack.datasets.formats.video import exact_rate, write_video

_STAGING = ".robostack"
_TOLERANCE = 1e-4
"""Seconds by which the time of a video's frame may differ from the table's for LeRobot."""


class LeRobotWriter:
    """Meets `Appender`.

    `images` says whether cameras become videos, or PNGs in the table. Of the codecs of videos libx264rgb is lossless,
    and the others need an even height and width. Raises FileExistsError where something is at `path`, DataError where
    LeRobot cannot hold such a feature or rate.
    """

    def __init__(
        self,
        path: str | Path,
        features: Mapping[str, Feature],
        fps: float,
        robot: str | None = None,
        images: Images = "video",
        codec: CodecName = "libsvtav1",
    ) -> None:
        path, settings = Path(path), Settings(dict(features), fps, robot, images, codec)
        if path.exists():
            raise FileExistsError(f"{path} already exists: choose another path or remove it first")
        check_settings(settings)
        # Made whole under another name, so that a kill leaves no folder that can neither be resumed nor made anew.
        new = path.with_name(f".{path.name}.{os.getpid()}.partial")
        (new / _STAGING).mkdir(parents=True)
        write_json(new / _STAGING / "settings.json", asdict(settings))
        write_json(new / FILE, {"features": {key: asdict(feature) for key, feature in features.items()}})
        new.rename(path)
        self._begin(path, settings)

    @classmethod
    def resume(cls, path: Path) -> LeRobotWriter:
        """Goes on with what a killed writer left. Raises DataError where there is nothing of it."""
        path = Path(path)
        try:
            saved = json.loads((path / _STAGING / "settings.json").read_text())
            features = {
                key: Feature(tuple(f["shape"]), f["dtype"], tuple(f["names"]), tuple(f["units"]))
                for key, f in saved["features"].items()
            }
            settings = Settings(**{**saved, "features": features})
        except FileNotFoundError as error:
            finished = (path / "meta/info.json").exists()
            what = "is finished" if finished else "holds no LeRobot data set that was being written"
            raise DataError(f"{path} {what}: nothing to resume") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}/{_STAGING}/settings.json cannot be read ({one_line(error)})") from error
        writer = cls.__new__(cls)
        writer._begin(path, settings)
        return writer

    def _begin(self, path: Path, settings: Settings) -> None:
        for package in ("pyarrow", "av", "PIL"):
            require_extra(package, "data")
        self.path, self._settings, self._staging = path, settings, path / _STAGING
        self.features: Mapping[str, Feature] = settings.features
        self._schema = table_schema(settings)
        self.episodes = self._frames = 0
        self._tasks: dict[str, int] = {}
        while (piece := self._piece(self.episodes)).is_dir():
            described = json.loads((piece / "episode.json").read_text())
            self._tasks = _with_tasks(self._tasks, described["tasks"])
            self.episodes, self._frames = self.episodes + 1, self._frames + described["length"]

    def _piece(self, episode: int) -> Path:
        return self._staging / f"episode-{episode:06d}"

    # One episode

    def append(self, columns: Mapping[str, Column], task: str | Sequence[str]) -> int:
        """Writes one episode and gives its index. Raises DataError, and writes nothing, if it does not fit."""
        if not self._staging.exists():
            raise DataError(f"{self.path} is finished: nothing can be appended")
        length = check_episode(columns, self.features)
        texts = task_of_each_frame(task, length)
        tasks = _with_tasks(self._tasks, texts)
        rows = self._numbers(columns, length)
        rows["task_index"] = np.array([tasks[text] for text in texts])
        partial = self._staging / "partial"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir()
            pictures = {key: statistics.PictureStatistics(self.features[key]) for key in self._settings.cameras}
            passing = {key: self._watched(key, columns[key], pictures[key]) for key in pictures}
            for key in self._settings.in_video:
                codec = CODECS[self._settings.codec]
                write_video(partial / f"{key}.mp4", passing.pop(key), self._settings.fps, codec)
            self._write_rows(partial / "data.parquet", rows, passing)
            described = {
                "length": length,
                "tasks": list(dict.fromkeys(texts)),
                "numbers": {key: statistics.of_numbers([column]) for key, column in rows.items()},
                "pictures": {key: counted.to_json() for key, counted in pictures.items()},
            }
            write_json(partial / "episode.json", described)
            partial.rename(self._piece(self.episodes))
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        self._tasks, self._frames, self.episodes = tasks, self._frames + length, self.episodes + 1
        return self.episodes - 1

    def _numbers(self, columns: Mapping[str, Column], length: int) -> dict[str, np.ndarray]:
        """The columns of numbers but `task_index`."""
        rows = {key: column for key, column in columns.items() if isinstance(column, np.ndarray)}
        rows = {key: column for key, column in rows.items() if not self.features[key].is_camera}
        rate = np.arange(length) / float(exact_rate(self._settings.fps))
        rows.setdefault("timestamp", rate.astype(np.float32))
        off = np.abs(rows["timestamp"] - rate)
        if self._settings.in_video and off.max() > _TOLERANCE / 2:
            frame = int(off.argmax())
            raise DataError(
                f"timestamp {rows['timestamp'][frame]} of frame {frame} is off the rate of {self._settings.fps} a "
                "second, by which LeRobot finds the frames of a video: leave timestamp out, or write images as png"
            )
        rows["frame_index"] = np.arange(length)
        rows["episode_index"] = np.full(length, self.episodes)
        rows["index"] = np.arange(self._frames, self._frames + length)
        return rows

    def _watched(self, key: str, column: Column, found: statistics.PictureStatistics) -> Iterator[np.ndarray]:
        """The frames of a camera, checked and counted as they pass."""
        feature, count, chosen = self.features[key], 0, statistics.sampled(len(column))
        for frame in column:
            if frame.shape != feature.shape or frame.dtype != feature.dtype or count == len(column):
                expected = f"{len(column)} frames of {feature.shape} {feature.dtype}"
                raise DataError(f"{key}: expected {expected}, got {frame.shape} {frame.dtype} as frame {count}")
            if chosen[count]:
                found.add(frame)
            yield frame
            count += 1
        if count != len(column):
            raise DataError(f"{key}: expected {len(column)} frames, got {count}")

    def _write_rows(self, path: Path, rows: Mapping[str, np.ndarray], cameras: Mapping[str, Iterator]) -> None:
        """One row group, or several where the PNGs of `cameras` are large."""
        import pyarrow as pa

        columns = self._settings.columns
        length = len(rows["index"])
        with parquet_writer(path, self._schema) as writer:
            begin, size = 0, 0
            pictures: dict[str, list[dict[str, Any]]] = {key: [] for key in cameras}
            for index in range(length):
                for key, frames in cameras.items():
                    ending = "tiff" if self.features[key].is_depth else "png"
                    pictures[key].append({"bytes": _encoded(next(frames)), "path": f"frame-{index:06d}.{ending}"})
                    size += len(pictures[key][-1]["bytes"])
                if size < ROW_GROUP and index < length - 1:
                    continue
                arrays = {
                    key: pa.array(pictures[key], self._schema.field(key).type)
                    if key in pictures
                    else arrow_column(rows[key][begin : index + 1], columns[key])
                    for key in self._schema.names
                }
                writer.write_table(pa.table(arrays, schema=self._schema))
                begin, size, pictures = index + 1, 0, {key: [] for key in cameras}
        for frames in cameras.values():
            next(frames, None)  # raises where there is one frame too many

    # The whole

    def finish(self) -> None:
        """Joins the episodes to a data set. Raises DataError when there is none."""
        if not self._staging.exists():
            return
        if self.episodes == 0:
            raise DataError(f"{self.path} has no episodes: LeRobot does not open an empty data set")
        for folder in ("data", "videos", "meta"):  # what a `finish` that was killed left
            shutil.rmtree(self.path / folder, ignore_errors=True)
        pieces = [self._piece(episode) for episode in range(self.episodes)]
        Assembly(self.path, self._settings, pieces, self._tasks).write()
        (self._staging / "settings.json").unlink()  # from here on there is nothing to resume
        shutil.rmtree(self._staging)


def _encoded(frame: np.ndarray) -> bytes:
    """A PNG of colours, a TIFF of depth, as LeRobot has it."""
    from PIL import Image

    data = io.BytesIO()
    if frame.dtype == np.uint16:
        Image.fromarray(frame[..., 0]).save(data, "tiff", compression="raw")
    else:
        Image.fromarray(frame).save(data, "png", compress_level=1)  # 2.5 times as fast as 6, and a fifth larger
    return data.getvalue()


def _with_tasks(tasks: Mapping[str, int], texts: Sequence[str]) -> dict[str, int]:
    """The tasks with those of `texts` that are new, numbered in the order they come."""
    numbered = dict(tasks)
    for text in texts:
        numbered.setdefault(text, len(numbered))
    return numbered
