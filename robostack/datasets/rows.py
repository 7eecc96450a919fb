"""The rows of an uncompressed Zarr array, read and written in place, with a checksum for each chunk.

A training window is 50 rows of 56 bytes; Zarr itself reads whole chunks and takes 0.3 ms for each. Its chunks are plain
files when nothing compresses them, so rows are read where they stand: nothing is loaded, the system's page cache holds
what is used, and a store of any size opens at once. Any Zarr library reads the same arrays.

Four bytes after the rows of a chunk are their CRC-32C, as Zarr's codec `crc32c` writes it. Other Zarr readers check it
always, we do with `Rows.verify` and not while training. It is brought up to date by every `write`, over the rows and
the zeros that fill the chunk: a store has right checksums whenever its last episode is whole. Arrays without checksums,
as robostack once wrote, are read and continued as they are.

Any number of threads may read. The process holds at most `OPEN_FILES` chunks open, of all arrays together, and a file
that is given up closes once nobody reads from it any more.
"""

from __future__ import annotations

import itertools
import math
import os
import resource
import stat
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import google_crc32c
import numpy as np
import zarr
from jaxtyping import Int
from zarr.codecs import Crc32cCodec
from zarr.storage import LocalStore

from robostack.common.files import read_json
from robostack.common.text import one_line
from robostack.datasets.episodes import LARGEST_FRAME, DataError

