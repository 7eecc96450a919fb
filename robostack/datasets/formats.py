"""The formats of data sets: which one a path holds, and its reader and writer."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robostack.datasets.episodes import Appender, DataError, Episode, EpisodeReader, Feature


@dataclass(frozen=True)
class Recording:
    """What a new data set is told before its first episode."""

    features: Mapping[str, Feature]
    fps: float | None
    robot: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Format:
    """A format of data sets."""

    name: str
    looks_like: str
    recognises: Callable[[Path], bool]
    read: Callable[[Path, Sequence[str]], EpisodeReader]
    """Path and features to leave out."""
    create: Callable[[Path, Recording, str], Appender]
    """Path, what is recorded, how cameras are kept: one of `images`."""
    resume: Callable[[Path], Appender]
    images: tuple[str, ...]
    """Ways to keep cameras; the first is the default."""
    lossless: tuple[str, ...]
    """Those of `images` that give every pixel back."""
    needs_fps: bool


def detect(path: str | Path) -> Format:
    """The format of the data set at `path`, by looking."""
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path} does not exist: expected a data set")
    for known in FORMATS.values():
        if known.recognises(path):
            return known
    looked_for = "; ".join(f"{known.looks_like} ({known.name})" for known in FORMATS.values())
    raise DataError(f"{path} is no data set that is known: looked for {looked_for}")


def open_reader(path: str | Path, drop: Sequence[str] = ()) -> EpisodeReader:
    """The data set at `path`, whatever its format, without the features `drop`."""
    return detect(path).read(Path(path), drop)


def find_format(name: str) -> Format:
    """The format of this name."""
    if name not in FORMATS:
        raise ValueError(f"unknown format {name!r}: expected one of {', '.join(FORMATS)}")
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


class _Without:
    """A data set without some of its features."""

    def __init__(self, reader: EpisodeReader, drop: Sequence[str]) -> None:
        if unknown := [key for key in drop if key not in reader.features]:
            has = ", ".join(reader.features)
            raise DataError(f"{reader.path} has no {', '.join(unknown)} to leave out: it has {has}")
        self._reader = reader
        self.path, self.format, self.fps, self.robot = reader.path, reader.format, reader.fps, reader.robot
        self.provenance = reader.provenance
        self.features: Mapping[str, Feature] = {
            key: feature for key, feature in reader.features.items() if key not in drop
        }

    @property
    def episodes(self) -> int:
        return self._reader.episodes

    def length(self, episode: int) -> int:
        return self._reader.length(episode)

    def read_episode(self, episode: int) -> Episode:
        whole = self._reader.read_episode(episode)
        return Episode({key: whole.columns[key] for key in self.features}, whole.task)


# Each format is imported when it is used: its packages may be missing.


def _is_robostack(path: Path) -> bool:
    try:
        described = json.loads((path / "zarr.json").read_text())
        return str(described["attributes"]["format"]).startswith("robostack-episodes")
    except (KeyError, TypeError, OSError):
        return False
    except ValueError:
        return True  # cut short: its reader says so


def _read_robostack(path: Path, drop: Sequence[str]) -> EpisodeReader:
    from robostack.datasets.store import EpisodeStore

    store = EpisodeStore(path)
    return _Without(store, drop) if drop else store


def _create_robostack(path: Path, recording: Recording, _: str) -> Appender:
    from robostack.datasets.store import EpisodeWriter

    assert recording.fps is not None
    return EpisodeWriter(path, recording.features, recording.fps, recording.provenance, recording.robot)


def _resume_robostack(path: Path) -> Appender:
    from robostack.datasets.store import EpisodeWriter

    return EpisodeWriter.resume(path)


def _read_lerobot(path: Path, drop: Sequence[str]) -> EpisodeReader:
    from robostack.datasets.lerobot_reader import LeRobotReader

    return LeRobotReader(path, drop)


def _create_lerobot(path: Path, recording: Recording, images: Any) -> Appender:
    from robostack.datasets.lerobot_writer import LeRobotWriter

    assert recording.fps is not None
    return LeRobotWriter(path, recording.features, recording.fps, recording.robot, images)


def _resume_lerobot(path: Path) -> Appender:
    from robostack.datasets.lerobot_writer import LeRobotWriter

    return LeRobotWriter.resume(path)


def _is_aloha(path: Path) -> bool:
    return path.suffix in (".hdf5", ".h5") if path.is_file() else any(path.glob("episode_*.hdf5"))


def _read_aloha(path: Path, drop: Sequence[str]) -> EpisodeReader:
    from robostack.datasets.aloha_hdf5 import AlohaHdf5Reader

    return AlohaHdf5Reader(path, drop)


def _create_aloha(path: Path, recording: Recording, images: Any) -> Appender:
    from robostack.datasets.aloha_hdf5 import AlohaHdf5Writer

    return AlohaHdf5Writer(path, recording.features, recording.fps, recording.robot, images, recording.provenance)


def _resume_aloha(path: Path) -> Appender:
    from robostack.datasets.aloha_hdf5 import AlohaHdf5Writer

    return AlohaHdf5Writer.resume(path)


def _is_diffusion_policy(path: Path) -> bool:
    ends = "meta/episode_ends/.zarray"
    if path.is_dir():
        return (path / ".zgroup").is_file() and (path / ends).is_file()
    if not zipfile.is_zipfile(path):
        return path.suffix == ".zip"  # cut short: its reader says so
    with zipfile.ZipFile(path) as archive:
        return ends in archive.namelist()


def _read_diffusion_policy(path: Path, drop: Sequence[str]) -> EpisodeReader:
    from robostack.datasets.diffusion_policy import DiffusionPolicyReader

    return DiffusionPolicyReader(path, drop)


def _create_diffusion_policy(path: Path, recording: Recording, _: str) -> Appender:
    from robostack.datasets.diffusion_policy import DiffusionPolicyWriter

    return DiffusionPolicyWriter(path, recording.features, recording.fps, recording.robot, recording.provenance)


def _resume_diffusion_policy(path: Path) -> Appender:
    from robostack.datasets.diffusion_policy import DiffusionPolicyWriter

    return DiffusionPolicyWriter.resume(path)


FORMATS: Mapping[str, Format] = {
    known.name: known
    for known in (
        Format(
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
        Format(
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
        Format(
            "aloha",
            "episode_<n>.hdf5 or one such file",
            _is_aloha,
            _read_aloha,
            _create_aloha,
            _resume_aloha,
            images=("raw", "jpeg"),
            lossless=("raw",),
            needs_fps=False,
        ),
        Format(
            "diffusion-policy",
            ".zgroup with meta/episode_ends or a zip of them",
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
