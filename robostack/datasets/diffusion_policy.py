"""Diffusion Policy's replay buffer: a Zarr v2 group, as a folder or (to read) as a zip file, as UMI ships it.

    <path>/                  group; attributes of ours: fps, robot, features, tasks, episode_task
      meta/episode_ends      (E,)      int64, index one past the last frame of each episode
      data/<name>            (N, ...)  one row a frame

`action`, `timestamp` and `next.*` keep their names. Cameras, uint8 or whole numbers 0..255 in floats (N, H, W, 3), are
observation.images.<name>, the rest observation.<name>. Names and types are kept in provenance["source"], from which
the writer gives them back. `episode_ends` is written last: rows beyond it, and a zero at its end, are an append that
never finished.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numcodecs import Blosc
from zarr.errors import ChunkNotFoundError
from zarr.storage import LocalStore, ZipStore

from robostack.datasets.episodes import (
    IMAGES,
    Column,
    DataError,
    Episode,
    Feature,
    Frames,
    check_episode,
    in_blocks,
    task_of_each_frame,
)
from robostack.datasets.origin import checked, lasting

# What Diffusion Policy calls "disk"; any Zarr library reads it. Its own data has some hundred frames in a chunk.
_COMPRESSOR = Blosc("zstd", clevel=5, shuffle=Blosc.BITSHUFFLE)
_ROWS_A_CHUNK, _IMAGE_CHUNK_BYTES, _FRAMES_AT_ONCE = 4096, 4 << 20, 32

_Known = tuple[str | None, tuple[str, ...], tuple[str, ...]]
"""Key, names and units of a feature, as far as they were written beside the data."""


class DiffusionPolicyReader:
    """Reads a replay buffer; `drop` leaves features out, also such as cannot be read.

    Opening reads no frames, except one of an array of floats (N, H, W, 3), to see whether it is a camera.
    """

    format = "Diffusion Policy Zarr"

    def __init__(self, path: str | Path, drop: Sequence[str] = ()) -> None:
        self.path = Path(path)
        names, self._store = _open(self.path)
        self._arrays: dict[str, zarr.Array] = {}
        # Entries that were never written are zeros, which no end can be.
        ends = self._read("meta/episode_ends", slice(None), missing_chunks=True)
        if ends.ndim != 1 or ends.dtype.kind not in "iu":
            raise DataError(f"{path}: meta/episode_ends: expected whole numbers (E,), got {ends.shape} {ends.dtype}")
        self._ends = ends.astype(np.int64)[: -1 if len(ends) and ends[-1] == 0 else None]
        self._starts = np.concatenate([[0], self._ends[:-1]])
        self._rising = (self._ends > self._starts) & (self._starts >= np.maximum.accumulate(self._starts))
        self.fps, self.robot, self._tasks, described, noted = self._attributes()
        features: dict[str, Feature] = {}
        self._names: dict[str, str] = {}
        self.left_out: dict[str, str] = {}
        self.remarks: tuple[str, ...] = ()
        unused = set(drop)
        for name in names:
            known = described.get(name, (None, (), ()))
            possible = {known[0] or name, f"observation.{name}", IMAGES + name}
            if possible & set(drop):
                unused -= possible
                continue
            key, feature = self._feature(name, known)
            if key in features:
                raise DataError(f"{path}: data/{name} and data/{self._names[key]} would both be {key}: drop one")
            features[key], self._names[key] = feature, name
        if unused:
            raise DataError(f"{path} has no {', '.join(sorted(unused))} to drop: it has {', '.join(features)}")
        self.features: Mapping[str, Feature] = features
        arrays = {key: [name, self._array(f"data/{name}").dtype.name] for key, name in self._names.items()}
        self.provenance: Mapping[str, Any] = {**noted, "source": {"format": self.format, "arrays": arrays}}

    @property
    def episodes(self) -> int:
        return len(self._ends)

    def select(self, keys: Collection[str]) -> None:
        self.features = {key: feature for key, feature in self.features.items() if key in keys}

    def length(self, episode: int) -> int:
        start, stop = self._bounds(episode)
        return stop - start

    def read_episode(self, episode: int) -> Episode:
        start, stop = self._bounds(episode)
        columns: dict[str, Column] = {}
        for key, feature in self.features.items():
            if key.startswith(IMAGES):
                self._check_rows(key, episode)
                height, width, channels = feature.shape
                columns[key] = Frames((stop - start, height, width, channels), partial(self._frames, key, episode))
            else:
                columns[key] = self._rows(key, episode, start, stop).astype(feature.dtype, copy=False)
        text = self._tasks[episode] if episode < len(self._tasks) else ""
        return Episode(columns, [text] * (stop - start))

    def _feature(self, name: str, known: _Known) -> tuple[str, Feature]:
        array, (key, names, units) = self._array(f"data/{name}"), known
        if array.dtype.kind not in "fiub" or not array.ndim:
            raise DataError(f"{self.path}: data/{name} holds {array.dtype}, not numbers: drop observation.{name}")
        if key is None:
            plain = name == "action" or name == "timestamp" or name.startswith("next.")
            key = name if plain else f"{IMAGES if self._is_camera(array, name) else 'observation.'}{name}"
        shape = array.shape[1:]
        if key.startswith(IMAGES) or (array.dtype == np.uint8 and len(shape) == 3):
            if len(shape) != 3 or shape[2] != 3:
                expected = "expected pictures (frames, height, width, 3)"
                raise DataError(f"{self.path}: data/{name}: {expected}, got {array.shape}: drop observation.{name}")
            return key, Feature(shape, "uint8")
        return key, Feature(shape, array.dtype.name, names, units)

    def _is_camera(self, array: zarr.Array, name: str) -> bool:
        if array.ndim != 4 or array.dtype.kind != "f" or array.shape[3] != 3:
            return array.ndim == 4 and array.dtype == np.uint8
        for end in self._ends.tolist():
            if 0 < end <= array.shape[0]:
                try:
                    return _pixels(self._read(f"data/{name}", slice(end - 1, end))) is not None
                except DataError:
                    continue
        return False

    def _bounds(self, episode: int) -> tuple[int, int]:
        if not 0 <= episode < len(self._ends):
            raise IndexError(f"episode {episode} of {len(self._ends)}")
        start, stop = int(self._starts[episode]), int(self._ends[episode])
        if not self._rising[episode]:
            raise DataError(f"{self.path}, episode {episode}: episode_ends does not rise ({start}, {stop}): repair it")
        return start, stop

    def _check_rows(self, key: str, episode: int) -> None:
        stored, stop = self._array(f"data/{self._names[key]}").shape[0], self._bounds(episode)[1]
        if stored < stop:
            where = f"{self.path}, episode {episode}"
            raise DataError(f"{where} is truncated: data/{self._names[key]} has {stored} of {stop} frames")

    def _rows(self, key: str, episode: int, start: int, stop: int) -> np.ndarray:
        self._check_rows(key, episode)
        try:
            return self._read(f"data/{self._names[key]}", slice(start, stop))
        except DataError as error:
            raise DataError(f"{self.path}, episode {episode}: {error}: restore it or leave it out") from error

    def _frames(self, key: str, episode: int) -> Iterator[np.ndarray]:
        start, stop = self._bounds(episode)
        chunk = self._array(f"data/{self._names[key]}").chunks[0]
        at_once = chunk * max(1, _FRAMES_AT_ONCE // chunk)  # whole chunks: none is decoded twice
        while start < stop:
            block = self._rows(key, episode, start, min(stop, start + at_once - start % at_once))
            pixels = _pixels(block)
            if pixels is None:
                frames = f"frames {start} to {start + len(block) - 1}"
                raise DataError(f"{self.path}, episode {episode}: {key}: {frames} are not whole numbers 0..255")
            yield from pixels
            start += len(block)

    def _read(self, name: str, rows: slice, missing_chunks: bool = False) -> np.ndarray:
        array = self._array(name, missing_chunks)
        try:
            return np.asarray(array[rows])
        except ChunkNotFoundError as error:
            raise DataError(f"{name}: {str(error).splitlines()[-1].split('(')[0].strip()} is missing") from error
        except Exception as error:  # every codec and the zip file have errors of their own
            raise DataError(f"{name} is truncated or damaged ({_line(error)})") from error

    def _array(self, name: str, missing_chunks: bool = False) -> zarr.Array:
        if name not in self._arrays:
            try:
                # A missing chunk reads as zeros unless zarr is told otherwise.
                with zarr.config.set({"array.read_missing_chunks": missing_chunks}):
                    self._arrays[name] = zarr.open_array(store=self._store, path=name, mode="r", zarr_format=2)
            except Exception as error:
                raise DataError(f"{self.path}: {name} cannot be opened ({_line(error)}): drop or restore it") from error
        return self._arrays[name]

    def _attributes(self) -> tuple[float | None, str | None, list[str], dict[str, _Known], dict[str, Any]]:
        """What we wrote beside the data: fps, robot, the task of each episode, the features by array names, and where
        it is from."""
        try:
            attributes: dict[str, Any] = dict(zarr.open_group(store=self._store, mode="r", zarr_format=2).attrs)
            fps, robot, texts = (attributes.get(key) for key in ("fps", "robot", "tasks"))
            tasks = [str(texts[i]) for i in attributes.get("episode_task", ())] if texts else []
            described: dict[str, _Known] = {
                name: (str(entry["key"]), tuple(map(str, entry["names"])), tuple(map(str, entry["units"])))
                for name, entry in attributes.get("features", {}).items()
            }
            noted = checked(attributes.get("provenance", {}))
            return None if fps is None else float(fps), None if robot is None else str(robot), tasks, described, noted
        except Exception as error:
            raise DataError(f"{self.path}: its attributes cannot be read ({_line(error)}): restore it") from error


class DiffusionPolicyWriter:
    """Writes a replay buffer. Arrays have the names and types of provenance["source"]["arrays"] where it tells them.

    Raises DataError when two features would have one name, before anything is written.
    """

    def __init__(
        self,
        path: str | Path,
        features: Mapping[str, Feature],
        fps: float | None,
        robot: str | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        path, arrays = Path(path), _names_and_dtypes(features, provenance or {})
        if path.exists():
            raise FileExistsError(f"{path} already exists: choose another path or remove it first")
        described = {
            arrays[key][0]: {"key": key, "names": feature.names, "units": feature.units}
            for key, feature in features.items()
        }
        attributes = {"fps": fps, "robot": robot, "features": described, "tasks": [], "episode_task": []}
        attributes["provenance"] = lasting(provenance or {})
        root = zarr.create_group(store=str(path), zarr_format=2, attributes=attributes)
        data, meta = root.create_group("data"), root.create_group("meta")
        # Chunks of zeros are written too: a chunk that is not there is then always damage.
        config: Any = {"write_empty_chunks": True}
        for key, feature in features.items():
            name, dtype = arrays[key]
            size = math.prod(feature.shape) * np.dtype(dtype).itemsize
            rows = max(1, min(64, _IMAGE_CHUNK_BYTES // size)) if feature.is_image else _ROWS_A_CHUNK
            data.create_array(
                name,
                shape=(0, *feature.shape),
                chunks=(rows, *feature.shape),
                dtype=dtype,
                compressors=_COMPRESSOR,
                config=config,
            )
        meta.create_array("episode_ends", shape=(0,), chunks=(_ROWS_A_CHUNK,), dtype="int64", compressors=None)
        self._start(path)

    @classmethod
    def resume(cls, path: Path) -> DiffusionPolicyWriter:
        """Goes on after the last whole episode; what lies beyond it is cut off."""
        writer = cls.__new__(cls)
        writer._start(path)
        return writer

    def _start(self, path: Path) -> None:
        reader = DiffusionPolicyReader(path)
        self.path, self.features, self.episodes = path, dict(reader.features), reader.episodes
        self._frames = sum(reader.length(episode) for episode in range(self.episodes))
        self._root = zarr.open_group(store=str(path), mode="r+", zarr_format=2)
        attributes: dict[str, Any] = dict(self._root.attrs)
        self._tasks, self._episode_task = attributes["tasks"], attributes["episode_task"][: self.episodes]
        self._arrays = {
            key: zarr.open_array(
                store=str(path), path=f"data/{name}", mode="r+", zarr_format=2, config={"write_empty_chunks": True}
            )
            for key, (name, _) in reader.provenance["source"]["arrays"].items()
        }
        self._ends = zarr.open_array(store=str(path), path="meta/episode_ends", mode="r+", zarr_format=2)
        self._ends.resize((self.episodes,))

    def append(self, columns: Mapping[str, Column], task: str | Sequence[str]) -> int:
        length = check_episode(columns, self.features)
        texts = set(task_of_each_frame(task, length))
        if len(texts) > 1:
            raise DataError(f"Diffusion Policy's Zarr holds one task text an episode, got {len(texts)}")
        start, end = self._frames, self._frames + length
        for key, array in self._arrays.items():
            array.resize((end, *array.shape[1:]))
            column = columns[key]
            if not self.features[key].is_image:
                array[start:] = np.asarray(column)
                continue
            row, chunk = start, array.chunks[0]
            # Up to a border of chunks at a time: all but the first and last chunk of an episode are written once.
            for block in in_blocks(column, chunk, first=chunk - start % chunk):
                if row + len(block) > end:
                    raise DataError(f"{key} has more than {length} frames")
                array[row : row + len(block)] = block
                row += len(block)
            if row != end:
                raise DataError(f"{key} ends after {row - start} of {length} frames")
        if (text := texts.pop()) not in self._tasks:
            self._tasks.append(text)
        self._episode_task = [*self._episode_task[: self.episodes], self._tasks.index(text)]
        self._root.update_attributes({"tasks": self._tasks, "episode_task": self._episode_task})
        self._ends.resize((self.episodes + 1,))
        self._ends[self.episodes] = end
        self.episodes, self._frames = self.episodes + 1, end
        return self.episodes - 1

    def finish(self) -> None:
        """Cuts off what a failed append left; every episode is already there."""
        for array in self._arrays.values():
            array.resize((self._frames, *array.shape[1:]))


def _open(path: Path) -> tuple[list[str], Any]:
    """The names of the arrays under data/, and the store."""
    if path.is_dir():
        files = [str(file.relative_to(path)) for file in (*path.glob("data/*/.zarray"), *path.glob("meta/*/.zarray"))]
        store: Any = LocalStore(path, read_only=True)
    elif path.is_file():
        try:
            with zipfile.ZipFile(path) as archive:
                files = archive.namelist()
        except (OSError, zipfile.BadZipFile) as error:
            raise DataError(f"{path} is not a whole zip file ({_line(error)}): restore it from a copy") from error
        store = ZipStore(path, mode="r")
    else:
        files, store = [], None
    if "meta/episode_ends/.zarray" not in files:
        raise DataError(f"{path} is not a replay buffer: expected a Zarr v2 group with data/ and meta/episode_ends")
    parts = [file.split("/") for file in files]
    return sorted(part[1] for part in parts if len(part) == 3 and part[0] == "data" and part[2] == ".zarray"), store


def _pixels(rows: np.ndarray) -> np.ndarray | None:
    """The frames as uint8; None unless all are whole numbers 0..255."""
    with np.errstate(invalid="ignore"):
        pixels = rows.astype(np.uint8)
    return pixels if np.array_equal(pixels, rows) else None


def _names_and_dtypes(features: Mapping[str, Feature], provenance: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    source = provenance.get("source", {}).get("arrays", {})
    arrays: dict[str, tuple[str, str]] = {}
    for key, feature in features.items():
        name, dtype = source.get(key, (key.removeprefix(IMAGES).removeprefix("observation."), feature.dtype))
        if dtype != feature.dtype and not (feature.is_image and np.dtype(dtype).kind == "f"):
            dtype = feature.dtype
        if "/" in name or np.dtype(dtype).kind not in "fiub":
            raise DataError(f"Diffusion Policy's Zarr cannot hold {key} ({dtype}): drop it")
        if twin := [other for other, (taken, _) in arrays.items() if taken == name]:
            raise DataError(f"{twin[0]} and {key} would both be data/{name} in Diffusion Policy's Zarr: drop one")
        arrays[key] = (name, dtype)
    return arrays


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