# Numbers: 65,536 rows of a 14-joint arm are 3.7 MB, ten million rows 153 files. Images: about 16 MB a file.
ROWS_A_CHUNK, IMAGES_A_CHUNK, CHUNK_BYTES = 65_536, 512, 16 << 20
_MOST_FILES = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
OPEN_FILES = 512 if _MOST_FILES < 0 else min(512, _MOST_FILES // 2)
CHECKSUM_BYTES = 4
NUMBER_TYPES = ("bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)))
NUMBER_TYPES += ("float16", "float32", "float64")
_LARGEST_METADATA = 1 << 20
_PIECE = 1 << 20
_ZEROS = bytes(_PIECE)


class Rows:
    """The array `key` (rows, *shape) of the store at `store`, to be read ("r") or also written ("r+").

    Raises DataError when there is no such array, a file is missing or cut short.
    """

    def __init__(self, store: Path, key: str, mode: Literal["r", "r+"] = "r") -> None:
        self.folder, self._store, self._key, self._writes = store / key, store, key, mode == "r+"
        self._place = next(_PLACES)
        weakref.finalize(self, _give_up, self._place)
        found = _Layout.read(store, key)
        self._length, self.shape, self.dtype, self._chunk = found.rows, found.shape, found.dtype, found.chunk
        self.checked = found.checked
        """Whether its chunks have checksums."""
        self._row_bytes = self.dtype.itemsize * math.prod(self.shape)
        self._chunk_bytes = self._chunk * self._row_bytes
        self._file_bytes = self._chunk_bytes + CHECKSUM_BYTES * self.checked
        self._verified: set[int] = set()
        self._array = self._opened() if self._writes else None
        # The row after the last one written, and the checksum of those before it in its chunk.
        self._written: tuple[int, int] | None = None

    @staticmethod
    def create(store: Path, key: str, shape: tuple[int, ...], dtype: str, is_camera: bool) -> None:
        """A new array `key` of no rows in the Zarr group at `store`. What stands before a slash is a group."""
        row_bytes = np.dtype(dtype).itemsize * math.prod(shape)
        chunk = max(1, min(IMAGES_A_CHUNK if is_camera else ROWS_A_CHUNK, CHUNK_BYTES // row_bytes))
        for group in (store / key).relative_to(store).parents[:-1]:
            if not (store / group / "zarr.json").exists():
                zarr.create_group(store=LocalStore(store / group))
        zarr.create_array(
            store=LocalStore(store / key), shape=(0, *shape), chunks=(chunk, *shape), dtype=dtype, filters=None,
            compressors=Crc32cCodec(),
        )  # fmt: skip

    def __len__(self) -> int:
        return self._length

    def write(self, start: int, blocks: Iterable[np.ndarray]) -> int:
        """Writes blocks (n, *shape) one after the other from row `start`, after which nothing may stand that counts;
        gives the row after the last."""
        checksum = self._continue(start)
        self._written = None  # until all is written
        row = start
        for block in blocks:
            data = np.ascontiguousarray(block, dtype=self.dtype).reshape(-1).view(np.uint8)
            done = 0
            while done < len(data):
                chunk, inside = divmod(row * self._row_bytes + done, self._chunk_bytes)
                size = min(len(data) - done, self._chunk_bytes - inside)
                file = self._file(chunk)
                size = os.pwrite(file, data[done : done + size], inside)
                done += size
                checksum = self._extend(checksum, data[done - size : done])
                if inside + size == self._chunk_bytes:
                    self._seal(chunk, checksum)
                    checksum = 0
            row += len(block)
        chunk, inside = divmod(row * self._row_bytes, self._chunk_bytes)
        if inside:
            self._seal(chunk, self._filled(checksum, inside))
        self._written = (row, checksum)
        return row

    def resize(self, rows: int) -> None:
        """Tells other Zarr readers how many rows there are."""
        assert self._array is not None
        self._array.resize((rows, *self.shape))
        self._length = rows

    def _opened(self) -> zarr.Array[Any]:
        """The array as Zarr writes it. What it finds wrong is told before a row is written."""
        try:
            return zarr.open_array(store=LocalStore(self.folder), zarr_format=3, mode="r+")
        except (KeyError, TypeError, ValueError, ArithmeticError) as error:
            raise DataError(
                f"{self.folder}/zarr.json is not as Zarr writes it ({one_line(error, 200)}): restore it from a copy"
            ) from error

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop), (stop - start, *shape)."""
        rows = np.empty((max(0, stop - start), *self.shape), self.dtype)
        data = memoryview(rows).cast("B") if rows.size else memoryview(b"")
        done = 0
        while done < len(data):
            chunk, inside = divmod(start * self._row_bytes + done, self._chunk_bytes)
            size = min(len(data) - done, self._chunk_bytes - inside)
            file = self._file(chunk)  # by name: it stays open as long as this frame holds it
            got = os.preadv(file, [data[done : done + size]], inside)
            if got == 0:
                raise self._cut(chunk)
            done += got
        return rows

    def windows(self, starts: Int[np.ndarray, " batch"], length: int) -> np.ndarray:
        """Rows [start, start + length) for each start, (batch, length, *shape)."""
        chunks, first = np.divmod(starts, self._chunk)
        wanted = chunks.tolist()
        distinct = set(wanted)
        if len(distinct) > max(1, OPEN_FILES):
            half = len(starts) // 2
            return np.concatenate([self.windows(starts[:half], length), self.windows(starts[half:], length)])
        place, known = self._place, _OPEN.get
        files = {chunk: known(place + chunk) or self._file(chunk) for chunk in distinct}  # open until this call ends
        sizes = np.minimum(length, self._chunk - first) * self._row_bytes
        # A loop in C: the calls themselves take about a microsecond each.
        offsets = (first * self._row_bytes).tolist()
        parts = list(map(os.pread, map(files.__getitem__, wanted), sizes.tolist(), offsets))
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
            raise DataError(f"{self._store} is truncated: {self._key} has {len(self)} of {rows} frames; restore it")
        for chunk in range(-(-rows // self._chunk)):
            try:
                found = self._path(chunk).stat()
            except (OSError, ValueError):
                raise self._cut(chunk) from None
            if not stat.S_ISREG(found.st_mode) or found.st_size != self._file_bytes:
                raise self._cut(chunk)

    def verify(self, start: int, stop: int, rows: int) -> None:
        """Raises DataError where a chunk with some of the rows [start, stop) is not what was written. `rows` is how
        many rows count: after them may stand what a writer began. A chunk is read once; without checksums none is."""
        for chunk in range(start // self._chunk, -(-stop // self._chunk)) if self.checked else ():
            if chunk not in self._verified:
                self._checksum(chunk, min(self._chunk, rows - chunk * self._chunk) * self._row_bytes)
                self._verified.add(chunk)

    def close(self) -> None:
        """Gives its files up; they open again when they are needed."""
        _give_up(self._place)

    def _continue(self, start: int) -> int:
        """Removes what a writer left after row `start`; gives the checksum of what stands before it in its chunk."""
        if self._written is not None and self._written[0] == start:
            return self._written[1]
        chunk, inside = divmod(start * self._row_bytes, self._chunk_bytes)
        checksum = 0
        if inside and self.checked:
            checksum = self._checksum(chunk, inside)
            self._seal(chunk, self._filled(checksum, inside))  # first: it is right while the zeros are written
            file = self._file(chunk)
            for place, piece in self._pieces(chunk, inside, self._chunk_bytes):
                if piece.count(0) < len(piece):
                    os.pwrite(file, bytes(len(piece)), place)
        self.close()
        for beyond in itertools.count(chunk + bool(inside)):
            try:
                self._path(beyond).unlink()
            except FileNotFoundError:
                break
        return checksum

    def _checksum(self, chunk: int, count: int) -> int:
        """The checksum of the first `count` bytes of a chunk. Raises DataError where the chunk's own is neither that of
        these bytes and zeros nor that of all that stands there, which a writer may have sealed and not yet counted."""
        first = whole = 0
        for _, piece in self._pieces(chunk, 0, count):
            first = google_crc32c.extend(first, piece)
        whole = first
        for _, piece in self._pieces(chunk, count, self._chunk_bytes):
            whole = google_crc32c.extend(whole, piece)
        file = self._file(chunk)
        stored = int.from_bytes(os.pread(file, CHECKSUM_BYTES, self._chunk_bytes), "little")
        if stored not in (whole, self._filled(first, count)):
            name = self._path(chunk).relative_to(self.folder)
            frames = f"{chunk * self._chunk} to {(chunk + 1) * self._chunk - 1}"
            raise DataError(
                f"{self._store} is damaged: {self._key}: chunk {name} (rows {frames}) does not match its checksum: "
                "restore it from a copy"
            )
        return first

    def _pieces(self, chunk: int, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
        """Place and bytes of all that stands in a chunk from byte `start` to `stop`."""
        file = self._file(chunk)
        while start < stop:
            piece = os.pread(file, min(_PIECE, stop - start), start)
            if not piece:
                raise self._cut(chunk)
            yield start, piece
            start += len(piece)

    def _extend(self, checksum: int, data: Any) -> int:
        return google_crc32c.extend(checksum, data) if self.checked else 0

    def _filled(self, checksum: int, count: int) -> int:
        """The checksum of a whole chunk whose first `count` bytes have this one, and whose others are zeros."""
        for start in range(count, self._chunk_bytes if self.checked else 0, _PIECE):
            checksum = google_crc32c.extend(checksum, _ZEROS[: self._chunk_bytes - start])
        return checksum

    def _seal(self, chunk: int, checksum: int) -> None:
        if self.checked:
            file = self._file(chunk)
            os.pwrite(file, checksum.to_bytes(CHECKSUM_BYTES, "little"), self._chunk_bytes)

    def _file(self, chunk: int) -> _File:
        file = _OPEN.get(self._place + chunk)
        if file is None:
            path = self._path(chunk)
            try:
                file = _File.open(path, self._file_bytes if self._writes else None)
            except (FileNotFoundError, NotADirectoryError, ValueError) as error:
                raise self._cut(chunk) from error
            _keep(self._place + chunk, file)
        return file

    def _path(self, chunk: int) -> Path:
        return self.folder.joinpath("c", str(chunk), *("0" for _ in self.shape))

    def _cut(self, chunk: int) -> DataError:
        name = self._path(chunk).relative_to(self.folder)
        return DataError(f"{self._store} is truncated: {self._key}: chunk {name} is missing or cut short")


class _File(int):
    """The descriptor of an open file, which closes when nobody holds it any more."""

    @staticmethod
    def open(path: Path, size: int | None) -> _File:
        """To be read; with `size` also to be written, and made that large."""
        if size is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDONLY if size is None else os.O_RDWR | os.O_CREAT
        # Somebody else's store may have a pipe for a chunk, which would block.
        file = _File(os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666))
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise ValueError(f"{path} is no regular file")
        if size is not None:
            os.ftruncate(file, size)  # Zarr wants whole chunks; what is not written yet takes no room on the disk
        return file

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        close(self)


# Every `Rows` has a stretch of keys for its chunks. A dictionary is changed by one operation at a time, so that threads
# need no lock, which a fork could leave locked.
_CHUNKS = 1 << 40
_PLACES = itertools.count(0, _CHUNKS)
_OPEN: dict[int, _File] = {}


def _keep(key: int, file: _File) -> None:
    if len(_OPEN) >= OPEN_FILES:
        for oldest in list(_OPEN)[: 1 + len(_OPEN) - OPEN_FILES + OPEN_FILES // 8]:
            _OPEN.pop(oldest, None)
    _OPEN[key] = file


def _give_up(place: int) -> None:
    for key in list(_OPEN):
        if place <= key < place + _CHUNKS:
            _OPEN.pop(key, None)


@dataclass(frozen=True)
class _Layout:
    """What an array's zarr.json says."""

    rows: int
    shape: tuple[int, ...]
    dtype: np.dtype
    chunk: int
    checked: bool

    @staticmethod
    def read(store: Path, key: str) -> _Layout:
        """Raises DataError where it is missing, or is not an array as `Rows.create` makes it."""
        try:
            found = read_json(store / key / "zarr.json", _LARGEST_METADATA)
        except (OSError, ValueError) as error:
            why = f"array {key} is missing or unreadable"
            raise DataError(f"{store} is truncated: {why} ({one_line(error, 120)})") from error
        if (layout := _Layout._of(found)) is None:
            raise DataError(
                f"{store / key}: expected an uncompressed Zarr v3 array, got another: convert the data again"
            )
        return layout

    @staticmethod
    def _of(found: Any) -> _Layout | None:
        try:
            rows, *shape = found["shape"]
            (chunk, *whole) = found["chunk_grid"]["configuration"]["chunk_shape"]
            dtype = np.dtype(found["data_type"] if found["data_type"] in NUMBER_TYPES else None)
            codecs = found["codecs"]
            described = {name: found[name] for name in ("zarr_format", "node_type", "chunk_key_encoding")}
            sizes = (rows, *shape, chunk)
            fits = (
                described == _EXPECTED
                and found["data_type"] in NUMBER_TYPES
                and found["chunk_grid"]["name"] == "regular"
                and not found.get("storage_transformers")
                and whole == shape
                and all(type(size) is int for size in sizes)
                and rows >= 0
                and all(0 < size < 1 << 62 for size in (*shape, chunk))
                and dtype.itemsize * math.prod(shape) <= LARGEST_FRAME
                and chunk * dtype.itemsize * math.prod(shape) < 1 << 62
                and codecs[0]["name"] == "bytes"
                and (dtype.itemsize == 1 or codecs[0]["configuration"] == {"endian": "little"})
                and [codec["name"] for codec in codecs[1:]] in ([], ["crc32c"])
            )
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            return None
        return _Layout(rows, tuple(shape), dtype, chunk, len(codecs) == 2) if fits else None


_EXPECTED = {
    "zarr_format": 3,
    "node_type": "array",
    "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
}
