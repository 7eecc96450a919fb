"""Demonstrations in a Zarr v3 group: one flat array per feature, cut into episodes.

    <path>/                     group; attributes: format, fps, robot, features, tasks, provenance, statistics,
                                episodes and segments (see `attributes`)
      episode_ends   (E,)       int64, index one past the last frame of each episode
      segment_ends   (S,)       int64, the same for each segment: frames of one episode that have one task
      segment_task   (S,)       int64, index of a segment's task text
      <feature>      (N, ...)   one row per frame, uncompressed, with a checksum for each chunk (see `rows`)

Feature names are LeRobot's (`observation.state`, `action`, ...). An episode is written data first and counted
last: the attributes `episodes` and `segments` are replaced by one atomic rename, and whatever lies beyond them is an
append that never finished. A kill, or a full disk, therefore loses the episode in flight and nothing else. What
`finish` has ended survives a power cut as well; before, checksums tell what did not reach the disk.
"""

from __future__ import annotations

import math
import os
import shutil
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from jaxtyping import Int
from zarr.storage import LocalStore

from robostack.common.files import refuse_taken, room_needed, sync
from robostack.common.text import one_line
from robostack.datasets.attributes import FORMAT, INDEX, Attributes, check_text
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

FRAMES_AT_ONCE = 64
CHUNK_LEN = 50  # of the relative statistics that are stored; others are measured when they are asked for
ENDS_AT_ONCE = 1 << 16


