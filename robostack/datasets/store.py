"""Demonstrations in a Zarr v3 group: one flat array a feature, cut into episodes by `episode_ends`.

    <path>/                     group; attributes: format, fps, features, tasks, provenance, episodes
      episode_ends   (E,)       int64, index one past the last frame of each episode
      episode_task   (E,)       int64, index into the task texts
      <feature>      (N, ...)   one row a frame; numbers in chunks of 4,096 rows, images one frame a chunk

Feature names are LeRobot's (`observation.state`, `action`, ...). An episode is written data first and counted
last: the attribute `episodes` is replaced by one atomic rename, and whatever lies beyond it is an append that never
finished. A kill therefore loses the episode in flight and nothing else.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.errors import ChunkNotFoundError

from robostack.datasets.episodes import DataError, Feature, check_episode

FORMAT = "robostack-episodes-1"
ROWS_A_CHUNK = 4096


class EpisodeWriter:
    """Appends whole episodes to a new store.

    Raises FileExistsError when something is already at `path`: a data set is never overwritten.
    """

    def __init__(
        self, path: str | Path, features: Mapping[str, Feature], fps: float, provenance: Mapping[str, Any] | None = None
    ) -> None:
        self.path, self.features = Path(path), dict(features)
        if self.path.exists():
            raise FileExistsError(f"{self.path} already exists: choose another path or remove it first")
        if "action" not in features:
            raise DataError(f"a data set needs the feature 'action', got {sorted(features)}")
        self._tasks: list[str] = []
        self._provenance = dict(provenance or {})
        self._arrays: dict[str, zarr.Array] = {}
        self._episodes = self._frames = 0
        self._group = zarr.create_group(
            store=str(self.path),
            attributes={
                "format": FORMAT,
                "fps": fps,
                "features": {key: asdict(feature) for key, feature in features.items()},
                "provenance": self._provenance,
                "tasks": [],
                "episodes": 0,
            },
        )
        for key in ("episode_ends", "episode_task"):
            self._create(key, (), "int64", ROWS_A_CHUNK)
        for key, feature in features.items():
            self._create(key, feature.shape, feature.dtype, 1 if feature.is_image else ROWS_A_CHUNK)

    def _create(self, key: str, shape: tuple[int, ...], dtype: str, rows: int) -> None:
        # Chunks of zeros are written too: a chunk that is not there is then always a damaged store.
        self._arrays[key] = self._group.create_array(
            key, shape=(0, *shape), chunks=(rows, *shape), dtype=dtype, config={"write_empty_chunks": True}
        )

    def append(self, episode: Mapping[str, np.ndarray], task: str, provenance: Mapping[str, Any] | None = None) -> int:
        """Writes one episode of arrays (T, *feature.shape); gives its index. Entries of `provenance` replace those of
        the data set. Raises DataError and writes nothing if a feature is missing, unknown, of another shape or length,
        or not finite."""
        length = check_episode(episode, self.features)
        start, end = self._frames, self._frames + length
        for key in self.features:
            self._extend(key, start, episode[key])
        if task not in self._tasks:
            self._tasks.append(task)
        self._extend("episode_ends", self._episodes, np.array([end]))
        self._extend("episode_task", self._episodes, np.array([self._tasks.index(task)]))
        self._provenance |= provenance or {}
        self._group.update_attributes(
            {"tasks": self._tasks, "provenance": self._provenance, "episodes": self._episodes + 1}
        )
        self._episodes, self._frames = self._episodes + 1, end
        return self._episodes - 1

    def _extend(self, key: str, start: int, rows: np.ndarray) -> None:
        array = self._arrays[key]
        array.resize((start + len(rows), *array.shape[1:]))
        array[start:] = rows


class EpisodeStore:
    """Reads a store. Opening reads no frames; `read` and `gather` read the rows that are asked for.

    Raises DataError in one line when the store is truncated or damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / "zarr.json").is_file():
            raise DataError(f"{path} is not a robostack data set: expected a folder with zarr.json")
        try:
            self._group = zarr.open_group(store=str(self.path), mode="r")
            attributes: dict[str, Any] = dict(self._group.attrs)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}/zarr.json cannot be read ({_line(error)}): restore it from a copy") from error
        if attributes.get("format") != FORMAT:
            raise DataError(f"{path}: expected format {FORMAT!r}, got {attributes.get('format')!r}")
        self.fps: float = attributes["fps"]
        self.tasks: tuple[str, ...] = tuple(attributes["tasks"])
        self.provenance: dict[str, Any] = attributes["provenance"]
        self.features = {
            key: Feature(tuple(f["shape"]), f["dtype"], tuple(f["names"]), tuple(f["units"]))
            for key, f in attributes["features"].items()
        }
        episodes: int = attributes["episodes"]
        self.episode_ends = self._rows("episode_ends", slice(0, episodes))
        self.episode_task = self._rows("episode_task", slice(0, episodes))
        self.frames = int(self.episode_ends[-1]) if episodes else 0
        lengths = np.diff(self.episode_ends, prepend=0)
        if len(lengths) != episodes or np.any(lengths <= 0):
            raise DataError(f"{path} is damaged: episode_ends of {episodes} episodes does not rise; restore it")
        for key in self.features:
            stored = self._array(key).shape[0]
            if stored < self.frames:
                raise DataError(f"{path} is truncated: {key} has {stored} of {self.frames} frames; restore it")

    @property
    def episodes(self) -> int:
        return len(self.episode_ends)

    @property
    def episode_starts(self) -> np.ndarray:
        return np.concatenate([[0], self.episode_ends[:-1]]).astype(np.int64)

    def require(self, keys: Sequence[str]) -> None:
        """Raises DataError naming the features that are not in the data set."""
        if missing := [key for key in keys if key not in self.features]:
            raise DataError(f"{self.path} lacks {', '.join(missing)}: it has {', '.join(self.features)}")

    def read(self, key: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows [start, stop) of a feature, (stop - start, *shape); all rows of whole episodes by default."""
        self.require([key])
        return self._rows(key, slice(start, self.frames if stop is None else stop))

    def gather(self, key: str, indices: np.ndarray) -> np.ndarray:
        """The rows at `indices` (any shape), (*indices.shape, *shape); each distinct row is read once."""
        self.require([key])
        distinct, inverse = np.unique(indices, return_inverse=True)
        return self._rows(key, distinct)[inverse.reshape(np.shape(indices))]

    def episode(self, index: int) -> dict[str, np.ndarray]:
        """All features of one episode, each (T, *shape)."""
        start, end = int(self.episode_starts[index]), int(self.episode_ends[index])
        return {key: self.read(key, start, end) for key in self.features}

    def _array(self, key: str) -> zarr.Array:
        try:
            array = self._group[key]
        except (KeyError, ValueError) as error:
            raise DataError(f"{self.path} is truncated: array {key} is missing or unreadable; restore it") from error
        assert isinstance(array, zarr.Array)
        return array

    def _rows(self, key: str, rows: slice | np.ndarray) -> np.ndarray:
        # A missing chunk reads as zeros unless zarr is told otherwise; a chunk cut short fails in its codec.
        try:
            with zarr.config.set({"array.read_missing_chunks": False}):
                array = self._array(key)
                return np.asarray(array[rows] if isinstance(rows, slice) else array.oindex[rows])
        except ChunkNotFoundError as error:
            chunk = str(error).splitlines()[-1].split("(")[0].strip()
            raise DataError(f"{self.path} is truncated: {key}: {chunk} is missing; restore it from a copy") from error
        except DataError:
            raise
        except (RuntimeError, ValueError) as error:
            raise DataError(f"{self.path} is truncated: {key}: {_line(error)}; restore it from a copy") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


# zarr warns that dots in array names may not suit other stores; LeRobot's names have dots and folders take them.
warnings.filterwarnings("ignore", message=".*contains.*dot.*", module="zarr")
