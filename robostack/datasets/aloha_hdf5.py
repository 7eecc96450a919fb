"""ALOHA's HDF5 files, as ACT and Mobile ALOHA record and read them: one file an episode.

    <path>/episode_<n>.hdf5       attributes: sim, compress; ours too: fps, robot, task
      observations/qpos           (T, D)           observation.state
      observations/qvel           (T, D)           observation.velocity
      observations/effort         (T, D)           observation.effort
      observations/images/<cam>   (T, H, W, 3)     observation.images.<cam>; or (T, bytes): JPEG, padded with zeros
      action                      (T, D)           action
      base_action                 (T, 2)           the last two entries of action: base_linear, base_angular
      compress_len                (cameras, T)     bytes of each JPEG; not needed to read one

Numbers keep their type. JPEGs come from `cv2.imencode` of the array as it is and go back through `cv2.imdecode`, which
both take arrays for BGR. To any other program the file's red is therefore the array's last channel, so channels are
reversed here after decoding and before encoding: frames have the channel order of the array that was recorded.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import UInt8

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
from robostack.extras import require_extra

if TYPE_CHECKING:
    import h5py

ARRAYS = {
    "observation.state": "observations/qpos",
    "observation.velocity": "observations/qvel",
    "observation.effort": "observations/effort",
    "action": "action",
}
JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")
ARM_NAMES = tuple(f"{side}_{joint}" for side in ("left", "right") for joint in JOINTS)
ARM_UNITS = (*("rad",) * 6, "0 closed .. 1 open") * 2
BASE_NAMES, BASE_UNITS = ("base_linear", "base_angular"), ("m/s", "rad/s")
JPEG_QUALITY = 95
_SETTINGS = "robostack.json"
_FRAMES_AT_ONCE = 32


class AlohaHdf5Reader:
    """Reads a folder of episode_<n>.hdf5, episodes in the order of n, or one such file.

    Features are those of the first episode that can be read; `drop` leaves some out. What the layout does not know is
    listed in provenance["source"]["not_read"].
    """

    format = "ALOHA HDF5"
    remarks: tuple[str, ...] = ()

    def __init__(self, path: str | Path, drop: Sequence[str] = ()) -> None:
        require_extra("h5py", "data")
        self.path, self._drop = Path(path), frozenset(drop)
        self._files = episode_files(self.path)
        errors: list[DataError] = []
        self.left_out: dict[str, str] = {}
        for episode in range(len(self._files)):
            try:
                with self._open(episode) as root:
                    known = _keys(root)
                    kept = [key for key in known if key not in drop]
                    self.features: Mapping[str, Feature] = {key: _feature(root, key) for key in kept}
                    self.fps: float | None = _rate(root)
                    robot = root.attrs.get("robot")
                    self.robot: str | None = None if robot is None else _text(robot, "robot")
                    self.provenance: Mapping[str, Any] = {"source": _describe(root)}
                break
            except DataError as error:
                errors.append(error)
        else:
            raise DataError(f"{self.path}: none of {len(errors)} episodes can be read; the first: {errors[0]}")
        if unknown := sorted(self._drop - set(known)):
            raise DataError(f"{self.path} has no {', '.join(unknown)} to drop: it has {', '.join(known)}")

    @property
    def episodes(self) -> int:
        return len(self._files)

    def select(self, keys: Collection[str]) -> None:
        self._drop |= {key for key in self.features if key not in keys}
        self.features = {key: feature for key, feature in self.features.items() if key in keys}

    def length(self, episode: int) -> int:
        with self._open(episode) as root:
            return len(_dataset(root, "action"))

    def read_episode(self, episode: int) -> Episode:
        with self._open(episode) as root:
            self._compare(root)
            length = len(_dataset(root, "action"))
            columns: dict[str, Column] = {}
            for key, feature in self.features.items():
                if feature.is_image:
                    height, width, channels = feature.shape
                    shape = (len(_dataset(root, _path(key))), height, width, channels)
                    columns[key] = Frames(shape, partial(self._frames, episode, key, shape))
                else:
                    columns[key] = _numbers(root, key)
                if len(columns[key]) != length:
                    raise DataError(f"{key} has {len(columns[key])} frames, action {length}: leave the episode out")
            return Episode(columns, [_task(root)] * length)

    def _compare(self, root: h5py.File) -> None:
        """Raises DataError unless this episode is like the first."""
        keys = [key for key in _keys(root) if key not in self._drop]
        if missing := [key for key in self.features if key not in keys]:
            raise DataError(f"lacks {', '.join(missing)}, which the episodes before have: leave the episode out")
        if extra := [key for key in keys if key not in self.features]:
            raise DataError(f"has {', '.join(extra)}, which the episodes before lack: drop it or leave the episode out")
        for key, feature in self.features.items():
            came = _feature(root, key)
            if (came.shape, came.dtype) != (feature.shape, feature.dtype):
                raise DataError(f"{key}: expected {feature.shape} {feature.dtype}, got {came.shape} {came.dtype}")
        if (fps := _rate(root)) != self.fps:
            raise DataError(f"expected {self.fps} frames a second as in the episodes before, got {fps}")

    def _frames(self, episode: int, key: str, shape: tuple[int, int, int, int]) -> Iterator[np.ndarray]:
        with self._open(episode) as root:
            images = _dataset(root, _path(key))
            if images.ndim == 4:
                block = images.chunks[0] if images.chunks else 1
                for start in range(0, shape[0], block):
                    yield from images[start : start + block]
            else:
                for frame in range(shape[0]):
                    try:
                        yield _decode(images[frame], shape[1:3])
                    except (OSError, SyntaxError, DataError) as error:
                        raise DataError(f"{key}, frame {frame}: {_line(error)}") from error

    @contextmanager
    def _open(self, episode: int) -> Iterator[h5py.File]:
        import h5py

        if not 0 <= episode < len(self._files):
            raise IndexError(f"episode {episode} of {len(self._files)}")
        file = self._files[episode]
        try:
            with h5py.File(file, "r") as root:
                yield root
        except DataError as error:
            raise DataError(f"{file}, episode {episode}: {error}") from error
        except (OSError, KeyError, RuntimeError, TypeError, ValueError, MemoryError) as error:
            raise DataError(
                f"{file}, episode {episode} is truncated or damaged ({_line(error)}): restore it or leave it out"
            ) from error


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
        sim = provenance.get("source", {}).get("sim")
        path.mkdir(parents=True)
        settings = {
            "fps": fps,
            "robot": robot,
            "images": images,
            "sim": "collected" in provenance if sim is None else bool(sim),
            "features": {key: asdict(feature) for key, feature in features.items()},
        }
        _rename_into(path / _SETTINGS, json.dumps(settings, indent=1).encode())
        self._start(path, settings)

    @classmethod
    def resume(cls, path: Path) -> AlohaHdf5Writer:
        """Goes on after the last whole episode."""
        try:
            settings = json.loads((path / _SETTINGS).read_text())
        except (OSError, ValueError) as error:
            raise DataError(f"{path / _SETTINGS} cannot be read ({_line(error)}): nothing to go on with") from error
        writer = cls.__new__(cls)
        writer._start(path, settings)
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
        self._cameras = sorted(key for key, feature in self.features.items() if feature.is_image)
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
            encoded = {key: _jpegs(columns[key]) for key in self._cameras}
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
            images = root.create_dataset(_path(key), frames.shape, np.uint8, chunks=(1, *frames.shape[1:]))
            for block in in_blocks(frames, _FRAMES_AT_ONCE):  # h5py takes 0.3 ms a call
                if count + len(block) > length:
                    raise DataError(f"{key} has more than {length} frames")
                images[count : count + len(block)] = block
                count += len(block)
            if count != length:
                raise DataError(f"{key} ends after {count} of {length} frames")


def episode_files(path: Path) -> list[Path]:
    """The episodes of a folder in the order of their numbers, or the one file."""
    if path.is_file():
        return [path]
    numbered = {
        int(match[1]): file
        for file in (path.iterdir() if path.is_dir() else ())
        if (match := re.fullmatch(r"episode_(\d{1,9})\.hdf5", file.name))
    }
    if not numbered:
        raise DataError(f"{path}: expected files episode_<n>.hdf5, found none")
    return [numbered[number] for number in sorted(numbered)]


def _path(key: str) -> str:
    return ARRAYS.get(key) or f"observations/images/{key.removeprefix(IMAGES)}"


def _members(root: h5py.File, group: str) -> list[str]:
    members: Any = root.get(group)
    return [] if members is None else sorted(members)


def _keys(root: h5py.File) -> list[str]:
    """The features of one file, by their names alone."""
    arrays = [key for key, name in ARRAYS.items() if name in root and "not_recorded" not in root[name].attrs]
    cameras = [IMAGES + camera for camera in _members(root, "observations/images")]
    return [*(key for key in arrays if key != "action"), *cameras, "action"]


def _feature(root: h5py.File, key: str) -> Feature:
    array = _dataset(root, _path(key))
    if key.startswith(IMAGES):
        return Feature(_frame_shape(key, array), "uint8")
    if array.ndim != 2 or array.dtype.kind not in "fiu":
        raise DataError(f"{key}: expected numbers (frames, entries), got {array.shape} {array.dtype}")
    width, dtype = array.shape[1], array.dtype.newbyteorder("=")
    names, units = _words(array, "names"), _words(array, "units")
    if not names and width == len(ARM_NAMES):
        names = ARM_NAMES
    if not units and names == ARM_NAMES and key in ("observation.state", "action"):
        units = ARM_UNITS  # no recorder writes them; the robot's driver has no others
    if key == "action" and "base_action" in root:
        base = _dataset(root, "base_action")
        if base.shape != (len(array), len(BASE_NAMES)) or base.dtype.kind not in "fiu":
            raise DataError(f"base_action: expected numbers ({len(array)}, 2), got {base.shape} {base.dtype}")
        names, units = (*names, *BASE_NAMES) if names else (), (*units, *(_words(base, "units") or BASE_UNITS))
        width, dtype = width + len(BASE_NAMES), np.result_type(dtype, base.dtype)
    return Feature((width,), dtype.name, *(words if len(words) == width else () for words in (names, units)))


def _frame_shape(key: str, images: h5py.Dataset) -> tuple[int, int, int]:
    if images.ndim == 4 and images.dtype == np.uint8 and images.shape[3] == 3:
        return images.shape[1:]
    if images.ndim in (1, 2) and images.dtype.kind in "uSO":
        require_extra("PIL", "data")
        from PIL import Image

        with Image.open(io.BytesIO(_bytes(images[0])), formats=("JPEG", "PNG")) as image:
            return (image.height, image.width, 3)
    expected = "expected uint8 (frames, height, width, 3) or JPEG (frames, bytes)"
    raise DataError(f"{key}: {expected}, got {images.dtype} {images.shape}")


def _dataset(root: h5py.File, name: str) -> h5py.Dataset:
    """An array that was written in full: what a killed recorder left reads as zeros."""
    import h5py

    array = root.get(name)
    if not isinstance(array, h5py.Dataset):
        raise DataError(f"lacks /{name}: record it or leave the episode out")
    if not array.size:
        raise DataError(f"/{name} is empty, {array.shape}: leave the episode out")
    chunks = math.prod(-(-size // chunk) for size, chunk in zip(array.shape, array.chunks or array.shape, strict=True))
    written = array.id.get_num_chunks() if array.chunks else int(array.id.get_storage_size() > 0)
    if written < chunks:
        raise DataError(f"/{name}: {written} of {chunks} chunks were written: leave the episode out")
    return array


def _numbers(root: h5py.File, key: str) -> np.ndarray:
    rows = _dataset(root, ARRAYS[key])[()]
    if key == "action" and "base_action" in root:
        rows = np.concatenate([rows, _dataset(root, "base_action")[()]], axis=1)
    return rows.astype(rows.dtype.newbyteorder("="), copy=False)


def _rate(root: h5py.File) -> float | None:
    value: Any = root.attrs.get("fps")
    if value is None:
        return None
    fps = float(value)
    if not (math.isfinite(fps) and fps > 0):
        raise DataError(f"attribute fps: expected frames a second, got {fps}")
    return fps


def _task(root: h5py.File) -> str:
    values: list[Any] = [root.attrs.get("task"), root.attrs.get("language_instruction")]
    if "language_instruction" in root:
        values.append(_dataset(root, "language_instruction")[()])
    return next((_text(value, "the task") for value in values if value is not None), "")


def _text(value: Any, name: str) -> str:
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    if isinstance(value, bytes):
        value = value.decode()
    if not isinstance(value, str):
        raise DataError(f"{name}: expected one text, got {type(value).__name__} {np.shape(value)}")
    return value


def _words(array: h5py.Dataset, name: str) -> tuple[str, ...]:
    return tuple(_text(word, name) for word in array.attrs.get(name, ()))


def _describe(root: h5py.File) -> dict[str, Any]:
    known = {*ARRAYS.values(), "base_action", "compress_len", "language_instruction", "observations/images"}
    names = [*_members(root, "/"), *(f"observations/{name}" for name in _members(root, "observations"))]
    sim = root.attrs.get("sim")
    return {
        "format": AlohaHdf5Reader.format,
        "sim": None if sim is None else bool(sim),
        "not_read": [name for name in names if name not in known | {"observations"}],
    }


def _bytes(row: Any) -> bytes:
    return row if isinstance(row, bytes) else np.asarray(row, dtype=np.uint8).tobytes()


def _decode(row: Any, size: tuple[int, ...]) -> UInt8[np.ndarray, "height width 3"]:
    from PIL import Image

    with Image.open(io.BytesIO(_bytes(row)), formats=("JPEG", "PNG")) as image:
        if (image.height, image.width) != size:
            raise DataError(f"expected {size} pixels, got {(image.height, image.width)}")
        return np.ascontiguousarray(np.asarray(image.convert("RGB"))[..., ::-1])


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
            or (key.startswith(IMAGES) and feature.is_image and "/" not in key)
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


def _rename_into(path: Path, data: bytes) -> None:
    partial_file = path.with_name(f".{path.name}.partial")
    partial_file.write_bytes(data)
    _sync(partial_file)
    partial_file.rename(path)


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