class EpisodeWriter:
    """Appends whole episodes to a new store; `EpisodeWriter.resume` goes on with an old one.

    Raises FileExistsError when something other than an empty folder is at `path`: a data set is never overwritten.
    Raises DataError for features that cannot be kept, and DiskFullError, from everything that writes.
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
        refuse_taken(self.path)
        attributes = Attributes(FORMAT, fps, robot, self.features, (), dict(provenance or {}), None, 0, 0)
        new = self.path.with_name(f".{self.path.name}.new")  # a kill leaves no store without some of its arrays
        with self._room():
            shutil.rmtree(new, ignore_errors=True)
            try:
                zarr.create_group(store=LocalStore(new), attributes=attributes.to_json())
                for key in INDEX:
                    Rows.create(new, key, (), "int64", is_camera=False)
                for key, feature in features.items():
                    Rows.create(new, key, feature.shape, feature.dtype, feature.is_camera)
                os.replace(new, self.path)
            except BaseException:
                shutil.rmtree(new, ignore_errors=True)
                raise
        self._open(attributes)

    @classmethod
    def resume(cls, path: str | Path) -> EpisodeWriter:
        """Goes on after the last whole episode of the store at `path`. Raises DataError when it is damaged."""
        store = EpisodeStore(path)
        writer = cls.__new__(cls)
        writer.path, writer.features = store.path, dict(store.features)
        writer._open(Attributes.read(store.path))
        return writer

    def _open(self, attributes: Attributes) -> None:
        self._group = zarr.open_group(store=LocalStore(self.path), mode="r+")
        self._tasks, self._provenance = list(attributes.tasks), dict(attributes.provenance)
        self.episodes, self._segments = attributes.episodes, attributes.segments
        self._rows = {key: Rows(self.path, key, "r+") for key in (*INDEX, *self.features)}
        ends = self._rows["episode_ends"].read(max(0, self.episodes - 1), self.episodes)
        self._frames = int(ends[-1]) if len(ends) else 0

    def _room(self) -> AbstractContextManager[None]:
        whole = getattr(self, "episodes", 0)
        return room_needed(self.path, f"its {whole} whole episodes are kept; make room and go on with it")

    def append(
        self, columns: Mapping[str, Column], task: str | Sequence[str], provenance: Mapping[str, Any] | None = None
    ) -> int:
        """Writes one episode of columns (T, *feature.shape); gives its index. `task` is the episode's text, or one a
        frame. Entries of `provenance` replace those of the data set. Raises DataError and writes nothing if a feature
        is missing, unknown, of another shape or length, or not finite."""
        length = check_episode(columns, self.features)
        texts = task_of_each_frame(task, length)
        check_text(*dict.fromkeys(texts))
        with self._room():
            return self._append(columns, length, texts, dict(provenance or {}))

    def _append(self, columns: Mapping[str, Column], length: int, texts: list[str], provenance: dict[str, Any]) -> int:
        start, end = self._frames, self._frames + length
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
        described = self._provenance | provenance
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
        """Brings the data set to the disk and stores its statistics. What is there already survives a failure."""
        with self._room():
            for path in (*self.path.rglob("*"), self.path, self.path.parent):
                sync(path)
            if self.episodes:
                store = EpisodeStore(self.path)
                features = {key: asdict(values) for key, values in store.statistics().items()}
                relative = None
                if store.why_not_relative() is None:
                    relative = {"chunk_len": CHUNK_LEN, "action": asdict(store.relative_statistics(CHUNK_LEN))}
                self._group.update_attributes({"statistics": {"features": features, "relative": relative}})
                sync(self.path / "zarr.json")
                sync(self.path)
        for rows in self._rows.values():
            rows.close()


class EpisodeStore:
    """Reads a store, from any number of threads. Opening reads no frames; everything else reads the rows that are asked
    for.

    Raises DataError in one line when the store is truncated or damaged. Training does not pay for checksums: chunks are
    held to them by `verify` and, while `checks` is true, by `read_episode`, which is how `inspect` and `convert` read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self.checks = Path(path), True
        attributes = Attributes.read(self.path)
        self.format, self.left_out = "robostack", {}
        self.remarks: tuple[str, ...] = ()
        self.fps: float = attributes.fps
        self.robot: str | None = attributes.robot
        self.tasks: tuple[str, ...] = attributes.tasks
        self.provenance: dict[str, Any] = attributes.provenance
        self.features: Mapping[str, Feature] = attributes.features
        self._statistics: dict[str, Any] | None = attributes.statistics
        self._rows = {key: Rows(self.path, key) for key in (*INDEX, *self.features)}
        index = {key: Feature((), "int64") for key in INDEX}
        for key, feature in (index | dict(self.features)).items():
            rows = self._rows[key]
            if rows.shape != feature.shape or rows.dtype != np.dtype(feature.dtype):
                expected, got = f"{feature.shape} {feature.dtype}", f"{rows.shape} {rows.dtype}"
                raise self._damaged(f"expected {key} to have rows of {expected}, got {got}")
        self.episode_ends = self._read_ends("episode_ends", attributes.episodes)
        self._segment_ends = self._read_ends("segment_ends", attributes.segments)
        self._rows["segment_task"].check(attributes.segments)
        self._segment_task = self._rows["segment_task"].read(0, attributes.segments)
        self.frames = int(self.episode_ends[-1]) if self.episodes else 0
        if not set(self.episode_ends.tolist()) <= set(self._segment_ends.tolist()):
            raise self._damaged("an episode does not end with one of its segments")
        if attributes.segments and (self.frames != self._segment_ends[-1] or not self.episodes):
            raise self._damaged("there are segments beyond the last episode")
        if attributes.segments and not 0 <= self._segment_task.min() <= self._segment_task.max() < len(self.tasks):
            raise self._damaged(f"a segment has none of the {len(self.tasks)} tasks")
        for key in self.features:
            self._rows[key].check(self.frames)

    def _read_ends(self, key: str, count: int) -> np.ndarray:
        rows, last, blocks = self._rows[key], 0, [np.empty(0, np.int64)]
        rows.check(count)
        for start in range(0, count, ENDS_AT_ONCE):  # or a file of nothing but holes would fill the memory
            block = rows.read(start, min(count, start + ENDS_AT_ONCE))
            if np.any(np.diff(block, prepend=last) <= 0):
                raise self._damaged(f"the {count} {key} do not rise")
            last = int(block[-1])
            blocks.append(block)
        return np.concatenate(blocks)

    def _damaged(self, what: str) -> DataError:
        return DataError(f"{self.path} is damaged: {what}: restore it from a copy")

    def verify(self, episode: int | None = None) -> None:
        """Holds the chunks that an episode lies in, or all chunks, to their checksums; each only once.

        Raises DataError, naming array and chunk, for the first that does not match: its bytes are not those that were
        written. Stores that were written before there were checksums have none, and pass. Takes 0.3 s a GB.
        """
        start, stop = 0, self.frames
        if episode is not None:
            start, stop = int(self.episode_starts[episode]), int(self.episode_ends[episode])
        counts = {"episode_ends": self.episodes, **dict.fromkeys(INDEX[1:], len(self._segment_ends))}
        for key, rows in self._rows.items():
            rows.verify(0 if key in counts else start, counts.get(key, stop), counts.get(key, self.frames))

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
        """One episode; images are read while they are iterated. Raises DataError where a chunk was changed since."""
        if self.checks:
            self.verify(episode)
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
        stored = {} if self._statistics is None else self._stored_statistics()[0]
        usual = stored or [key for key, feature in self.features.items() if _has_statistics(feature)]
        return {
            key: stored[key] if key in stored else of_columns([(partial(self.read_finite, key), self.frames)])
            for key in (usual if keys is None else keys)
        }

    def relative_statistics(self, chunk_len: int) -> Statistics:
        """Of actions relative to `observation.state` (see `of_relative_actions`) over chunks of `chunk_len` frames: as
        stored for this length, else measured now. Raises DataError when state and action have different entries."""
        if problem := self.why_not_relative():
            raise DataError(problem)
        if self._statistics is not None and chunk_len in (stored := self._stored_statistics()[1]):
            return stored[chunk_len]
        return of_relative_actions([(self.state_and_action, self.lengths.tolist(), chunk_len)])

    def _stored_statistics(self) -> tuple[dict[str, Statistics], dict[int, Statistics]]:
        """Of the features, and of relative actions by length of chunk. Raises DataError when they are damaged."""
        try:
            assert self._statistics is not None
            features, relative = self._statistics["features"], self._statistics["relative"]
            found = {key: Statistics.from_json(features[key]) for key in self.features if key in features}
            moved = {} if relative is None else {relative["chunk_len"]: Statistics.from_json(relative["action"])}
            for key, values in (*found.items(), *(("action", values) for values in moved.values())):
                if len(values.mean) != math.prod(self.features[key].shape):
                    raise ValueError(f"{len(values.mean)} entries of {key}")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self._damaged(f"its statistics cannot be read ({one_line(error, 200)})") from error
        return found, moved

    def state_and_action(self, episode: int) -> tuple[np.ndarray, np.ndarray]:
        """`observation.state` and `action` of one episode, (T, D) each."""
        start, end = int(self.episode_starts[episode]), int(self.episode_ends[episode])
        state, action = (self.read_finite(key, start, end) for key in ("observation.state", "action"))
        return state.reshape(len(state), -1), action.reshape(len(action), -1)

    def why_not_relative(self) -> str | None:
        """None when `action` and `observation.state` hold the same entries, so that one can be taken from the other."""
        if missing := [key for key in ("observation.state", "action") if key not in self.features]:
            return f"{self.path}: relative actions need {missing[0]}, which is not there: use absolute actions"
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
