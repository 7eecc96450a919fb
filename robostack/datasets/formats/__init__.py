"""The formats of data sets: which one a path holds, and its reader and writer."""

from __future__ import annotations

import difflib
import re
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from robostack.common.files import check_regular, read_json
from robostack.common.text import did_you_mean
from robostack.datasets.episodes import (
    IMAGES,
    Appender,
    Column,
    DataError,
    Episode,
    EpisodeReader,
    Feature,
    FeatureError,
    Frames,
)
from robostack.datasets.formats.hdf5.files import SUFFIXES
from robostack.datasets.formats.origin import note, noted


@dataclass(frozen=True)
class Recording:
    """What a new data set is told before its first episode."""

    features: Mapping[str, Feature]
    fps: float | None
    robot: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DatasetFormat:
    """A format of data sets."""

    name: str
    looks_like: str
    recognises: Callable[[Path], bool]
    read: Callable[[Path], EpisodeReader]
    create: Callable[[Path, Recording, str], Appender]
    """Path, what is recorded, how cameras are kept: one of `images`."""
    resume: Callable[[Path], Appender]
    images: tuple[str, ...]
    """Ways to keep cameras; the first is the default."""
    lossless: tuple[str, ...]
    """Those of `images` that give every pixel back."""
    needs_fps: bool


def detect(path: str | Path) -> DatasetFormat:
    """The format of the data set at `path`, by looking. Raises DataError, saying what is there instead, where it is
    none that is read."""
    path = Path(path)
    if not path.exists():
        raise DataError(_missing(path))
    if not path.is_dir():
        check_regular(path)  # before anything opens it
    known = {**FORMATS, **ONLY_READ}
    for format in known.values():
        if format.recognises(path):
            return format
    if other := next((what for name, what in _OTHERS.items() if (path / name).exists()), None):
        raise DataError(f"{path} is {other}")
    looked_for = "; ".join(f"{format.looks_like} ({format.name})" for format in known.values())
    empty = "an empty folder, and " if path.is_dir() and next(path.iterdir(), None) is None else ""
    raise DataError(f"{path} is {empty}no data set that is known: looked for {looked_for}")


_OTHERS = {
    "meta_data/info.json": "LeRobot v1, which is not read: LeRobot's own converters bring it to v2.0",
    "dataset_info.json": "a TensorFlow data set (RLDS), which is not read: convert it to LeRobot first",
    "metadata.yaml": "a recording of ROS, which is not read: convert it to LeRobot first",
}
"""Files by which data sets are known that are not read."""


def _missing(path: Path) -> str:
    """What to say of a path where nothing is."""
    hub = re.fullmatch(r"[\w.-]+/[\w.-]+", str(path))
    if hub and not path.parent.exists():
        return (
            f"{path} does not exist: if it is a data set of the Hugging Face hub, get it first with "
            f"`hf download --repo-type dataset {path} --local-dir {path.name}`"
        )
    siblings = [one.name for one in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=1)
    meant = f"; did you mean {path.with_name(near[0])}?" if near else ""
    return f"{path} does not exist: expected a data set{meant}"


def open_reader(path: str | Path, selection: Selection | None = None) -> EpisodeReader:
    """The data set at `path`, whatever its format, under LeRobot's names. Raises DataError where it cannot be read."""
    return _Selected(detect(path).read(Path(path)), selection or Selection())


def find_format(name: str) -> DatasetFormat:
    """The format of this name."""
    if name not in FORMATS:
        what = f"{name} is only read" if name in ONLY_READ else f"unknown format {name!r}"
        raise ValueError(f"{what}: {did_you_mean(name, FORMATS)}expected one of {', '.join(FORMATS)}")
    return FORMATS[name]


def create_writer(name: str, path: str | Path, recording: Recording, images: str = "") -> Appender:
    """A new data set at `path`; `images` says how cameras are kept, by default as the format does.

    Raises FileExistsError when something is there, DataError when the format cannot hold such a recording.
    """
    known = find_format(name)
    if (images := images or known.images[0]) not in known.images:
        raise ValueError(f"{name} keeps images as {' or '.join(known.images)}, not as {images!r}")
    if recording.fps is None and known.needs_fps:
        raise DataError(f"{name} needs the frames a second")
    return known.create(Path(path), recording, images)


def resume_writer(name: str, path: str | Path) -> Appender:
    """The writer that goes on with what a killed one left at `path`."""
    return find_format(name).resume(Path(path))


@dataclass(frozen=True)
class Selection:
    """Which features of a data set are read, and under which names. Names are those after renaming."""

    keep: tuple[str, ...] = ()
    """Features asked for, which must be there and whole; all that can be read when none is named."""
    drop: tuple[str, ...] = ()
    """Features to leave out."""
    rename: tuple[str, ...] = ()
    """New names of features, as old=new."""

    def __post_init__(self) -> None:
        for text in self.rename:
            old, _, new = text.partition("=")
            if not old or not new:
                raise ValueError(f"expected old=new to rename a feature, got {text!r}")


