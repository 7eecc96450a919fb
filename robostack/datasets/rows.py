"""The rows of an uncompressed Zarr array, read and written in place.

A training window is 50 rows of 56 bytes; Zarr itself reads whole chunks and takes 0.3 ms for each. Its chunks are plain
files when nothing compresses them, so rows are read where they stand: nothing is loaded, the system's page cache holds
what is used, and a store of any size opens at once. Any Zarr library reads the same arrays.
"""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
import zarr
from jaxtyping import Int
from zarr.codecs import BytesCodec

from robostack.datasets.episodes import DataError

# Numbers: 65,536 rows of a 14-joint arm are 3.7 MB, ten million rows 153 files. Images: about 16 MB a file.
ROWS_A_CHUNK, IMAGE_CHUNK_BYTES = 65_536, 16 << 20
OPEN_FILES = 256


class Rows:
    """The array (rows, *shape) in `folder`, to be read ("r") or also written ("r+").

    Raises DataError when the folder holds no such array, a file is missing or cut short.
    """

    def __init__(self, folder: Path, mode: Literal["r", "r+"] = "r") -> None:
        self.folder, self._flags = folder, os.O_RDWR | os.O_CREAT if mode == "r+" else os.O_RDONLY
        self._files: dict[int, int] = {}
        weakref.finalize(self, _close, self._files)
        try:
            self._array = zarr.open_array(store=str(folder), zarr_format=3, mode=mode)
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"{folder.parent} is truncated: array {folder.name} is missing or unreadable") from error
        metadata = self._array.metadata
        if [type(codec) for codec in getattr(metadata, "codecs", ())] != [BytesCodec]:
            raise DataError(f"{folder}: expected an uncompressed Zarr v3 array, got another: convert the data again")
        self.shape: tuple[int, ...] = self._array.shape[1:]
        self.dtype = np.dtype(self._array.dtype)
        self._chunk = self._array.chunks[0]
        self._row_bytes = self.dtype.itemsize * math.prod(self.shape)

    @staticmethod
    def create(folder: Path, key: str, shape: tuple[int, ...], dtype: str, is_image: bool) -> Rows:
        """A new array of no rows, `key` in the Zarr group `folder`."""
        group = zarr.open_group(store=str(folder), mode="r+")
        chunk = max(1, min(512, IMAGE_CHUNK_BYTES // math.prod(shape))) if is_image else ROWS_A_CHUNK
        group.create_array(key, shape=(0, *shape), chunks=(chunk, *shape), dtype=dtype, compressors=None, filters=None)
        return Rows(folder / key, "r+")

    def __len__(self) -> int:
        return self._array.shape[0]

    def write(self, start: int, blocks: Iterable[np.ndarray]) -> int:
        """Writes blocks (n, *shape) one after the other from row `start`; gives the row after the last."""
        row = start
        for block in blocks:
            data = memoryview(np.ascontiguousarray(block, dtype=self.dtype)).cast("B") if block.size else b""
            done = 0
            while done < len(data):
                chunk, inside = divmod(row * self._row_bytes + done, self._chunk * self._row_bytes)
                size = min(len(data) - done, self._chunk * self._row_bytes - inside)
                done += os.pwrite(self._file(chunk), data[done : done + size], inside)
            row += len(block)
        return row

    def resize(self, rows: int) -> None:
        """Tells other Zarr readers how many rows there are."""
        self._array.resize((rows, *self.shape))

    def flush(self) -> None:
        """Brings every file that was written to the disk."""
        for descriptor in self._files.values():
            os.fsync(descriptor)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop), (stop - start, *shape)."""
        rows = np.empty((max(0, stop - start), *self.shape), self.dtype)
        data = memoryview(rows).cast("B") if rows.size else memoryview(b"")
        done = 0
        while done < len(data):
            chunk, inside = divmod(start * self._row_bytes + done, self._chunk * self._row_bytes)
            size = min(len(data) - done, self._chunk * self._row_bytes - inside)
            got = os.preadv(self._file(chunk), [data[done : done + size]], inside)
            if got == 0:
                raise self._cut(chunk)
            done += got
        return rows

    def windows(self, starts: Int[np.ndarray, " batch"], length: int) -> np.ndarray:
        """Rows [start, start + length) for each start, (batch, length, *shape)."""
        chunks, first = np.divmod(starts, self._chunk)
        wanted = chunks.tolist()
        distinct = set(wanted)
        if len(distinct) > OPEN_FILES:
            half = len(starts) // 2
            return np.concatenate([self.windows(starts[:half], length), self.windows(starts[half:], length)])
        if len(self._files) + len(distinct) > OPEN_FILES:
            self.close()
        files = {chunk: self._file(chunk) for chunk in distinct}
        sizes = np.minimum(length, self._chunk - first) * self._row_bytes
        # A loop in C: the calls themselves take about a microsecond each.
        parts = list(map(os.pread, map(files.__getitem__, wanted), sizes.tolist(), (first * self._row_bytes).tolist()))
        for i in np.flatnonzero(first + length > self._chunk).tolist():
            parts[i] = self.read(int(starts[i]), int(starts[i]) + length).tobytes()
        data = bytearray().join(parts)
        if len(data) != len(starts) * length * self._row_bytes:
            short = next(i for i, (part, size) in enumerate(zip(parts, sizes, strict=True)) if len(part) < size)
            raise self._cut(int(chunks[short]))
        return np.frombuffer(data, self.dtype).reshape(len(starts), length, *self.shape)

    def check(self, rows: int) -> None:
        """Raises DataError unless files for `rows` rows are there in full; looks at sizes, reads nothing."""
        if len(self) < rows:
            raise DataError(
                f"{self.folder.parent} is truncated: {self.folder.name} has {len(self)} of {rows} frames; restore it"
            )
        for chunk in range(-(-rows // self._chunk)):
            try:
                size = self._path(chunk).stat().st_size
            except FileNotFoundError:
                size = 0
            if size != self._chunk * self._row_bytes:
                raise self._cut(chunk)

    def close(self) -> None:
        """Closes its files; they open again when they are needed."""
        _close(self._files)

    def _file(self, chunk: int) -> int:
        if chunk not in self._files:
            if len(self._files) >= OPEN_FILES:
                self.close()
            path = self._path(chunk)
            try:
                if self._flags & os.O_CREAT:
                    path.parent.mkdir(parents=True, exist_ok=True)
                self._files[chunk] = os.open(path, self._flags, 0o666)
            except FileNotFoundError as error:
                raise self._cut(chunk) from error
            if self._flags & os.O_CREAT:
                # Zarr wants whole chunks; what is not written yet takes no room on the disk.
                os.ftruncate(self._files[chunk], self._chunk * self._row_bytes)
        return self._files[chunk]

    def _path(self, chunk: int) -> Path:
        return self.folder.joinpath("c", str(chunk), *("0" for _ in self.shape))

    def _cut(self, chunk: int) -> DataError:
        name = self._path(chunk).relative_to(self.folder)
        return DataError(f"{self.folder.parent} is truncated: {self.folder.name}: chunk {name} is missing or cut short")


def _close(files: dict[int, int]) -> None:
    while files:
        os.close(files.popitem()[1])
