"""Diffusion Policy's replay buffer: a Zarr group, as a folder or (to read) as a zip file, as UMI ships it.

It is written in Zarr's format 2, and read in 3 too.

    <path>/                  group; attributes of ours: fps, robot, features, tasks, episode_task
      meta/episode_ends      (E,)      int64, index one past the last frame of each episode
      data/<name>            (N, ...)  one row per frame

`action`, `timestamp` and `next.*` keep their names. Cameras, of uint8 in any form or of floats that hold the 256 values
of uint8, and depth (uint16, in mm) are observation.images.<name>, the rest observation.<name>. Names and types are kept
in provenance["source"], from which the writer gives them back. `episode_ends` is written last: rows beyond it, and a
zero at its end, are an append that never finished.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numcodecs import Blosc

from robostack.common.text import one_line
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
from robostack.datasets.formats.origin import checked, lasting
from robostack.datasets.formats.pictures import PictureForm
from robostack.datasets.formats.zarr_files import ZarrFiles

# What Diffusion Policy calls "disk"; any Zarr library reads it. Its own data has some hundred frames in a chunk.
_COMPRESSOR = Blosc("zstd", clevel=5, shuffle=Blosc.BITSHUFFLE)
_ROWS_A_CHUNK, _IMAGE_CHUNK_BYTES, _FRAMES_AT_ONCE, _BYTES_AT_ONCE = 4096, 4 << 20, 32, 256 << 20
MOST_EPISODES = 10_000_000

_Known = tuple[str | None, tuple[str, ...], tuple[str, ...]]
"""Key, names and units of a feature, as far as they were written beside the data."""


class DiffusionPolicyReader:
    """Reads a replay buffer; `drop` leaves features out, and what cannot be read is told in `left_out`.

    Opening reads no frames, except one of an array of floats (N, H, W, 3), to see whether it is a camera.
    """

    format = "Diffusion Policy Zarr"

    def __init__(self, path: str | Path, drop: Sequence[str] = ()) -> None:
        self.path = Path(path)
        self._files = ZarrFiles(self.path, "meta/episode_ends")
        self._ends = self._read_ends()
        self._starts = np.concatenate([[0], self._ends[:-1]])
        self._rising = (self._ends > self._starts) & (self._starts >= np.maximum.accumulate(self._starts))
        said = _Said.of(self.path, self._files.attributes())
        self.fps, self.robot, self._tasks = said.fps, said.robot, said.tasks
        self._names: dict[str, str] = {}
        self._forms: dict[str, PictureForm] = {}
        self.left_out: dict[str, str] = {}
        features: dict[str, Feature] = {}
        remarks: list[str] = []
        for name in self._files.names("data"):
            key, names, units = said.arrays.get(name, (None, (), ()))
            try:
                array = self._files.array(f"data/{name}")
                key, feature, form = self._feature(name, array, key)
            except DataError as error:
                self.left_out[key or f"observation.{name}"] = one_line(error)
                continue
            if key in features:
                self.left_out[f"data/{name}"] = f"would be {key} as data/{self._names[key]} is"
                continue
            try:
                feature = Feature(feature.shape, feature.dtype, names, units or feature.units)
            except DataError as error:
                remarks.append(f"{key}: its names are left out: {error}")
            features[key], self._names[key] = feature, name
            if form is not None:
                self._forms[key] = form
        if unused := sorted(set(drop) - {*features, *self.left_out}):
            raise DataError(f"{path} has no {', '.join(unused)} to drop: it has {', '.join(features)}")
        self.remarks = tuple(remarks)
        self.left_out = {key: why for key, why in self.left_out.items() if key not in drop}
        self.features: Mapping[str, Feature] = {key: f for key, f in features.items() if key not in drop}
        arrays = {key: [self._names[key], self._dtype_of(key)] for key in self.features}
        self.provenance: Mapping[str, Any] = {**said.provenance, "source": {"format": self.format, "arrays": arrays}}

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
            if feature.is_camera:
                self._check_rows(key, episode)
                height, width, channels = feature.shape
                shape, where = (stop - start, height, width, channels), f"{self.path}, episode {episode}, {key}"
                read = partial(self._frames, key, episode)
                columns[key] = Frames(shape, read, dtype=np.dtype(feature.dtype), where=where)
            else:
                columns[key] = self._rows(key, episode, start, stop).astype(feature.dtype, copy=False)
        text = self._tasks[episode] if episode < len(self._tasks) else ""
        return Episode(columns, [text] * (stop - start))

    def _read_ends(self) -> np.ndarray:
        """Of each episode, the row after its last."""
        name = "meta/episode_ends"
        try:
            array = self._files.array(name, missing_chunks=True)
            if array.ndim != 1 or array.dtype.kind not in "iu" or array.shape[0] > MOST_EPISODES:
                raise DataError(f"{name}: expected whole numbers (E,), got {array.shape} {array.dtype}")
            # Entries that were never written are zeros, which no end can be.
            ends = self._files.read(name, slice(None), missing_chunks=True).astype(np.int64)
        except DataError as error:
            raise DataError(f"{self.path}: {error}") from error
        return ends[: -1 if len(ends) and ends[-1] == 0 else None]

    def _feature(self, name: str, array: zarr.Array, key: str | None) -> tuple[str, Feature, PictureForm | None]:
        """The name of an array's feature, what it holds, and how its pictures are read. `key` is its name where it was
        written by us: then it is what it was."""
        shape, dtype = array.shape[1:], array.dtype.newbyteorder("=")
        form = PictureForm.of(shape, dtype) if key and key.startswith(IMAGES) and dtype != np.uint16 else None
        form = form or self._picture_form(name, array)
        if form is not None and (key is None or key.startswith(IMAGES) or (dtype == np.uint8 and shape[2:] == (3,))):
            return key or IMAGES + name, Feature((*form.size, 3), "uint8"), form
        if key is None and (size := _depth_size(name, shape, dtype)) is not None:
            return IMAGES + name, Feature((*size, 1), "uint16", units=("mm",)), None
        plain = name in ("action", "timestamp") or name.startswith("next.")
        return key or (name if plain else f"observation.{name}"), Feature(shape, dtype.name), None

    def _picture_form(self, name: str, array: zarr.Array) -> PictureForm | None:
        """How an array of pictures of colour is read; None for other arrays."""
        shape, form = array.shape[1:], PictureForm.of(array.shape[1:], array.dtype)
        is_named = any(word in name.lower() for word in ("img", "image", "rgb", "cam", "gray", "grey", "color"))
        if form is None or array.dtype == np.uint16:
            return None
        if array.dtype == np.uint8:
            return form if len(shape) == 3 or is_named else None
        if len(shape) != 3 or shape[form.channel_axis or 0] == 1 or not (form.channel_axis == 2 or is_named):
            return None
        for end in self._ends.tolist():
            if 0 < end <= array.shape[0]:
                try:
                    seen = self._files.read(f"data/{name}", slice(end - 1, end))
                except DataError:
                    continue
                form = form.seen(seen)
                return form if _are_colours(seen, form) else None
        return None

    def _dtype_of(self, key: str) -> str:
        """The type in which the writer gives an array back."""
        form = self._forms.get(key)
        dtype = self._files.array(f"data/{self._names[key]}").dtype
        return "uint8" if form is not None and form.scale == "0..1" else dtype.name

    def _bounds(self, episode: int) -> tuple[int, int]:
        if not 0 <= episode < len(self._ends):
            raise IndexError(f"episode {episode} of {len(self._ends)}")
        start, stop = int(self._starts[episode]), int(self._ends[episode])
        if not self._rising[episode]:
            raise DataError(f"{self.path}, episode {episode}: episode_ends does not rise ({start}, {stop}): repair it")
        return start, stop

    def _check_rows(self, key: str, episode: int) -> None:
        stored, stop = self._files.array(f"data/{self._names[key]}").shape[0], self._bounds(episode)[1]
        if stored < stop:
            where = f"{self.path}, episode {episode}"
            raise DataError(f"{where} is truncated: data/{self._names[key]} has {stored} of {stop} frames")

    def _rows(self, key: str, episode: int, start: int, stop: int) -> np.ndarray:
        self._check_rows(key, episode)
        try:
            return self._files.read(f"data/{self._names[key]}", slice(start, stop))
        except DataError as error:
            raise DataError(f"{self.path}, episode {episode}: {error}: restore it or leave it out") from error

    def _frames(self, key: str, episode: int) -> Iterator[np.ndarray]:
        start, stop = self._bounds(episode)
        array, form = self._files.array(f"data/{self._names[key]}"), self._forms.get(key)
        chunk = array.chunks[0]
        row_bytes = math.prod(array.shape[1:]) * array.dtype.itemsize
        at_once = chunk * max(1, min(_FRAMES_AT_ONCE, _BYTES_AT_ONCE // row_bytes) // chunk)  # none is decoded twice
        if chunk * row_bytes > 4 * _BYTES_AT_ONCE:
            at_once = max(1, _BYTES_AT_ONCE // row_bytes)
        while start < stop:
            block = self._rows(key, episode, start, min(stop, start + at_once - start % at_once))
            if form is None:
                yield from block.reshape(len(block), *self.features[key].shape).astype(np.uint16, copy=False)
            elif block.dtype == np.uint8 and form.channel_axis == 2 and block.shape[3] == 3:
                yield from block
            else:
                if not _are_colours(block, form):
                    frames = f"frames {start} to {start + len(block) - 1}"
                    span = "0..1 in steps of 1/255" if form.scale == "0..1" else "0..255"
                    raise DataError(f"{self.path}, episode {episode}: {key}: {frames} are not whole numbers {span}")
                yield from map(form.rgb, block)
            start += len(block)


@dataclass(frozen=True)
class _Said:
    """What we wrote beside the data, as far as somebody did."""

    fps: float | None
    robot: str | None
    tasks: list[str]
    """Of each episode."""
    arrays: Mapping[str, _Known]
    provenance: Mapping[str, Any]

    @staticmethod
    def of(path: Path, attributes: Mapping[str, Any]) -> _Said:
        """Raises DataError for values of other kinds."""
        try:
            fps, robot, texts = (attributes.get(key) for key in ("fps", "robot", "tasks"))
            if fps is not None and not (type(fps) in (int, float) and math.isfinite(fps) and fps > 0):
                raise ValueError(f"expected frames a second, got {fps!r}")
            if not isinstance(robot, str | None) or not all(isinstance(text, str) for text in texts or ()):
                raise ValueError("expected texts as robot and tasks")
            tasks = [texts[range(len(texts))[i]] for i in attributes.get("episode_task", ())] if texts else []
            arrays: dict[str, _Known] = {
                name: (_text(entry["key"]), tuple(map(_text, entry["names"])), tuple(map(_text, entry["units"])))
                for name, entry in attributes.get("features", {}).items()
            }
            origin = checked(attributes.get("provenance", {}))
            return _Said(None if fps is None else float(fps), robot, tasks, arrays, origin)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
            raise DataError(f"{path}: its attributes cannot be read ({one_line(error)}): restore it") from error


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected a text, got {type(value).__name__}")
    return value


def _depth_size(name: str, shape: tuple[int, ...], dtype: np.dtype) -> tuple[int, int] | None:
    """(height, width) of pictures of depth; None for other arrays."""
    if dtype != np.uint16:
        return None
    if len(shape) == 3 and 1 in (shape[0], shape[2]):
        return (shape[0], shape[1]) if shape[2] == 1 else (shape[1], shape[2])
    return (shape[0], shape[1]) if len(shape) == 2 and "depth" in name.lower() else None


def _are_colours(rows: np.ndarray, form: PictureForm) -> bool:
    """Whether floats are colours of 8 bits, which nothing is lost of as such."""
    if rows.dtype.kind != "f":
        return True
    values = rows * 255.0 if form.scale == "0..1" else rows
    whole = np.rint(values)
    near = np.abs(values - whole) < 1e-3 if form.scale == "0..1" else values == whole
    return bool(np.all(near & (whole >= 0) & (whole <= 255)))


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
            rows = max(1, min(64, _IMAGE_CHUNK_BYTES // size)) if feature.is_camera else _ROWS_A_CHUNK
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
        try:
            writer._start(path)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise DataError(f"{path} cannot be gone on with ({one_line(error)}): remove it") from error
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
            if not self.features[key].is_camera:
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


def _names_and_dtypes(features: Mapping[str, Feature], provenance: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    source = provenance.get("source")
    known = source.get("arrays") if isinstance(source, Mapping) else None
    arrays: dict[str, tuple[str, str]] = {}
    for key, feature in features.items():
        name, dtype = key.removeprefix(IMAGES).removeprefix("observation."), feature.dtype
        match known.get(key) if isinstance(known, Mapping) else None:
            case [str(given), str(kind)]:
                name = given
                dtype = kind if feature.is_image and kind in ("float16", "float32", "float64") else dtype
        if not name or "/" in name or name.startswith(".") or name == "zarr.json":
            raise DataError(f"Diffusion Policy's Zarr cannot hold {key} ({dtype}): --rename or --drop it")
        if twin := [other for other, (taken, _) in arrays.items() if taken == name]:
            raise DataError(f"{twin[0]} and {key} would both be data/{name} in Diffusion Policy's Zarr: drop one")
        arrays[key] = (name, dtype)
    return arrays