class _Selected:
    """Some of the features of a data set, some under other names."""

    def __init__(self, reader: EpisodeReader, selection: Selection) -> None:
        given = dict(text.split("=", 1) for text in selection.rename)
        has = {*reader.features, *reader.left_out}
        if unknown := [key for key in given if key not in has]:
            raise DataError(f"{reader.path} has no {', '.join(unknown)} to rename: it has {', '.join(sorted(has))}")
        names = {key: given.get(key) or usual_name(key, reader.features) for key in reader.features}
        self._old = {new: old for old, new in names.items()}
        if len(self._old) != len(names):
            twins = sorted(old for old, new in names.items() if self._old[new] != old)
            raise DataError(f"{reader.path}: {twins[0]} would have the name of another feature: choose another")
        self.left_out = {given.get(key, key): why for key, why in reader.left_out.items()}
        has = {*self._old, *self.left_out}
        for what, keys in (("keep", selection.keep), ("leave out", selection.drop)):
            # Timestamps that say no more than the rate are no feature, and may yet be left out by name.
            usual = {"timestamp"} if what == "leave out" else set()
            if unknown := [key for key in keys if key not in {*has, *usual}]:
                raise DataError(f"{reader.path} has no {', '.join(unknown)} to {what}: it has {', '.join(sorted(has))}")
        if missing := [key for key in selection.keep if key in self.left_out and key not in selection.drop]:
            raise DataError(f"{reader.path}: {missing[0]} is not read: {self.left_out[missing[0]]}")
        self.left_out = {key: why for key, why in self.left_out.items() if key not in selection.drop}
        self._reader, self.remarks = reader, reader.remarks
        self.path, self.format, self.fps, self.robot = reader.path, reader.format, reader.fps, reader.robot
        renamed = {old: new for new, old in self._old.items() if old != new}
        self.provenance = {
            **noted(reader.path),
            **reader.provenance,
            **({"renamed": renamed} if renamed else {}),
        }
        self.select([key for key in self._old if key not in selection.drop and key in (selection.keep or has)])

    @property
    def episodes(self) -> int:
        return self._reader.episodes

    def select(self, keys: Collection[str]) -> None:
        self._reader.select([self._old[key] for key in keys])
        self._old = {new: old for new, old in self._old.items() if new in keys}
        self.features: Mapping[str, Feature] = {new: self._reader.features[old] for new, old in self._old.items()}

    def length(self, episode: int) -> int:
        return self._reader.length(episode)

    def read_episode(self, episode: int) -> Episode:
        with self._under_new_names():
            whole = self._reader.read_episode(episode)
        return replace(whole, columns={new: self._renamed(new, whole.columns[old]) for new, old in self._old.items()})

    def _renamed(self, new: str, column: Column) -> Column:
        """A camera that finds only while it is read that its feature cannot be kept says so under the new name."""
        if not isinstance(column, Frames) or self._old[new] == new:
            return column

        def read() -> Iterator[np.ndarray]:
            with self._under_new_names():
                yield from column.read()

        return replace(column, read=read)

    @contextmanager
    def _under_new_names(self) -> Iterator[None]:
        try:
            yield
        except FeatureError as error:
            new = {old: new for new, old in self._old.items()}
            raise FeatureError(new.get(error.feature, error.feature), error.what, error.where) from error


def usual_name(key: str, features: Mapping[str, Feature]) -> str:
    """A feature's name in LeRobot's words, where it has one of the names that others use: `actions`, `state`, and
    cameras that are not called observation.images.<camera>. A name that another feature has already is not taken."""
    if features[key].is_camera and not key.startswith(IMAGES):
        usual = IMAGES + key.removeprefix("observation.").removeprefix("images.")
    else:
        usual = {"actions": "action", "state": "observation.state"}.get(key, key)
    return key if usual in features else usual


# Each format is imported when it is used: its packages may be missing.


def _is_robostack(path: Path) -> bool:
    try:
        described = read_json(path / "zarr.json")
        return str(described["attributes"]["format"]).startswith("robostack-episodes")
    except (KeyError, TypeError, OSError):
        return False
    except ValueError:
        return (path / "zarr.json").is_file() and not (path / "meta").is_dir()  # cut short: its reader says so


def _read_robostack(path: Path) -> EpisodeReader:
    from robostack.datasets.store import EpisodeStore

    return EpisodeStore(path)


def _create_robostack(path: Path, recording: Recording, _: str) -> Appender:
    from robostack.datasets.store import EpisodeWriter

    assert recording.fps is not None
    return EpisodeWriter(path, recording.features, recording.fps, recording.provenance, recording.robot)


def _resume_robostack(path: Path) -> Appender:
    from robostack.datasets.store import EpisodeWriter

    return EpisodeWriter.resume(path)


