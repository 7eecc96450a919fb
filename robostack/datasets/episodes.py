"""What a data set is, whatever its format: episodes read one by one and appended one by one.

A reader opens without reading frames and never changes what it reads; a writer appends whole episodes and can go on
where a killed one stopped. The formats: our own store (`store`), LeRobot (`lerobot`), ALOHA's HDF5 files
(`aloha_hdf5`) and Diffusion Policy's Zarr (`diffusion_policy`).

Keys are LeRobot's: `observation.state`, `observation.images.<camera>`, `action`, `next.reward`, ... The keys in
`BOOKKEEPING` follow from where a frame stands and are never features; `timestamp` is a feature where a source has it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

IMAGES = "observation.images."
BOOKKEEPING = ("frame_index", "episode_index", "index", "task_index")


class DataError(ValueError):
    """The data is not what it claims to be; the message says what was expected, what came and what to do."""


@dataclass(frozen=True)
class Feature:
    """What one frame of a feature holds: `names` and `units` describe the entries of a vector, in order."""

    shape: tuple[int, ...]
    dtype: str
    names: tuple[str, ...] = ()
    units: tuple[str, ...] = ()

    @property
    def is_image(self) -> bool:
        """Images are uint8 RGB, (height, width, 3)."""
        return self.dtype == "uint8" and len(self.shape) == 3


@dataclass(frozen=True)
class Frames:
    """The frames of one camera over an episode, decoded while they are iterated, each time anew.

    Only one frame at a time need be in memory. Iterating raises DataError when the source ends early or is damaged.
    """

    shape: tuple[int, int, int, int]
    """(frames, height, width, 3)."""
    read: Callable[[], Iterator[UInt8[np.ndarray, "height width 3"]]]
    check: Callable[[], None] = lambda: None
    """Raises DataError for what can be seen to be wrong without decoding, such as a video that is too short."""

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
        return self.read()

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.uint8)


Column = np.ndarray | Frames


@dataclass(frozen=True)
class Episode:
    """One episode: every feature as rows (T, *shape), cameras as `Frames` or arrays, and each frame's task text."""

    columns: Mapping[str, Column]
    task: Sequence[str]


@runtime_checkable
class EpisodeReader(Protocol):
    """A data set in some format. Opening raises DataError when the whole of it is unusable; what is wrong with one
    episode is told, with the episode's number, when that episode is read, and the others stay readable."""

    @property
    def path(self) -> Path: ...

    @property
    def format(self) -> str:
        """For people, such as "LeRobot v3.0"."""
        ...

    @property
    def fps(self) -> float | None:
        """Frames a second; None where the format does not record it."""
        ...

    @property
    def robot(self) -> str | None:
        """Kind of robot, such as "aloha"; None where it is not recorded."""
        ...

    @property
    def features(self) -> Mapping[str, Feature]: ...

    @property
    def provenance(self) -> Mapping[str, Any]: ...

    @property
    def episodes(self) -> int: ...

    def length(self, episode: int) -> int:
        """Frames of an episode, without reading it."""
        ...

    def read_episode(self, episode: int) -> Episode:
        """One episode; numbers are read, images when they are iterated."""
        ...


@runtime_checkable
class Appender(Protocol):
    """Writes a data set in some format, episode by episode. Constructing one raises FileExistsError where something
    is; `resume` goes on with what a killed writer left, with the same features."""

    episodes: int
    """Whole episodes written so far."""

    @classmethod
    def resume(cls, path: Path) -> Appender: ...

    def append(self, columns: Mapping[str, Column], task: str | Sequence[str]) -> int:
        """Writes one episode and gives its index; after an exception or a kill it is not part of the data set."""
        ...

    def finish(self) -> None:
        """Writes what can only be written at the end, such as statistics; nothing is appended after it."""
        ...


def check_episode(columns: Mapping[str, Column], features: Mapping[str, Feature]) -> int:
    """The length T of an episode. Raises DataError unless it has exactly these features, finite and equally long."""
    if missing := sorted(set(features) - set(columns)):
        raise DataError(f"the episode lacks {', '.join(missing)}: every feature of the data set is needed")
    if unknown := sorted(set(columns) - set(features)):
        raise DataError(f"the episode has {', '.join(unknown)}, which the data set does not know")
    length = len(columns["action"]) if "action" in columns else len(next(iter(columns.values())))
    if length == 0:
        raise DataError("the episode has no frames")
    for key, feature in features.items():
        rows = columns[key]
        if rows.shape != (length, *feature.shape) or rows.dtype != np.dtype(feature.dtype):
            expected = f"{(length, *feature.shape)} {feature.dtype}"
            raise DataError(f"{key}: expected {expected}, got {rows.shape} {rows.dtype}")
        if isinstance(rows, np.ndarray) and rows.dtype.kind == "f" and not np.isfinite(rows).all():
            frame = int(np.argwhere(~np.isfinite(rows))[0][0])
            raise DataError(f"{key} is not finite at frame {frame} of the episode: drop or repair the episode")
    return length


def task_of_each_frame(task: str | Sequence[str], length: int) -> list[str]:
    """The task text of every frame. Raises DataError when there are more or fewer texts than frames."""
    texts = [task] * length if isinstance(task, str) else list(task)
    if len(texts) != length:
        raise DataError(f"expected a task text for each of {length} frames, got {len(texts)}")
    return texts


def in_blocks(column: Column, rows: int, first: int = 0) -> Iterator[np.ndarray]:
    """A column `rows` rows at a time, the first time `first` if that is not 0; no more than these are in memory."""
    frames = iter(column)
    while block := list(islice(frames, first or rows)):
        stacked, first = np.stack(block), 0
        block.clear()  # or two blocks would be in memory while the next is made
        yield stacked
