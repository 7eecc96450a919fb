"""LeRobot's data sets, v3.0, v2.1 and v2.0, read without LeRobot: parquet, PNG or JPEG pictures, and mp4.

Where things lie is in `lerobot_layout`. A number whose shape is written [1] stays of shape (1,), except `timestamp`,
which is (). A frame of a video is the one shown at the episode's first moment in the file plus the frame's
`timestamp`, to within 0.1 ms: LeRobot's own rule. Numbers are read by row group, of which the last is kept, since
LeRobot's converters put a whole file in one; pictures are read and decoded while they are iterated.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from robostack.datasets.episodes import BOOKKEEPING, Column, DataError, Episode, Feature, Frames
from robostack.datasets.lerobot_layout import Place, inside, numbers, one_line, read_feature, read_metadata
from robostack.datasets.video import decode_frames, video_end
from robostack.extras import require_extra

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

TOLERANCE = 1e-4
"""Seconds by which the time of a video's frame may differ from the table's."""
_INDEX = Feature((), "int64")


class LeRobotReader:
    """Meets `EpisodeReader`. Opening reads the metadata alone.

    Args:
        path: the folder that holds meta/, data/ and videos/.
        drop: features to leave out, such as texts, which an episode cannot hold.

    Raises:
        DataError: the metadata is missing or damaged, or a feature is of a kind that is not read.
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
        self.features: dict[str, Feature] = {}
        self.left_out: dict[str, str] = {}
        self.remarks: tuple[str, ...] = ()
        for key in meta.described.keys() - {*BOOKKEEPING, *drop}:
            try:
                self.features[key] = read_feature(key, meta.described[key])
            except (ValueError, KeyError, TypeError) as error:
                self.left_out[key] = one_line(error)
        self.features = {key: self.features[key] for key in meta.described if key in self.features}
        self.provenance: dict[str, Any] = {"source": {"format": self.format, "path": self.path.resolve().name}}
        if drop:
            self.provenance["source"]["dropped"] = list(drop)
        self._tasks, self._places, self._version = meta.tasks, meta.places, meta.version
        self._open: tuple[Path, pq.ParquetFile] | None = None
        self._kept: tuple[Path, list[int], pa.Table] | None = None
        self._end: tuple[Path, Fraction | None] | None = None

    @property
    def episodes(self) -> int:
        return len(self._places)

    def select(self, keys: Collection[str]) -> None:
        self.features = {key: feature for key, feature in self.features.items() if key in keys}
        self._kept = None

    def length(self, episode: int) -> int:
        return self._places[episode].length

    def read_episode(self, episode: int) -> Episode:
        import pyarrow as pa

        place = self._places[episode]
        fail = partial(self._failure, episode, place.data)
        try:
            table = self._rows(place)
            columns: dict[str, Column] = {
                key: numbers(table, key, feature) for key, feature in self.features.items() if not feature.is_image
            }
            own, frames, task = (numbers(table, key, _INDEX) for key in ("episode_index", "frame_index", "task_index"))
            times = numbers(table, "timestamp", Feature((), "float64"))
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            raise fail(one_line(error)) from error
        if np.any(own != episode) or np.any(frames != np.arange(place.length)):
            raise fail(f"its rows are of episode {own[0]}, frames {frames[0]} to {frames[-1]}: restore the table")
        if unknown := sorted(set(task.tolist()) - set(self._tasks)):
            raise fail(f"its task_index {unknown[0]} is not in meta/tasks, which has {len(self._tasks)} tasks")
        for key, feature in self.features.items():
            if feature.is_image:
                shown = key in place.videos
                read = partial(self._shown, episode, key, times) if shown else partial(self._pictures, episode, key)
                check = partial(self._check_end, episode, key, times) if shown else lambda: None
                columns[key] = Frames((place.length, *feature.shape), read, check)  # pyright: ignore[reportArgumentType]
        return Episode({key: columns[key] for key in self.features}, [self._tasks[index] for index in task.tolist()])

    def _failure(self, episode: int, file: Path, what: str) -> DataError:
        return DataError(f"{self.path / file}, episode {episode}: {what}")

    def _rows(self, place: Place) -> pa.Table:
        """The episode's rows of every column of numbers."""
        if self._open is None or self._open[0] != place.data:
            self._open = (place.data, _parquet(self.path / place.data))
        file = self._open[1]
        if self._version != "v3.0" and file.metadata.num_rows != place.length:
            raise DataError(f"the file has {file.metadata.num_rows} rows, the episode {place.length}: restore it")
        groups, first = _row_groups(file, place)
        if self._kept is None or self._kept[:2] != (place.data, groups):
            own = [key for key, feature in self.features.items() if not feature.is_image]
            wanted = list(dict.fromkeys([*own, "timestamp", "frame_index", "episode_index", "task_index"]))
            _require(file, wanted)
            self._kept = (place.data, groups, file.read_row_groups(groups, columns=wanted))
        return self._kept[2].slice(first, place.length)

    def _pictures(self, episode: int, key: str) -> Iterator[np.ndarray]:
        """Decodes a camera whose pictures are in the table."""
        import pyarrow as pa

        place = self._places[episode]
        fail = partial(self._failure, episode, place.data)
        index = 0
        try:
            file = _parquet(self.path / place.data)
            _require(file, [key])
            groups, before = _row_groups(file, place)
            for batch in file.iter_batches(batch_size=16, row_groups=groups, columns=[key]):
                cells = batch.column(key).slice(before, place.length - index)
                before = max(0, before - len(batch))
                for cell in cells:
                    yield self._picture(cell.as_py(), self.features[key].shape)
                    index += 1
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            raise fail(f"{key}, frame {index}: {one_line(error)}") from error

    def _picture(self, cell: dict[str, Any] | None, shape: tuple[int, ...]) -> np.ndarray:
        from PIL import Image

        if cell is None or (cell["bytes"] is None and cell["path"] is None):
            raise DataError("the picture is missing")
        data = cell["bytes"] if cell["bytes"] is not None else (self.path / inside(cell["path"])).read_bytes()
        try:
            with Image.open(io.BytesIO(data)) as picture:  # reads the size, not yet the pixels
                if (picture.height, picture.width, 3) != shape or picture.mode != "RGB":
                    came = f"{(picture.height, picture.width)} {picture.mode}"
                    raise DataError(f"expected a picture of {shape[:2]} RGB, got {came}")
                return np.array(picture)
        except (SyntaxError, Image.DecompressionBombError) as error:  # pillow's word for a broken PNG is SyntaxError
            raise DataError(f"the picture is damaged ({one_line(error)})") from error

    def _shown(self, episode: int, key: str, times: np.ndarray) -> Iterator[np.ndarray]:
        """Decodes a camera whose frames are in a video, from the key frame before the episode on."""
        from av.error import FFmpegError

        place = self._places[episode]
        file, start = place.videos[key]
        fail = partial(self._failure, episode, file)
        due = (start + times).tolist()
        index = 0
        try:
            decoded = decode_frames(self.path / file, max(0.0, due[0] - TOLERANCE))
            frame, time = next(decoded)
            shown = float(time)
            if frame.shape != self.features[key].shape:
                raise DataError(f"expected frames of {self.features[key].shape[:2]}, got {frame.shape[:2]}")
            while index < place.length:
                while shown < due[index] - TOLERANCE:
                    frame, time = next(decoded)
                    shown = float(time)
                if shown > due[index] + TOLERANCE:
                    raise DataError(f"no frame is shown at {due[index]:.4f} s, the next is at {shown:.4f} s")
                yield frame
                index += 1
        except StopIteration:
            raise self._ends_early(episode, file, index, due) from None
        except (OSError, ValueError, FFmpegError) as error:
            raise fail(f"frame {index}: {one_line(error)}") from error

    def _check_end(self, episode: int, key: str, times: np.ndarray) -> None:
        """Raises DataError when the video ends before the episode does."""
        from av.error import FFmpegError

        file, start = self._places[episode].videos[key]
        if self._end is None or self._end[0] != file:
            try:
                self._end = (file, video_end(self.path / file))
            except (OSError, ValueError, FFmpegError) as error:
                raise self._failure(episode, file, one_line(error)) from error
        due, end = start + times, self._end[1]
        if end is not None and due[-1] > float(end) - TOLERANCE:
            raise self._ends_early(episode, file, int(np.argmax(due > float(end) - TOLERANCE)), due)

    def _ends_early(self, episode: int, file: Path, index: int, due: Sequence[float] | np.ndarray) -> DataError:
        what = f"the video ends before frame {index}, due at {due[index]:.4f} s; the table has {len(due)} frames"
        return self._failure(episode, file, f"{what}: restore it from a copy")


def _parquet(path: Path) -> pq.ParquetFile:
    import pyarrow.parquet as pq

    # What is iterated is read bit by bit; pages that carry a checksum, as ours do, are held to it.
    return pq.ParquetFile(path, buffer_size=1 << 20, page_checksum_verification=True)


def _require(file: pq.ParquetFile, columns: Sequence[str]) -> None:
    if missing := [key for key in columns if key not in file.schema_arrow.names]:
        raise DataError(f"the file lacks the column {', '.join(missing)}")


def _row_groups(file: pq.ParquetFile, place: Place) -> tuple[list[int], int]:
    """The row groups that hold the episode, and the row in them where it begins."""
    ends = np.cumsum([0, *(file.metadata.row_group(group).num_rows for group in range(file.num_row_groups))])
    last_row = place.first_row + place.length - 1
    if place.first_row < 0 or last_row >= ends[-1]:
        raise DataError(f"the file has {ends[-1]} rows, the episode's are {place.first_row} to {last_row}: restore it")
    first, last = (np.searchsorted(ends, [place.first_row, last_row], side="right") - 1).tolist()
    return list(range(first, last + 1)), place.first_row - int(ends[first])