def _read_lerobot(path: Path) -> EpisodeReader:
    from robostack.datasets.formats.lerobot.reader import LeRobotReader

    return LeRobotReader(path)


def _create_lerobot(path: Path, recording: Recording, images: Any) -> Appender:
    from robostack.datasets.formats.lerobot.writer import LeRobotWriter

    assert recording.fps is not None
    writer = LeRobotWriter(path, recording.features, recording.fps, recording.robot, images)
    note(path, recording.provenance)
    return writer


def _resume_lerobot(path: Path) -> Appender:
    from robostack.datasets.formats.lerobot.writer import LeRobotWriter

    return LeRobotWriter.resume(path)


def _is_hdf5(path: Path) -> bool:
    files = path.iterdir() if path.is_dir() else (path,)
    return any(file.suffix in SUFFIXES and not file.name.startswith(".") for file in files)


def _read_aloha(path: Path) -> EpisodeReader:
    from robostack.datasets.formats.hdf5.aloha import AlohaHdf5Reader

    return AlohaHdf5Reader(path)


def _create_aloha(path: Path, recording: Recording, images: Any) -> Appender:
    from robostack.datasets.formats.hdf5.aloha import AlohaHdf5Writer

    writer = AlohaHdf5Writer(path, recording.features, recording.fps, recording.robot, images, recording.provenance)
    note(path, recording.provenance)
    return writer


def _resume_aloha(path: Path) -> Appender:
    from robostack.datasets.formats.hdf5.aloha import AlohaHdf5Writer

    return AlohaHdf5Writer.resume(path)


def _is_diffusion_policy(path: Path) -> bool:
    ends = ("meta/episode_ends/.zarray", "meta/episode_ends/zarr.json")
    if path.is_dir():
        return any((path / name).is_file() for name in ends)
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(ends) for name in archive.namelist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError, UnicodeError):
        return path.suffix == ".zip"  # cut short or damaged: its reader says so


def _read_diffusion_policy(path: Path) -> EpisodeReader:
    from robostack.datasets.formats.diffusion_policy import DiffusionPolicyReader

    return DiffusionPolicyReader(path)


def _create_diffusion_policy(path: Path, recording: Recording, _: str) -> Appender:
    from robostack.datasets.formats.diffusion_policy import DiffusionPolicyWriter

    return DiffusionPolicyWriter(path, recording.features, recording.fps, recording.robot, recording.provenance)


def _resume_diffusion_policy(path: Path) -> Appender:
    from robostack.datasets.formats.diffusion_policy import DiffusionPolicyWriter

    return DiffusionPolicyWriter.resume(path)


FORMATS: Mapping[str, DatasetFormat] = {
    known.name: known
    for known in (
        DatasetFormat(
            "robostack",
            "zarr.json with format robostack-episodes-*",
            _is_robostack,
            _read_robostack,
            _create_robostack,
            _resume_robostack,
            images=("raw",),
            lossless=("raw",),
            needs_fps=True,
        ),
        DatasetFormat(
            "lerobot",
            "meta/info.json",
            lambda path: (path / "meta" / "info.json").is_file(),
            _read_lerobot,
            _create_lerobot,
            _resume_lerobot,
            images=("video", "png"),
            lossless=("png",),
            needs_fps=True,
        ),
        DatasetFormat(
            "aloha",
            "episode_<n>.hdf5 or other HDF5 files, of ALOHA, robomimic or ManiSkill",
            _is_hdf5,
            _read_aloha,
            _create_aloha,
            _resume_aloha,
            images=("raw", "jpeg"),
            lossless=("raw",),
            needs_fps=False,
        ),
        DatasetFormat(
            "diffusion-policy",
            ".zgroup or zarr.json with meta/episode_ends, or a zip of them",
            _is_diffusion_policy,
            _read_diffusion_policy,
            _create_diffusion_policy,
            _resume_diffusion_policy,
            images=("raw",),
            lossless=("raw",),
            needs_fps=False,
        ),
    )
}


def _is_videos(path: Path) -> bool:
    from robostack.datasets.formats.video_folder import SUFFIXES as VIDEOS

    here = [path] if path.is_file() else [*path.iterdir()]
    below = [file for folder in here if folder.is_dir() for file in folder.iterdir()]
    return any(file.suffix.lower() in VIDEOS and not file.name.startswith(".") for file in (*here, *below))


def _read_videos(path: Path) -> EpisodeReader:
    from robostack.datasets.formats.video_folder import VideosReader

    return VideosReader(path)


def _not_written(*_: Any) -> Appender:
    raise ValueError("the format is only read")


ONLY_READ: Mapping[str, DatasetFormat] = {
    "videos": DatasetFormat(
        "videos",
        "videos, an episode each, or a folder of them a camera",
        _is_videos,
        _read_videos,
        _not_written,
        _not_written,
        images=("video",),
        lossless=(),
        needs_fps=True,
    )
}
"""Formats that are read and not written."""
