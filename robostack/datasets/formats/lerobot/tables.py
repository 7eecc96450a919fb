"""The rows of a LeRobot data set's parquet files, an episode's at a time.

A row group is read whole, and the last one kept, since LeRobot's converters put all episodes of a file in one; where
it is larger than any recording needs, only the episode's rows are kept while they pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from robostack.common.files import check_regular
from robostack.datasets.episodes import LARGEST_FRAME, DataError, FeatureError
from robostack.datasets.formats.lerobot.places import Place

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

LARGEST_KEPT = 1 << 26
"""Numbers of the largest row groups that are kept: a million frames of 64 numbers."""
_ROWS_AT_ONCE, _PICTURES_AT_ONCE = 1024, 16


class Tables:
    """Reads rows of the tables in the data set at `path`; `is_old` for one file per episode."""

    def __init__(self, path: Path, is_old: bool) -> None:
        self._path, self._is_old = path, is_old
        self._open: tuple[Path, pq.ParquetFile] | None = None
        self._kept: tuple[Path, list[int], list[str], pa.Table] | None = None

    def forget(self) -> None:
        """Lets go of the rows that are kept."""
        self._kept = None

    def rows(self, place: Place, keys: Sequence[str], entries: Sequence[int]) -> pa.Table:
        """The episode's rows of those columns that are there, of so many numbers each. Raises DataError where the
        episode's rows are not in the file, FeatureError for a column of many more numbers than it can have."""
        import pyarrow as pa

        file = self._file(place)
        groups, first = self._row_groups(file, place)
        there = [key for key in keys if key in file.schema_arrow.names]
        values = 0
        for key, count in zip(keys, entries, strict=True):
            if key in there:
                values += _check_size(file, groups, key, count)
        if values > LARGEST_KEPT:
            batches = list(self._batches(file, groups, first, place.length, there, _ROWS_AT_ONCE))
            return pa.Table.from_batches(batches)
        if self._kept is None or self._kept[:3] != (place.data, groups, there):
            self._kept = (place.data, groups, there, file.read_row_groups(groups, columns=there))
        return self._kept[3].slice(first, place.length)

    def cells(self, place: Place, key: str, at_once: int = _PICTURES_AT_ONCE) -> Iterator[pa.RecordBatch]:
        """The episode's rows of one column, a few at a time. Raises as `rows`."""
        file = _parquet(self._path / place.data)  # of its own: others may be read meanwhile
        if key not in file.schema_arrow.names:
            raise FeatureError(key, "is not in the table: the file lacks the column")
        groups, first = self._row_groups(file, place)
        size = sum(_chunk(file, group, leaf).total_uncompressed_size for group in groups for leaf in _leaves(file, key))
        rows = max(1, sum(file.metadata.row_group(group).num_rows for group in groups))
        if size / rows > 2 * LARGEST_FRAME:
            raise FeatureError(key, f"takes {size // rows:,} bytes a frame, expected at most {2 * LARGEST_FRAME:,}")
        at_once = max(1, min(at_once, (1 << 26) * rows // max(1, size)))
        yield from self._batches(file, groups, first, place.length, [key], at_once)

    def first_index(self, place: Place) -> int | None:
        """The place in the data set of the first row in the episode's file, where it is said."""
        file = self._file(place)
        if "index" not in file.schema_arrow.names:
            return None
        for batch in file.iter_batches(batch_size=1, columns=["index"]):
            found = batch.column(0).to_pylist()[0]
            return found if isinstance(found, int) else None
        return None

    def _file(self, place: Place) -> pq.ParquetFile:
        if self._open is None or self._open[0] != place.data:
            self._open = (place.data, _parquet(self._path / place.data))
        return self._open[1]

    def _row_groups(self, file: pq.ParquetFile, place: Place) -> tuple[list[int], int]:
        """The row groups that hold the episode, and the row in them where it begins."""
        rows = file.metadata.num_rows
        if self._is_old and rows != place.length:
            raise DataError(f"the file has {rows} rows, the episode {place.length}: restore it")
        ends = np.cumsum([0, *(file.metadata.row_group(group).num_rows for group in range(file.num_row_groups))])
        last_row = place.first_row + place.length - 1
        if place.first_row < 0 or last_row >= ends[-1]:
            raise DataError(f"the file has {rows} rows, the episode's are {place.first_row} to {last_row}: restore it")
        first, last = (np.searchsorted(ends, [place.first_row, last_row], side="right") - 1).tolist()
        return list(range(first, last + 1)), place.first_row - int(ends[first])

    @staticmethod
    def _batches(
        file: pq.ParquetFile, groups: list[int], before: int, length: int, keys: list[str], at_once: int
    ) -> Iterator[pa.RecordBatch]:
        for batch in file.iter_batches(batch_size=at_once, row_groups=groups, columns=keys):
            own = batch.slice(before, length)
            before = max(0, before - len(batch))
            length -= len(own)
            if len(own):
                yield own
            if not length:
                return


def _parquet(path: Path) -> pq.ParquetFile:
    import pyarrow.parquet as pq

    check_regular(path)
    # What is iterated is read bit by bit; pages that carry a checksum, as ours do, are held to it.
    return pq.ParquetFile(path, buffer_size=1 << 20, page_checksum_verification=True)


def _check_size(file: pq.ParquetFile, groups: Sequence[int], key: str, entries: int) -> int:
    """How many numbers a column has in some row groups."""
    values = 0
    for group in groups:
        rows = file.metadata.row_group(group).num_rows
        for leaf in _leaves(file, key):
            chunk = _chunk(file, group, leaf)
            values += chunk.num_values
            if chunk.num_values > 4 * rows * entries + LARGEST_KEPT // 64:
                raise FeatureError(key, f"has {chunk.num_values:,} numbers in {rows:,} frames, expected {entries} each")
            if chunk.total_uncompressed_size > 64 * chunk.num_values + LARGEST_FRAME:
                raise FeatureError(key, f"unpacks to {chunk.total_uncompressed_size:,} bytes in {rows:,} frames")
    return values


def _chunk(file: pq.ParquetFile, group: int, leaf: int) -> Any:
    return file.metadata.row_group(group).column(leaf)


def _leaves(file: pq.ParquetFile, key: str) -> range:
    """The columns of numbers or bytes that one column of the table is made of."""
    first = 0
    for field in file.schema_arrow:
        count = _leaves_of(field.type)
        if field.name == key:
            return range(first, min(first + count, file.metadata.num_columns))
        first += count
    return range(0)


def _leaves_of(kind: Any) -> int:
    kind = getattr(kind, "storage_type", kind)
    children = [kind.field(index).type for index in range(kind.num_fields)]
    return sum(map(_leaves_of, children)) if children else 1
