"""A folder of videos: each is an episode of one camera, without actions.

    <path>/<episode>.mp4             observation.images.camera
    <path>/<camera>/<episode>.mp4    observation.images.<camera>; videos of one name are of one episode, or else those
                                     of one place in the order of their names

Episodes are in natural order. All frames of a video are read; they are decoded in another process, which may die.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from robostack.common.extras import require_extra
from robostack.common.text import one_line
from robostack.datasets.episodes import IMAGES, Column, DataError, Episode, Feature, Frames
from robostack.datasets.formats.hdf5.files import natural
from robostack.datasets.formats.video import VideoHeader, exact_rate
from robostack.datasets.formats.video_process import decode_at, read_header

SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")
SAME_RATE = 2e-3
"""Share by which rates may differ and be one: 29.97 and 30."""


class VideosReader:
    """Reads a folder of videos, or one. Raises DataError where no header of a video can be read."""

    format = "videos"
    robot: str | None = None

    def __init__(self, path: str | Path) -> None:
        require_extra("av", "report")
        self.path = Path(path)
        self._episodes = episodes_of(self.path)
        self.left_out: dict[str, str] = {}
        self.remarks = ("videos hold no actions: what is learnt from them needs others beside them",)
        self.features: Mapping[str, Feature] = {}
        problems: list[str] = []
        for episode in range(len(self._episodes)):
            try:
                headers = {key: self._header(file) for key, file in self._episodes[episode].items()}
            except DataError as error:
                problems.append(one_line(error))
                continue
            self.features = {key: Feature((head.height, head.width, 3), "uint8") for key, head in headers.items()}
            self.fps: float | None = float(_rate(next(iter(headers.values()))))
            break
        else:
            raise DataError(f"{path}: none of {len(self._episodes)} videos can be read; the first: {problems[0]}")
        self.provenance: Mapping[str, Any] = {"source": {"format": self.format}}

    @property
    def episodes(self) -> int:
        return len(self._episodes)

    def select(self, keys: Collection[str]) -> None:
        self.features = {key: feature for key, feature in self.features.items() if key in keys}

    def length(self, episode: int) -> int:
        return min(_count(head) for head in self._headers(episode).values())

    def read_episode(self, episode: int) -> Episode:
        headers = self._headers(episode)
        counts = {key: _count(head) for key, head in headers.items()}
        length = min(counts.values())
        if longest := [key for key, count in counts.items() if count > length + 1]:
            told = f"{longest[0]} has {counts[longest[0]]} frames, another camera {length}"
            raise DataError(f"{self.path}, episode {episode}: {told}: cut the videos to one length")
        columns: dict[str, Column] = {}
        for key in self.features:
            head, file = headers[key], self._episodes[episode][key]
            where = f"{file}, episode {episode}"
            read = partial(_frames, file, head, length, where)
            columns[key] = Frames((length, head.height, head.width, 3), read, where=where)
        cut = max(counts.values()) > length
        return Episode(columns, [""] * length, ("a camera has one frame more: its last is left out",) * cut)

    def _headers(self, episode: int) -> dict[str, VideoHeader]:
        if not 0 <= episode < len(self._episodes):
            raise IndexError(f"episode {episode} of {len(self._episodes)}")
        files = self._episodes[episode]
        if missing := [key for key in self.features if key not in files]:
            name = next(iter(files.values())).name
            raise DataError(f"{self.path}, episode {episode} ({name}) lacks {', '.join(missing)}: leave it out")
        headers = {key: self._header(files[key]) for key in self.features}
        for key, head in headers.items():
            rate = float(_rate(head))
            if self.fps is not None and abs(rate / self.fps - 1) > SAME_RATE:
                told = f"{files[key]} has {rate:.4g} frames a second, others {self.fps:.4g}"
                raise DataError(f"{told} (episode {episode}): bring them to one rate")
        return headers

    def _header(self, file: Path) -> VideoHeader:
        try:
            head = read_header(file)
            if _count(head) < 1:
                raise DataError("it has no frames")
        except (DataError, OSError, ValueError) as error:
            raise DataError(f"{file}: {one_line(error)}") from error
        return head


def episodes_of(path: Path) -> list[dict[str, Path]]:
    """The videos of each episode by the names of their cameras. Raises DataError where there is none, or where it is
    not clear which belong together."""
    if path.is_file():
        return [{f"{IMAGES}camera": path}]
    if here := _videos(path):
        return [{f"{IMAGES}camera": file} for file in here]
    folders = sorted((one for one in path.iterdir() if one.is_dir()), key=lambda one: natural(one.name))
    cameras = {IMAGES + folder.name: videos for folder in folders if (videos := _videos(folder))}
    if not cameras:
        raise DataError(f"{path}: expected videos, or a folder of videos for each camera")
    stems = {key: {file.stem: file for file in files} for key, files in cameras.items()}
    if len({frozenset(names) for names in stems.values()}) > 1 and len({len(files) for files in cameras.values()}) == 1:
        return [dict(zip(cameras, files, strict=True)) for files in zip(*cameras.values(), strict=True)]
    every = sorted({name for names in stems.values() for name in names}, key=natural)
    return [{key: names[stem] for key, names in stems.items() if stem in names} for stem in every]


def _videos(folder: Path) -> Sequence[Path]:
    found = (file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and not file.name.startswith("."))
    return sorted(found, key=lambda file: natural(file.name))


def _rate(head: VideoHeader) -> Fraction:
    if head.rate is None or not 0 < head.rate <= 1000:
        raise DataError("the video does not say how many frames a second it has: encode it anew")
    return exact_rate(head.rate)


def _count(head: VideoHeader) -> int:
    if head.end is None:
        raise DataError("the video does not say how long it is: encode it anew")
    return round((head.end - head.start) * _rate(head))


def _frames(file: Path, head: VideoHeader, length: int, where: str) -> Iterator[np.ndarray]:
    rate = _rate(head)
    due = [float(head.start + i / rate) for i in range(length)]
    try:
        yield from decode_at(file, due, float(1 / rate / 2))
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    except OSError as error:
        raise DataError(f"{where} cannot be read ({one_line(error)})") from error
