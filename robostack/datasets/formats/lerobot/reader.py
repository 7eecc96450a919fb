"""LeRobot's data sets, v3.0, v2.1 and v2.0, read without LeRobot: parquet, encoded pictures, arrays, and mp4.

What meta/ says is in `layout`, what a feature is in `features`. A number whose shape is written [1] stays of shape
(1,), except `timestamp`, which is (), and those that robostack wrote. A frame of a video is the one shown nearest to
where the frame is due, which must be within half a period. Pictures are read and decoded while they are iterated,
videos in another process.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from robostack.common.extras import require_extra
from robostack.common.files import check_regular, inside
from robostack.common.text import one_line
from robostack.datasets.episodes import (
    BOOKKEEPING,
    LARGEST_FRAME,
    Column,
    DataError,
    Episode,
    Feature,
    FeatureError,
    Frames,
)
from robostack.datasets.formats.lerobot.features import StoredFeature, numbers, read_source
from robostack.datasets.formats.lerobot.layout import read_metadata, with_own
from robostack.datasets.formats.lerobot.places import Place, Window
from robostack.datasets.formats.lerobot.tables import Tables
from robostack.datasets.formats.lerobot.values import shown
from robostack.datasets.formats.pictures import decode, decode_depth, header
from robostack.datasets.formats.video_process import decode_at, read_header
from robostack.datasets.timing import LARGEST_DEVIATION, check_times, resolves

if TYPE_CHECKING:
    import pyarrow as pa

_INDEX = Feature((), "int64")
_LOOKED_AT = 3
"""Episodes whose first picture is looked at, until one can be read."""
_FILES_LOOKED_AT = 256
"""Files whose timestamps are looked at on opening."""


class LeRobotReader:
    """Meets `EpisodeReader`. Opening reads the metadata, the size of each camera's first frame, and the timestamps,
    which are a feature only where they say more than the rate.

    `path` holds meta/, data/ and videos/; features in `drop` are left out, such as texts, which an episode cannot hold.
    Raises DataError where the metadata is missing or damaged.
    """

    def __init__(self, path: str | Path, drop: Sequence[str] = ()) -> None:
        for package in ("pyarrow", "av", "PIL"):
            require_extra(package, "data")
        self.path = Path(path)
        meta = read_metadata(self.path)
        self.format, self.fps, self.robot = f"LeRobot {meta.version}", meta.fps, meta.robot
        if unknown := [key for key in drop if key not in meta.described]:
            has = ", ".join(meta.described)
            raise DataError(f"{path} has no {', '.join(unknown)} to leave out: it has {has}")
        self._tasks, self._twice, self._places = meta.tasks, meta.twice, meta.places
        self._is_old = meta.version != "v3.0"
        self._tables = Tables(self.path, self._is_old)
        self._ends: dict[Path, float | None] = {}
        self._sources: dict[str, StoredFeature] = {}
        self.left_out: dict[str, str] = {}
        remarks = list(meta.remarks)
        for key in meta.described:
            if key in (*BOOKKEEPING, *drop):
                continue
            try:
                if key in meta.unusable:
                    raise DataError(meta.unusable[key])
                source = self._as_it_is(key, with_own(key, read_source(key, meta.described[key]), meta.own))
                remarks += source.remarks
                self._sources[key] = source
            except ValueError as error:
                self.left_out[key] = one_line(error)
        if "timestamp" in self._sources and self._sources["timestamp"].kind == "numbers":
            self._judge_timestamps()
        self.features: dict[str, Feature] = {key: source.feature for key, source in self._sources.items()}
        self.remarks: tuple[str, ...] = tuple(remarks)
        origin: dict[str, Any] = {"format": self.format, "path": self.path.resolve().name}
        origin |= {"dropped": list(drop)} if drop else {}
        self.provenance: dict[str, Any] = {"source": origin}

    @property
    def episodes(self) -> int:
        return len(self._places)

    def select(self, keys: Collection[str]) -> None:
        self.features = {key: feature for key, feature in self.features.items() if key in keys}
        self._tables.forget()

    def length(self, episode: int) -> int:
        return self._places[episode].length

    def read_episode(self, episode: int) -> Episode:
        import pyarrow as pa

        place = self._places[episode]
        fail = partial(self._failure, episode, place.data)
        if place.doubt:
            raise fail(place.doubt)
        try:
            place, table = self._own_rows(place)
            columns: dict[str, Column] = {}
            for key in self.features:
                if (source := self._sources[key]).kind == "numbers":
                    assert source.stored is not None
                    rows = numbers(table, key, source.stored)
                    columns[key] = rows.reshape(place.length, *source.feature.shape)
            task = numbers(table, "task_index", _INDEX)
            times = self._times(table)
        except FeatureError as error:
            raise FeatureError(error.feature, error.what, self._named(episode, place.data)) from error
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            raise fail(one_line(error)) from error
        for index in sorted(set(task.tolist())):
            if index not in self._tasks:
                raise fail(f"its task_index {index} is not in meta/tasks, which has {len(self._tasks)} tasks")
            if index in self._twice:
                texts = " and as ".join(map(shown, self._twice[index]))
                raise fail(f"its task {index} is listed in meta/tasks as {texts}: keep the right one")
        for key in self.features:
            if self._sources[key].kind != "numbers":
                columns[key] = self._frames(episode, place, key, times)
        return Episode({key: columns[key] for key in self.features}, [self._tasks[index] for index in task.tolist()])

    def _named(self, episode: int, file: Path) -> str:
        number = self._places[episode].number
        also = f" (number {number} in meta/)" if number != episode else ""
        return f"{self.path / file}, episode {episode}{also}"

    def _failure(self, episode: int, file: Path, what: str) -> DataError:
        return DataError(f"{self._named(episode, file)}: {what}")

    # Numbers

    def _own_rows(self, place: Place) -> tuple[Place, pa.Table]:
        """The rows of the episode. Raises DataError where they are another's."""
        table = self._rows(place)
        if not _is_of(table, place) and not self._is_old:
            # Where the file's first episode is not listed, rows are counted from its first index instead.
            first = self._tables.first_index(place)
            if first is not None and 0 <= place.from_index - first != place.first_row:
                moved = replace(place, first_row=place.from_index - first)
                if _is_of(there := self._rows(moved), moved):
                    return moved, there
        if not _is_of(table, place):
            own, frames = (numbers(table, key, _INDEX) for key in ("episode_index", "frame_index"))
            what = f"its rows are of episode {own[0]}, frames {frames[0]} to {frames[-1]}"
            raise DataError(
                f"{what}, expected episode {place.number}, frames 0 to {place.length - 1}: restore the table"
            )
        return place, table

    def _rows(self, place: Place) -> pa.Table:
        sizes = {key: feature.entries for key, feature in self.features.items() if key in self._numbers}
        sizes |= dict.fromkeys(("timestamp", "frame_index", "episode_index", "task_index"), 1)
        table = self._tables.rows(place, list(sizes), list(sizes.values()))
        names = table.schema.names
        if missing := [key for key in ("frame_index", "episode_index", "task_index") if key not in names]:
            raise DataError(f"the file lacks the column {', '.join(missing)}")
        return table

    @property
    def _numbers(self) -> set[str]:
        return {key for key, source in self._sources.items() if source.kind == "numbers"}

    def _times(self, table: pa.Table) -> np.ndarray | None:
        """The episode's timestamps, where they tell frames apart. Raises DataError where they do not keep the rate."""
        stored = table.schema.field("timestamp").type if "timestamp" in table.schema.names else None
        if stored is None or "timestamp" in self.left_out:
            return None
        try:
            times = numbers(table, "timestamp", Feature((), "float32" if str(stored) == "float" else "float64"))
            if odd := _odd(times, self.fps):
                raise FeatureError("timestamp", odd)
        except FeatureError:
            if "timestamp" in self.features:
                raise
            return None
        check_times(times, self.fps)
        return times

    def _judge_timestamps(self) -> None:
        """Takes `timestamp` from the features where it is frame / fps in every episode, or cannot tell frames apart."""
        import pyarrow as pa

        if len({place.data for place in self._places}) > _FILES_LOOKED_AT:
            return
        for place in self._places:
            try:
                if place.doubt:
                    continue
                table = self._tables.rows(place, ["timestamp"], [1])
                is_single = str(table.schema.field("timestamp").type) == "float"
                times = numbers(table, "timestamp", Feature((), "float32" if is_single else "float64"))
                if odd := _odd(times, self.fps):
                    raise FeatureError("timestamp", odd)
            except FeatureError as error:
                self.left_out["timestamp"] = f"{error.what}; frames are counted by the rate instead"
                break
            except (OSError, ValueError, KeyError, pa.ArrowException):
                continue  # it is told when the episode is read
            late = np.abs(times.astype(np.float64) * self.fps - np.arange(len(times)))
            if not late.max(initial=0) <= 1e-3:
                return
        self._tables.forget()
        del self._sources["timestamp"]

    # Cameras

    def _as_it_is(self, key: str, source: StoredFeature) -> StoredFeature:
        """The source with the size of its first frame that can be read, which may not be what meta/info.json says."""
        if source.kind not in ("pictures", "video"):
            return source
        for place in self._places[:_LOOKED_AT]:
            try:
                if source.kind == "video":
                    height, width = read_header(self.path / place.videos[key].file)[:2]
                else:
                    cell = next(self._tables.cells(place, key, 1)).column(0)[0]
                    height, width, is_deep = header(self._encoded(key, cell))
                    if is_deep and source.is_gray and not source.feature.is_depth:
                        source = source.as_depth()
            except Exception as error:
                if isinstance(error, KeyboardInterrupt | MemoryError):
                    raise
                continue  # it is told when the episode is read
            if (height, width) != source.feature.shape[:2]:
                said = "×".join(map(str, source.feature.shape[:2]))
                line = f"{key} is said to have frames of {said} and has some of {height}×{width}"
                source = source.resized(height, width, line)
            break
        return source

    def _frames(self, episode: int, place: Place, key: str, times: np.ndarray | None) -> Frames:
        source = self._sources[key]
        shape: Any = (place.length, *source.feature.shape)
        file = place.videos[key].file if source.kind == "video" else place.data
        where = f"{self._named(episode, file)}: {key}"
        if source.kind == "video":
            read, check = partial(self._shown, episode, key, times), partial(self._check, episode, key, times)
            return Frames(shape, read, check, np.dtype(source.feature.dtype), where)
        read = partial(self._pictures, episode, place, key)
        return Frames(shape, read, dtype=np.dtype(source.feature.dtype), where=where)

    def _pictures(self, episode: int, place: Place, key: str) -> Iterator[np.ndarray]:
        """Decodes a camera whose pictures are in the table."""
        import pyarrow as pa

        source, index = self._sources[key], 0
        fail = partial(self._failure, episode, place.data)
        try:
            if source.kind == "array":
                for picture in self._arrays(place, key, source):
                    yield picture
                    index += 1
                return
            for batch in self._tables.cells(place, key):
                for cell in batch.column(0):
                    data = self._encoded(key, cell)
                    yield decode_depth(data, source.depth_factor) if source.feature.is_depth else decode(data)
                    index += 1
        except FeatureError as error:
            raise FeatureError(key, error.what, f"{self._named(episode, place.data)}, frame {index}") from error
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            raise fail(f"{key}, frame {index}: {one_line(error)}") from error

    def _encoded(self, key: str, cell: pa.Scalar) -> bytes:
        """The bytes of a picture in a cell of the table, or in the file that it names."""
        value = cell.as_py()
        value = value if isinstance(value, dict) else {"path" if isinstance(value, str) else "bytes": value}
        data, name = value.get("bytes"), value.get("path")
        if data is None and name is None:
            raise DataError("the picture is missing")
        if isinstance(data, bytes):
            return data
        if data is not None or not isinstance(name, str):
            raise FeatureError(key, f"is no picture: expected one that is encoded, got {cell.type}")
        file = inside(self.path, name)
        if check_regular(file).st_size > LARGEST_FRAME:
            raise DataError(f"{name} has more than {LARGEST_FRAME:,} bytes")
        return file.read_bytes()

    def _arrays(self, place: Place, key: str, source: StoredFeature) -> Iterator[np.ndarray]:
        """Pictures that are numbers in the table."""
        assert source.stored is not None
        form = source.form
        if form is not None and source.stored.dtype.startswith("float"):
            seen = [form.seen(numbers(batch, key, source.stored)) for batch in self._tables.cells(place, key)]
            form = next((some for some in seen if some.scale == "as it is"), seen[0])
        for batch in self._tables.cells(place, key):
            for picture in numbers(batch, key, source.stored):
                yield picture.reshape(source.feature.shape) if form is None else form.rgb(picture)

    def _shown(self, episode: int, key: str, times: np.ndarray | None) -> Iterator[np.ndarray]:
        """Decodes a camera whose frames are in a video."""
        due = self._due(episode, key, times)
        file, codes = self._places[episode].videos[key].file, self._sources[key].depth_codes
        form = "gray12le" if codes else "rgb24"
        try:
            for frame in decode_at(self.path / file, due.tolist(), LARGEST_DEVIATION / self.fps, form):
                yield codes.millimetres(frame) if codes else frame
        except (OSError, ValueError) as error:
            raise self._failure(episode, file, f"{key}: {one_line(error)}") from error

    def _check(self, episode: int, key: str, times: np.ndarray | None) -> None:
        self._due(episode, key, times)

    def _due(self, episode: int, key: str, times: np.ndarray | None) -> np.ndarray:
        """When the frames are due in the video, in seconds. Raises DataError where it cannot hold them."""
        place, half = self._places[episode], 0.5 / self.fps
        window = place.videos[key]
        fail = partial(self._failure, episode, window.file)
        if window.doubt:
            raise fail(window.doubt)
        try:
            file_end = self._video_end(window)
        except (OSError, ValueError) as error:
            raise fail(f"{key}: {one_line(error)}") from error
        due = np.arange(place.length) / self.fps
        end = file_end if window.end is None else window.end
        if times is not None:
            late = float(np.median(times.astype(np.float64) * self.fps - np.arange(len(times)))) / self.fps
            # LeRobot's rule: a frame is found by its timestamp. A clock that began long before cannot be meant.
            if abs(late) > half and (end is None or due[-1] + late <= end - window.start - half):
                due = due + late
        due = window.start + due
        if file_end is not None and due[-1] > file_end - half / 2:
            index = int(np.argmax(due > file_end - half / 2))
            what = f"the video ends before frame {index}, due at {due[index]:.4f} s; the table has {len(due)} frames"
            raise fail(f"{what}: restore it from a copy")
        return due

    def _video_end(self, window: Window) -> float | None:
        if window.file not in self._ends:
            end = read_header(self.path / window.file).end
            self._ends[window.file] = None if end is None else float(end)
        return self._ends[window.file]


def _is_of(table: pa.Table, place: Place) -> bool:
    own, frames = (numbers(table, key, _INDEX) for key in ("episode_index", "frame_index"))
    return bool(np.all(own == place.number) and np.all(frames == np.arange(place.length)))


def _odd(times: np.ndarray, fps: float) -> str:
    """Why timestamps cannot be used, if they cannot."""
    if not np.isfinite(times).all():
        return "is not finite in some frames"
    return "" if resolves(times, fps) else f"cannot tell frames apart: {times.dtype} of {float(times[0]):.4g} s"
