"""ALOHA's HDF5 files, as ACT and Mobile ALOHA record and read them: one file per episode. `reader` reads them.

    <path>/episode_<n>.hdf5       attributes: sim, compress; ours too: fps, robot, task
      observations/qpos           (T, D)           observation.state
      observations/qvel           (T, D)           observation.velocity
      observations/effort         (T, D)           observation.effort
      observations/images/<cam>   (T, H, W, 3)     observation.images.<cam>; or (T, bytes): JPEG, padded with zeros
      observations/images_depth/<cam>  (T, H, W, 1)  observation.images.<cam>_depth, uint16 in mm
      action                      (T, D)           action
      base_action                 (T, 2)           the last two entries of action: base_linear, base_angular
      compress_len                (cameras, T)     bytes of each JPEG; not needed to read one

JPEGs are encoded with their channels reversed, as `cv2.imencode` does with an array of RGB; reading reverses them back.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import UInt8

from robostack.common.extras import require_extra
from robostack.common.files import read_json, write_file
from robostack.common.files import sync as _sync
from robostack.common.text import one_line
from robostack.datasets.episodes import (
    IMAGES,
    Column,
    DataError,
    Feature,
    check_episode,
    in_blocks,
    task_of_each_frame,
)
from robostack.datasets.formats.hdf5.layout import ARM_NAMES, ARM_UNITS, ARRAYS, BASE_NAMES, BASE_UNITS
from robostack.datasets.formats.hdf5.reader import Hdf5Reader

if TYPE_CHECKING:
    import h5py

__all__ = ["ARM_NAMES", "ARM_UNITS", "BASE_NAMES", "BASE_UNITS", "AlohaHdf5Reader", "AlohaHdf5Writer"]

AlohaHdf5Reader = Hdf5Reader
"""It reads these files and others of their kind."""

JPEG_QUALITY = 95
_SETTINGS = "robostack.json"
_FRAMES_AT_ONCE = 32


class AlohaHdf5Writer:
    """Writes episode_<n>.hdf5 for ACT and Mobile ALOHA: cameras raw, or as JPEG in the layout of `compress`.

    ACT reads /observations/qvel without using it: where velocities were not recorded the array is there, holds NaN and
    is marked `not_recorded`. `sim` is what provenance["source"] says, else true for what robostack collected: ACT
    pairs the actions of a real robot with the frame after.

    Raises DataError for features that the format cannot hold, before anything is written.
    """

    def __init__(
        self,
        path: str | Path,
        features: Mapping[str, Feature],
        fps: float | None,
        robot: str | None = None,
        images: Literal["raw", "jpeg"] = "raw",
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        _check_features(features)
        path = Path(path)
        if path.exists():
            raise FileExistsError(f"{path} already exists: choose another path or remove it first")
        provenance = provenance or {}
        source = provenance.get("source")
        sim = source.get("sim") if isinstance(source, Mapping) else None
        path.mkdir(parents=True)
        settings = {
            "fps": fps,
            "robot": robot,
            "images": images,
            "sim": "collected" in provenance if sim is None else bool(sim),
            "features": {key: asdict(feature) for key, feature in features.items()},
        }
        write_file(path / _SETTINGS, json.dumps(settings, indent=1))
        self._start(path, settings)

    @classmethod
    def resume(cls, path: Path) -> AlohaHdf5Writer:
        """Goes on after the last whole episode."""
        writer = cls.__new__(cls)
        try:
            writer._start(path, read_json(path / _SETTINGS))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path / _SETTINGS} cannot be read ({one_line(error)}): nothing to go on with") from error
        return writer

    def _start(self, path: Path, settings: dict[str, Any]) -> None:
        require_extra("h5py", "data")
        if settings["images"] == "jpeg":
            require_extra("PIL", "data")
        self.path, self._settings = path, settings
        self.features = {
            key: Feature(tuple(f["shape"]), f["dtype"], tuple(f["names"]), tuple(f["units"]))
            for key, f in settings["features"].items()
        }
        # In the order of their names, in which h5py and the rows of compress_len have them.
        self._cameras = sorted(key for key, feature in self.features.items() if feature.is_camera)
        for left in path.glob(".*.partial"):
            left.unlink()
        self.episodes = 0
        while (path / f"episode_{self.episodes}.hdf5").is_file():
            self.episodes += 1

    def append(self, columns: Mapping[str, Column], task: str | Sequence[str]) -> int:
        import h5py

        length = check_episode(columns, self.features)
        texts = set(task_of_each_frame(task, length))
        if len(texts) > 1:
            raise DataError(f"ALOHA HDF5 holds one task text an episode, got {len(texts)}")
        name = f"episode_{self.episodes}.hdf5"
        partial_file = self.path / f".{name}.partial"
        lengths: list[list[int]] = []
        if self._settings["images"] == "jpeg":
            encoded = {key: _jpegs(columns[key]) for key in self._cameras if self.features[key].is_image}
            columns = {**columns, **{key: rows for key, (rows, _) in encoded.items()}}
            lengths = [sizes for _, sizes in encoded.values()]
        try:
            _reserve(partial_file, columns.values())
            with h5py.File(partial_file, "w") as root:
                self._write(root, columns, length)
                if lengths:
                    root["compress_len"] = np.array(lengths, dtype=np.int32)
                root.attrs["task"] = texts.pop()
            _sync(partial_file)
            partial_file.rename(self.path / name)
        finally:
            partial_file.unlink(missing_ok=True)
        self.episodes += 1
        return self.episodes - 1

    def finish(self) -> None:
        """Nothing is left to write: every file stands alone."""

    def _write(self, root: h5py.File, columns: Mapping[str, Column], length: int) -> None:
        settings = self._settings
        root.attrs["sim"], root.attrs["compress"] = settings["sim"], settings["images"] == "jpeg"
        for key in ("fps", "robot"):
            if settings[key] is not None:
                root.attrs[key] = settings[key]
        root.create_group("observations/images")
        for key, name in ARRAYS.items():
            feature = self.features.get(key)
            if feature is not None:
                rows = np.asarray(columns[key])
                split = len(rows[0]) - 2 if key == "action" and feature.names[-2:] == BASE_NAMES else len(rows[0])
                _create(root, name, rows[:, :split], feature.names[:split], feature.units[:split])
                if split < len(rows[0]):
                    _create(root, "base_action", rows[:, split:], BASE_NAMES, feature.units[split:])
        if "observation.velocity" not in self.features:
            missing = np.full(columns["observation.state"].shape, np.nan, dtype=np.float32)
            _create(root, ARRAYS["observation.velocity"], missing, (), ())
            root[ARRAYS["observation.velocity"]].attrs["not_recorded"] = True
        for key in self._cameras:
            frames, count = columns[key], 0
            name, chunk = _path(key, self.features[key]), (1, *frames.shape[1:])
            images = root.create_dataset(name, frames.shape, frames.dtype, chunks=chunk)
            for block in in_blocks(frames, _FRAMES_AT_ONCE):  # h5py takes 0.3 ms a call
                if count + len(block) > length:
                    raise DataError(f"{key} has more than {length} frames")
                images[count : count + len(block)] = block
                count += len(block)
            if count != length:
                raise DataError(f"{key} ends after {count} of {length} frames")


def _path(key: str, feature: Feature) -> str | None:
    """Where the pictures of a camera stand; None where its name fits no place."""
    name = key.removeprefix(IMAGES)
    camera = name.removesuffix("_depth") if feature.is_depth else name
    if not key.startswith(IMAGES) or "/" in name or camera in ("", ".", "..") or (feature.is_depth and camera == name):
        return None
    return f"observations/images_depth/{camera}" if feature.is_depth else f"observations/images/{camera}"


def _jpegs(frames: Column) -> tuple[UInt8[np.ndarray, "frames bytes"], list[int]]:
    """Each frame as JPEG, padded with zeros to the longest, and their lengths."""
    encoded = [_encode(frame) for frame in frames]
    rows = np.zeros((len(encoded), max(map(len, encoded))), np.uint8)
    for row, data in zip(rows, encoded, strict=True):
        row[: len(data)] = np.frombuffer(data, np.uint8)
    return rows, [len(data) for data in encoded]


def _encode(frame: UInt8[np.ndarray, "height width 3"]) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(frame[..., ::-1])).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def _create(root: h5py.File, name: str, rows: np.ndarray, names: tuple[str, ...], units: tuple[str, ...]) -> None:
    array = root.create_dataset(name, data=rows)
    for key, words in (("names", names), ("units", units)):
        if words:
            array.attrs[key] = list(words)


def _check_features(features: Mapping[str, Feature]) -> None:
    for key in ("observation.state", "action"):
        if key not in features:
            raise DataError(f"ALOHA HDF5 needs {key}; the data set has {', '.join(features)}")
    unfit = [
        key
        for key, feature in features.items()
        if not (
            (key in ARRAYS and len(feature.shape) == 1 and np.dtype(feature.dtype).kind in "fiu")
            or (feature.is_camera and _path(key, feature) is not None)
        )
    ]
    if unfit:
        raise DataError(f"ALOHA HDF5 cannot hold {', '.join(unfit)}: leave them out with --drop")


def _reserve(path: Path, columns: Iterable[Column]) -> None:
    """Raises OSError unless the disk has room for the columns and what HDF5 keeps of each chunk.

    HDF5 itself does not survive a full disk: it crashes when it closes the file.
    """
    size = sum(math.prod(column.shape) * column.dtype.itemsize + 512 * len(column) for column in columns)
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size + (1 << 20))
    path.unlink()
