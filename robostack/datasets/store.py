"""Demonstrations in a Zarr v3 group: one flat array a feature, cut into episodes.

    <path>/                     group; attributes: format, fps, robot, features, tasks, provenance, statistics,
                                episodes and segments
      episode_ends   (E,)       int64, index one past the last frame of each episode
      segment_ends   (S,)       int64, the same for each segment: frames of one episode that have one task
      segment_task   (S,)       int64, index of a segment's task text
      <feature>      (N, ...)   one row a frame, uncompressed (see `rows`)

Feature names are LeRobot's (`observation.state`, `action`, ...). An episode is written data first and counted
last: the attributes `episodes` and `segments` are replaced by one atomic rename, and whatever lies beyond them is an
append that never finished. A kill therefore loses the episode in flight and nothing else.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from jaxtyping import Int

from robostack.datasets.episodes import (
    Column,
    DataError,
    Episode,
    Feature,
    Frames,
    check_episode,
    in_blocks,
    task_of_each_frame,
)
from robostack.datasets.rows import Rows
from robostack.datasets.statistics import Statistics, of_columns, of_relative_actions

FORMAT = "robostack-episodes-2"
INDEX = ("episode_ends", "segment_ends", "segment_task")
FRAMES_AT_ONCE = 64
CHUNK_LEN = 50  # of the relative statistics that are stored; others are measured when they are asked for


class EpisodeWriter:
    """Appends whole episodes to a new store; `EpisodeWriter.resume` goes on with an old one.

    Raises FileExistsError when something is already at `path`: a data set is never overwritten.
    """

    def __init__(
        self,
        path: str | Path,
        features: Mapping[str, Feature],
        fps: float,
        provenance: Mapping[str, Any] | None = None,
        robot: str | None = None,
    ) -> None:
        self.path, self.features = Path(path), dict(features)
        if self.path.exists():
            raise FileExistsError(f"{self.path} already exists: choose another path or remove it first")
        if "action" not in features:
            raise DataError(f"a data set needs the feature 'action', got {sorted(features)}")
        attributes = {
            "format": FORMAT,
            "fps": fps,
            "robot": robot,
            "features": {key: asdict(feature) for key, feature in features.items()},
            "tasks": [],
            "provenance": dict(provenance or {}),
            "statistics": None,
            "episodes": 0,
            "segments": 0,
        }
        zarr.create_group(store=str(self.path), attributes=attributes)
        for key in INDEX:
            Rows.create(self.path, key, (), "int64", is_image=False)
        for key, feature in features.items():
            Rows.create(self.path, key, feature.shape, feature.dtype, feature.is_camera)
        self._open()

    @classmethod
    def resume(cls, path: str | Path) -> EpisodeWriter:
        """Goes on after the last whole episode of the store at `path`. Raises DataError when it is damaged."""
        store = EpisodeStore(path)
        writer = cls.__new__(cls)
        writer.path, writer.features = store.path, store.features
        writer._open()
        return writer

    def _open(self) -> None:
        self._group = zarr.open_group(store=str(self.path), mode="r+")
        attributes: dict[str, Any] = dict(self._group.attrs)
        self._tasks, self._provenance = list(attributes["tasks"]), dict(attributes["provenance"])
        self.episodes: int = attributes["episodes"]
        self._segments: int = attributes["segments"]
        self._rows = {key: Rows(self.path / key, "r+") for key in (*INDEX, *self.features)}
        ends = self._rows["episode_ends"].read(max(0, self.episodes - 1), self.episodes)
        self._frames = int(ends[-1]) if len(ends) else 0

    def append(
        self, columns: Mapping[str, Column], task: str | Sequence[str], provenance: Mapping[str, Any] | None = None
    ) -> int:
        """Writes one episode of columns (T, *feature.shape); gives its index. `task` is the episode's text, or one a
        frame. Entries of `provenance` replace those of the data set. Raises DataError and writes nothing if a feature
        is missing, unknown, of another shape or length, or not finite."""
        length = check_episode(columns, self.features)
        start, end = self._frames, self._frames + length
        texts = task_of_each_frame(task, length)
        changes = [i for i in range(1, length) if texts[i] != texts[i - 1]]
        known = list(dict.fromkeys((*self._tasks, *texts)))
        for key in self.features:
            column = columns[key]
            blocks = [column] if isinstance(column, np.ndarray) else in_blocks(column, FRAMES_AT_ONCE)
            if (written := self._rows[key].write(start, blocks)) != end:
                raise DataError(f"{key}: expected {length} frames, got {written - start}: the source ends early")
        segments = np.array([*changes, length], np.int64) + start
        tasks = np.array([known.index(texts[i]) for i in (0, *changes)], np.int64)
        self._rows["episode_ends"].write(self.episodes, [np.array([end], np.int64)])
        self._rows["segment_ends"].write(self._segments, [segments])
        self._rows["segment_task"].write(self._segments, [tasks])
        counts = {"episode_ends": self.episodes + 1, **dict.fromkeys(INDEX[1:], self._segments + len(segments))}
        for key, rows in self._rows.items():
            rows.resize(counts.get(key, end))
        described = self._provenance | dict(provenance or {})
        self._group.update_attributes(
            {
                "tasks": known,
                "provenance": described,
                "statistics": None,  # those of fewer episodes
                "episodes": counts["episode_ends"],
                "segments": counts["segment_ends"],
            }
        )
        self._tasks, self._provenance = known, described
        self.episodes, self._segments, self._frames = counts["episode_ends"], counts["segment_ends"], end
        return self.episodes - 1

    def finish(self) -> None:
        """Stores the statistics of the data set, and brings all of it to the disk."""
        if self.episodes:
            store = EpisodeStore(self.path)
            features = {key: asdict(values) for key, values in store.statistics().items()}
            relative = None
            if store.why_not_relative() is None:
                relative = {"chunk_len": CHUNK_LEN, "action": asdict(store.relative_statistics(CHUNK_LEN))}
            self._group.update_attributes({"statistics": {"features": features, "relative": relative}})
        for rows in self._rows.values():
            rows.flush()
            rows.close()


class EpisodeStore:
    """Reads a store. Opening reads no frames; everything else reads the rows that are asked for.

    Raises DataError in one line when the store is truncated or damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / "zarr.json").is_file():
            raise DataError(f"{path} is not a robostack data set: expected a folder with zarr.json")
        try:
            attributes: dict[str, Any] = dict(zarr.open_group(store=str(self.path), mode="r").attrs)
        except (ValueError, KeyError, TypeError) as error:
            line = " ".join(str(error).split())[:200]
            raise DataError(f"{path}/zarr.json cannot be read ({line}): restore it from a copy") from error
        if attributes.get("format") != FORMAT:
            raise DataError(f"{path}: expected format {FORMAT!r}, got {attributes.get('format')!r}: collect it again")
        self.format, self.left_out = "robostack", {}
        self.remarks: tuple[str, ...] = ()
        self.fps: float = attributes["fps"]
        self.robot: str | None = attributes["robot"]
        self.tasks: tuple[str, ...] = tuple(attributes["tasks"])
        self.provenance: dict[str, Any] = attributes["provenance"]
        self.features = {
            key: Feature(tuple(f["shape"]), f["dtype"], tuple(f["names"]), tuple(f["units"]))
            for key, f in attributes["features"].items()
        }
        self._statistics: dict[str, Any] | None = attributes["statistics"]
        self._rows = {key: Rows(self.path / key) for key in (*INDEX, *self.features)}
        counts = {"episode_ends": attributes["episodes"], **dict.fromkeys(INDEX[1:], attributes["segments"])}
        for key in INDEX:
            self._rows[key].check(counts[key])
        self.episode_ends, self._segment_ends, self._segment_task = (
            self._rows[key].read(0, counts[key]) for key in INDEX
        )
        self.frames = int(self.episode_ends[-1]) if self.episodes else 0
        for ends in (self.episode_ends, self._segment_ends):
            if np.any(np.diff(ends, prepend=0) <= 0) or (len(ends) and ends[-1] != self.frames):
                raise DataError(f"{path} is damaged: the ends of {self.episodes} episodes do not rise; restore it")
        for key in self.features:
            self._rows[key].check(self.frames)

    @property
    def episodes(self) -> int:
        return len(self.episode_ends)

    @property
    def finished(self) -> bool:
        """Whether its writer has ended it: one that was interrupted has stored no statistics."""
        return self._statistics is not None

    def select(self, keys: Collection[str]) -> None:
        """From now on only these features are there."""
        self.features = {key: feature for key, feature in self.features.items() if key in keys}

    @property
    def episode_starts(self) -> np.ndarray:
        return np.concatenate([[0], self.episode_ends[:-1]]).astype(np.int64)

    def require(self, keys: Iterable[str]) -> None:
        """Raises DataError naming the features that are not in the data set."""
        if missing := [key for key in keys if key not in self.features]:
            raise DataError(f"{self.path} lacks {', '.join(missing)}: it has {', '.join(self.features)}")

    @property
    def lengths(self) -> np.ndarray:
        """Frames of each episode."""
        return self.episode_ends - self.episode_starts

    def length(self, episode: int) -> int:
        """Frames of one episode."""
        return int(self.lengths[episode])

    def read(self, key: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows [start, stop) of a feature, (stop - start, *shape); all rows of whole episodes by default."""
        self.require([key])
        return self._rows[key].read(start, self.frames if stop is None else stop)

    def read_finite(self, key: str, start: int, stop: int) -> np.ndarray:
        """As `read`; raises DataError, naming episode and frame, for numbers that are not finite."""
        rows = self.read(key, start, stop)
        if rows.dtype.kind == "f" and not np.isfinite(rows).all():
            frame = start + int(np.argwhere(~np.isfinite(rows))[0][0])
            episode = int(np.searchsorted(self.episode_ends, frame, side="right"))
            where = f"in episode {episode} at frame {frame - int(self.episode_starts[episode])}"
            raise DataError(f"{self.path}: {key} is not finite {where}: drop or repair it")
        return rows

    def gather(self, key: str, frames: Int[np.ndarray, " batch"]) -> np.ndarray:
        """The rows of a feature at `frames`, (batch, *shape)."""
        return self.windows(key, frames, 1)[:, 0]

    def windows(self, key: str, starts: Int[np.ndarray, " batch"], length: int) -> np.ndarray:
        """Rows [start, start + length) of a feature for each start, (batch, length, *shape)."""
        self.require([key])
        return self._rows[key].windows(starts, length)

    def tasks_at(self, frames: Int[np.ndarray, " batch"]) -> Int[np.ndarray, " batch"]:
        """Index of the task text of each frame."""
        return self._segment_task[np.searchsorted(self._segment_ends, frames, side="right")]

    def episode(self, index: int) -> dict[str, np.ndarray]:
        """All features of one episode, each (T, *shape)."""
        start, end = int(self.episode_starts[index]), int(self.episode_ends[index])
        return {key: self.read(key, start, end) for key in self.features}

    def read_episode(self, episode: int) -> Episode:
        """One episode; images are read while they are iterated."""
        start, end = int(self.episode_starts[episode]), int(self.episode_ends[episode])
        columns: dict[str, Column] = {}
        for key, feature in self.features.items():
            if feature.is_camera:
                height, width, channels = feature.shape
                read = partial(self._frames, key, start, end)
                columns[key] = Frames((end - start, height, width, channels), read, dtype=np.dtype(feature.dtype))
            else:
                columns[key] = self.read(key, start, end)
        return Episode(columns, [self.tasks[task] for task in self.tasks_at(np.arange(start, end))])

    def _frames(self, key: str, start: int, end: int) -> Iterator[np.ndarray]:
        for first in range(start, end, FRAMES_AT_ONCE):
            yield from self.read(key, first, min(end, first + FRAMES_AT_ONCE))

    def statistics(self, keys: Collection[str] | None = None) -> dict[str, Statistics]:
        """Of these features, by default of every number or vector of numbers: as the writer stored them, else measured
        now. The entries of a matrix stand row by row. Raises DataError for cameras, and numbers that are not finite."""
        stored = {} if self._statistics is None else self._statistics["features"]
        usual = stored or [key for key, feature in self.features.items() if _has_statistics(feature)]
        return {
            key: Statistics.from_json(stored[key])
            if key in stored
            else of_columns([(partial(self.read_finite, key), self.frames)])
            for key in (usual if keys is None else keys)
        }

    def relative_statistics(self, chunk_len: int) -> Statistics:
        """Of actions relative to `observation.state` (see `of_relative_actions`) over chunks of `chunk_len` frames: as
        stored for this length, else measured now. Raises DataError when state and action have not the same entries."""
        if problem := self.why_not_relative():
            raise DataError(problem)
        relative = (self._statistics or {}).get("relative")
        if relative is not None and relative["chunk_len"] == chunk_len:
            return Statistics.from_json(relative["action"])
        return of_relative_actions([(self.state_and_action, self.lengths.tolist(), chunk_len)])

    def state_and_action(self, episode: int) -> tuple[np.ndarray, np.ndarray]:
        """`observation.state` and `action` of one episode, (T, D) each."""
        start, end = int(self.episode_starts[episode]), int(self.episode_ends[episode])
        state, action = (self.read_finite(key, start, end) for key in ("observation.state", "action"))
        return state.reshape(len(state), -1), action.reshape(len(action), -1)

    def why_not_relative(self) -> str | None:
        """None when `action` and `observation.state` hold the same entries, so that one can be taken from the other."""
        if "observation.state" not in self.features:
            return f"{self.path}: relative actions need observation.state, which is not there: use absolute actions"
        state, action = self.features["observation.state"], self.features["action"]
        if state.shape == action.shape and (state.names == action.names or not state.names or not action.names):
            return None
        return (
            f"{self.path}: relative actions need the same entries in action and observation.state, got "
            f"{action.names or action.shape} and {state.names or state.shape}: use absolute actions"
        )


def _has_statistics(feature: Feature) -> bool:
    """Whether a feature's statistics are stored; those of others are measured when they are asked for."""
    return len(feature.shape) <= 1 and np.dtype(feature.dtype).kind in "fiu"


# zarr warns that dots in array names may not suit other stores; LeRobot's names have dots and folders take them.
warnings.filterwarnings("ignore", message=".*contains.*dot.*", module="zarr")
