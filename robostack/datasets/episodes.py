"""What a data set is, whatever its format: episodes read one by one and appended one by one.

A reader opens without reading frames and never changes what it reads; a writer appends whole episodes and can go on
where a killed one stopped. Our own format is `store`, those of others are in `formats`.

Keys are LeRobot's: `observation.state`, `observation.images.<camera>`, `action`, `next.reward`, ... The keys in
`BOOKKEEPING` follow from where a frame stands and are never features; `timestamp` is a feature where a source has it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Shaped

IMAGES = "observation.images."
BOOKKEEPING = ("frame_index", "episode_index", "index", "task_index")


class DataError(ValueError):
    """The data is not what it claims to be; the message says what was expected, what was got and what to do."""


class FeatureError(DataError):
    """One feature is of a kind that cannot be kept: another type or shape than declared, values missing or not finite.
    The rest of the episode is whole, so that whoever can do without the feature leaves it out and goes on."""

    def __init__(self, feature: str, what: str, where: str = "") -> None:
        super().__init__(f"{where}: {feature} {what}" if where else f"{feature} {what}")
        self.feature, self.what, self.where = feature, what, where


class EmptyEpisodeError(DataError):
    """There is nothing in the episode, such as in a file that a recorder made and did not come to fill: nothing is lost
    without it."""


LARGEST_FRAME = 1 << 28
"""Bytes that one frame of a feature may take; a picture of 8192×8192 pixels takes 192 MiB."""


@dataclass(frozen=True)
class Feature:
    """What one frame of a feature holds: `names` and `units` describe its entries, of a matrix row by row. A depth
    camera has one unit, that of all its pixels.

    Raises DataError for a shape, type, or number of names or units that cannot be.
    """

    shape: tuple[int, ...]
    dtype: str
    names: tuple[str, ...] = ()
    units: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        try:
            dtype = np.dtype(self.dtype)
        except (TypeError, ValueError, SyntaxError):
            dtype = np.dtype("O")
        if dtype.kind not in "biuf" or dtype.name != self.dtype:
            raise DataError(f"expected a type of numbers such as float32, got {self.dtype!r}")
        if len(self.shape) > 8 or not all(type(size) is int and size > 0 for size in self.shape):
            raise DataError(f"expected a shape of up to 8 positive sizes, got {self.shape}")
        if self.entries * dtype.itemsize > LARGEST_FRAME:
            raise DataError(f"a frame of shape {self.shape} {self.dtype} takes more than {LARGEST_FRAME:,} bytes")
        if self.names and len(self.names) != self.entries:
            raise DataError(f"expected {self.entries} names for shape {self.shape} or none, got {len(self.names)}")
        if self.units and len(self.units) != (1 if self.is_depth else self.entries):
            raise DataError(f"expected {self.entries} units for shape {self.shape} or none, got {len(self.units)}")

    @property
    def entries(self) -> int:
        """How many numbers one frame holds."""
        return math.prod(self.shape)

    @property
    def is_image(self) -> bool:
        """Images are uint8 RGB, (height, width, 3)."""
        return self.dtype == "uint8" and len(self.shape) == 3 and self.shape[2] == 3

    @property
    def is_depth(self) -> bool:
        """Depth images are uint16, (height, width, 1), 0 where nothing was measured; usually in mm."""
        return self.dtype == "uint16" and len(self.shape) == 3 and self.shape[2] == 1

    @property
    def is_camera(self) -> bool:
        """Whether it is a picture, of colour or depth; everything else is numbers."""
        return self.is_image or self.is_depth

    @property
    def entry_names(self) -> tuple[str, ...]:
        """A name for each entry, its place where none is given: "2" in a vector, "1,0" in a matrix, "" of a scalar."""
        places = np.ndindex(self.shape) if self.shape and not self.is_camera else ()
        return self.names or tuple(",".join(map(str, place)) for place in places) or ("",)


def unique_names(names: Sequence[str]) -> tuple[str, ...]:
    """The names, those that repeat themselves with their number: j, j, g become j#1, j#2, g."""
    counts, met = Counter(names), Counter[str]()
    unique = []
    for name in names:
        met[name] += 1
        unique.append(f"{name}#{met[name]}" if counts[name] > 1 else name)
    return tuple(unique)


@dataclass(frozen=True)
class Frames:
    """The frames of one camera over an episode, decoded while they are iterated, each time anew.

    Only one frame at a time need be in memory. Iterating raises DataError when the source ends early or is damaged, or
    has frames of another size than `shape` says: whoever resizes them anyway takes them from `read`.
    """

    shape: tuple[int, int, int, int]
    """(frames, height, width, channels): three of colour, or one of depth."""
    read: Callable[[], Iterator[Shaped[np.ndarray, "height width channels"]]]
    check: Callable[[], None] = lambda: None
    """Raises DataError for what can be seen to be wrong without decoding, such as a video that is too short."""
    dtype: np.dtype = field(default_factory=lambda: np.dtype(np.uint8))
    """uint8 of colour, uint16 of depth."""
    where: str = "the camera"
    """Whose frames they are, for messages."""

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[Shaped[np.ndarray, "height width channels"]]:
        for index, frame in enumerate(self.read()):
            if frame.shape != self.shape[1:]:
                expected, got = ("×".join(map(str, shape)) for shape in (self.shape[1:], frame.shape))
                advice = (
                    "" if frame.shape[2:] != self.shape[3:] else ": --resize HEIGHTxWIDTH makes all frames one size"
                )
                raise DataError(f"{self.where}, frame {index}: expected a picture of {expected}, got {got}{advice}")
            yield frame


Column = np.ndarray | Frames


@dataclass(frozen=True)
class Episode:
    """One episode: every feature as rows (T, *shape), cameras as `Frames` or arrays, and each frame's task text."""

    columns: Mapping[str, Column]
    task: Sequence[str]
    remarks: tuple[str, ...] = ()
    """What was set right while reading, such as an action more than states that was cut off, a line each."""


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
    def left_out(self) -> Mapping[str, str]:
        """Features of the source that are of no kind that is read, and why; the rest is read without them."""
        ...

    @property
    def remarks(self) -> tuple[str, ...]:
        """What of the data set as a whole was set right or left out on opening, such as an episode without frames or
        names that do not fit, a line each, for people to be told once."""
        ...

    def select(self, keys: Collection[str]) -> None:
        """From now on only these of the features are there; the others are not even read."""
        ...

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
            raise FeatureError(key, f"is not as declared: expected {expected}, got {rows.shape} {rows.dtype}")
        if isinstance(rows, np.ndarray) and rows.dtype.kind == "f" and not np.isfinite(rows).all():
            frame = int(np.argwhere(~np.isfinite(rows))[0][0])
            raise FeatureError(key, f"is not finite at frame {frame} of the episode: drop or repair the episode")
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
