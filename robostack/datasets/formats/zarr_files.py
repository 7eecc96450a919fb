"""Zarr arrays of others, in a folder or a zip file, read with suspicion.

Metadata may name any codec and any size, a chunk may unpack to more than a machine has, and what is called a chunk may
be a pipe: all that is bounded before Zarr reads it. Everything that is wrong is a DataError of one line.
"""

from __future__ import annotations

import bz2
import itertools
import lzma
import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.errors import ChunkNotFoundError
from zarr.storage import LocalStore, ZipStore

from robostack.common.extras import require_extra
from robostack.common.files import check_regular
from robostack.common.text import one_line
from robostack.datasets.episodes import DataError

LARGEST_CHUNK = 1 << 30
"""Bytes of numbers in the largest chunk that is read."""
LARGEST_READ = 1 << 32
"""Bytes of the numbers of one feature in one episode."""
LARGEST_METADATA = 64 << 20
MOST_FILES = 10_000_000
_METADATA = (".zgroup", ".zattrs", ".zarray", ".zmetadata", "zarr.json")
# What unpacks a chunk, and what may stand beside it: transforms that keep the size.
_UNPACK = {"blosc", "zstd", "lz4", "zlib", "gzip", "bz2", "lzma"}
_TRANSFORMS = {"delta", "fixedscaleoffset", "quantize", "astype", "shuffle", "bitround", "packbits"}
_PLAIN = {"bytes", "transpose", "crc32c", "crc32", "adler32"}


class ZarrFiles:
    """The group in a folder or a zip file, there perhaps within a folder of the archive, that holds the array `mark`.

    Raises DataError where there is no such array, or the file is damaged or hostile.
    """

    def __init__(self, path: Path, mark: str) -> None:
        self.path = path
        self._arrays: dict[str, tuple[zarr.Array, str | None]] = {}
        self._looked: set[str] = set()
        self._archive: zipfile.ZipFile | None = None
        found: Sequence[str] = ()
        if path.is_dir():
            found = [f"{mark}/{name}" for name in (".zarray", "zarr.json") if (path / mark / name).is_file()]
            self._store: Any = LocalStore(path, read_only=True)
        elif path.exists():
            check_regular(path)
            found = self._open_archive(mark)
            self._store = ZipStore(path, mode="r")
        if not found:
            raise DataError(f"{path} is not a replay buffer: expected a Zarr group with data/ and {mark}")
        self.root = found[0].rpartition(mark)[0]
        """Where the group is in an archive: "" or a path that ends in a slash."""
        self.version = 2 if found[0].endswith(".zarray") else 3

    def _open_archive(self, mark: str) -> Sequence[str]:
        try:
            self._archive = zipfile.ZipFile(self.path)
            entries = self._archive.infolist()
        except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
            raise DataError(
                f"{self.path} is not a whole zip file ({one_line(error)}): restore it from a copy"
            ) from error
        for entry in entries:
            if entry.filename.startswith("/") or ".." in entry.filename.split("/"):
                raise DataError(
                    f"{self.path} holds {one_line(ValueError(repr(entry.filename)))}, which leads out of it"
                )
            if entry.file_size > LARGEST_CHUNK:
                raise DataError(f"{self.path}: {entry.filename} unpacks to more than {LARGEST_CHUNK:,} bytes")
        names = {entry.filename for entry in entries}
        ends = (f"{mark}/.zarray", f"{mark}/zarr.json")
        return sorted((n for n in names if n.endswith(ends) and not n.startswith("__MACOSX")), key=len)

    def names(self, group: str) -> list[str]:
        """The arrays of a group, sorted."""
        file = ".zarray" if self.version == 2 else "zarr.json"
        if self._archive is None:
            return sorted(found.parent.name for found in self.path.glob(f"{group}/*/{file}"))
        above = f"{self.root}{group}/"
        parts = [name[len(above) :].split("/") for name in self._archive.namelist() if name.startswith(above)]
        return sorted({part[0] for part in parts if len(part) == 2 and part[1] == file and part[0]})

    def attributes(self) -> dict[str, Any]:
        """What is written beside the arrays. Raises DataError where it cannot be read."""
        try:
            self._check_metadata("")
            group = zarr.open_group(store=self._store, path=self.root, mode="r", **self._format)
            return dict(group.attrs)
        except Exception as error:
            raise DataError(f"{self.path}: its attributes cannot be read ({one_line(error)}): restore it") from error

    @property
    def _format(self) -> dict[str, Any]:
        return {"zarr_format": self.version, "use_consolidated": False}

    def array(self, name: str, missing_chunks: bool = False) -> zarr.Array:
        """An array of numbers, whose chunks are bounded. Chunks that are not there raise when they are read, unless
        they may be missing. Raises DataError for whatever else it is."""
        if name not in self._arrays:
            try:
                self._check_metadata(name)
                # A missing chunk reads as zeros unless zarr is told otherwise.
                with zarr.config.set({"array.read_missing_chunks": missing_chunks}):
                    options: Any = {"path": self.root + name, "mode": "r", "zarr_format": self.version}
                    array: Any = zarr.open_array(store=self._store, **options)
                self._arrays[name] = (array, _check_array(array))
            except Exception as error:  # zarr, numcodecs and the zip file have errors of their own
                raise DataError(f"{name} cannot be opened ({one_line(error)}): drop or restore it") from error
        return self._arrays[name][0]

    def read(self, name: str, rows: slice, missing_chunks: bool = False) -> np.ndarray:
        """Rows of an array. Raises DataError where a chunk is missing, damaged, or unpacks to more than it should."""
        array = self.array(name, missing_chunks)
        start, stop, _ = rows.indices(array.shape[0])
        if max(0, stop - start) * math.prod(array.shape[1:]) * array.dtype.itemsize > LARGEST_READ:
            raise DataError(f"{name}: rows {start} to {stop - 1} take more than {LARGEST_READ:,} bytes")
        try:
            self._check_chunks(name, start, stop)
            return np.asarray(array[rows])
        except DataError:
            raise
        except ChunkNotFoundError as error:
            raise DataError(f"{name}: {str(error).splitlines()[-1].split('(')[0].strip()} is missing") from error
        except Exception as error:  # every codec and the zip file have errors of their own
            raise DataError(f"{name} is truncated or damaged ({one_line(error)})") from error

    def _check_metadata(self, name: str) -> None:
        for file in _METADATA:
            if self._size("/".join(filter(None, (name, file)))) > LARGEST_METADATA:
                raise DataError(f"{name}/{file} has more than {LARGEST_METADATA:,} bytes")

    def _size(self, key: str) -> int:
        """Bytes of a file, 0 where there is none. Raises ValueError where it is no regular file."""
        if self._archive is None:
            try:
                return check_regular(self.path / key).st_size
            except (FileNotFoundError, NotADirectoryError):
                return 0
        try:
            return self._archive.getinfo(self.root + key).file_size
        except KeyError:
            return 0

    def _bytes(self, key: str, count: int) -> bytes:
        if self._archive is None:
            with (self.path / key).open("rb") as file:
                return file.read(count)
        with self._archive.open(self.root + key) as entry:
            return entry.read(count)

    def _check_chunks(self, name: str, start: int, stop: int) -> None:
        """Raises DataError unless each of the chunks with these rows unpacks to no more than a chunk; once for each."""
        array, packed = self._arrays[name]
        grid = [range(-(-size // chunk)) for size, chunk in zip(array.shape[1:], array.chunks[1:], strict=True)]
        if math.prod(map(len, grid)) > MOST_FILES:
            raise DataError(f"{name}: a row lies in {math.prod(map(len, grid)):,} chunks: drop it")
        metadata: Any = array.metadata
        largest = math.prod(array.chunks) * array.dtype.itemsize
        rows = range(start // array.chunks[0], -(-stop // array.chunks[0]))
        for place in itertools.product(rows, *grid):
            key = f"{name}/{metadata.encode_chunk_key(place)}"
            if key in self._looked:
                continue
            size = self._size(key)
            if size > 2 * largest + 4096:
                raise DataError(f"{key} has {size:,} bytes, and a chunk unpacks to {largest:,}: drop data/{name}")
            if size and packed is not None and _unpacks_to_more(packed, lambda n, k=key: self._bytes(k, n), largest):
                raise DataError(f"{key} unpacks to more than the {largest:,} bytes of a chunk: drop or restore it")
            self._looked.add(key)


def _check_array(array: zarr.Array) -> str | None:
    """The codec that packs an array's chunks, if any. Raises DataError unless it holds numbers and is read."""
    if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8 or not array.ndim:
        raise DataError(f"it holds {array.dtype} {array.shape}, not numbers per frame")
    if array.shards is not None:
        raise DataError("its chunks lie in shards, which are not read")
    if math.prod(array.chunks) * array.dtype.itemsize > LARGEST_CHUNK:
        raise DataError(f"a chunk of {array.chunks} {array.dtype} takes more than {LARGEST_CHUNK:,} bytes")
    metadata: Any = array.metadata.to_dict()
    if metadata["zarr_format"] == 2:
        filters = [_codec_id(codec) for codec in metadata.get("filters") or ()]
        packing = [_codec_id(metadata["compressor"])] if metadata.get("compressor") is not None else []
    else:
        every = [_codec_id(codec) for codec in metadata["codecs"]]
        packing = [name for name in every if name in _UNPACK or name.startswith("imagecodecs_")]
        filters = [name for name in every if name not in packing and name not in _PLAIN]
    known = [name for name in packing if name in _UNPACK or name.startswith("imagecodecs_")]
    if odd := [*(name for name in filters if name not in _TRANSFORMS), *(set(packing) - set(known))]:
        raise DataError(f"it is packed by {odd[0]}, which is not read")
    if len(packing) > 1:
        raise DataError("its chunks are packed twice, which is not read")
    return packing[0] if packing else None


def _codec_id(codec: Any) -> str:
    """The name of a codec in metadata of either version."""
    values = codec if isinstance(codec, dict) else codec.to_dict() if hasattr(codec, "to_dict") else codec.get_config()
    return str(values.get("id", values.get("name"))).removeprefix("numcodecs.").removeprefix("zarr.")


def _unpacks_to_more(codec: str, read: Callable[[int], bytes], largest: int) -> bool:
    """Whether a packed chunk unpacks to more than `largest` bytes. Formats whose header tells are asked, the others
    unpacked as far as that."""
    if codec == "blosc":
        head = read(16)
        return len(head) == 16 and struct.unpack("<I", head[4:8])[0] > largest
    if codec == "lz4":
        head = read(4)
        return len(head) == 4 and struct.unpack("<I", head)[0] > largest
    if codec == "zstd":
        size = _zstd_size(read(32))
        return _zstd_unpacks_to_more(read(-1), largest) if size is None else size > largest
    if codec in ("zlib", "gzip"):
        unpack: Any = zlib.decompressobj(47)  # either header
        return len(unpack.decompress(read(-1), largest + 1)) > largest
    if codec in ("bz2", "lzma"):
        unpack = bz2.BZ2Decompressor() if codec == "bz2" else lzma.LZMADecompressor()
        return len(unpack.decompress(read(-1), largest + 1)) > largest
    return False  # pictures: their libraries have bounds of their own


def _zstd_size(head: bytes) -> int | None:
    """What a Zstandard frame says it unpacks to (RFC 8878, 3.1.1.1); None where it does not say."""
    if len(head) < 6 or head[:4] != b"\x28\xb5\x2f\xfd":
        return 0  # none: the codec will say so
    flags = head[4]
    single, kind = flags >> 5 & 1, flags >> 6
    begin = 5 + (not single) + (0, 1, 2, 4)[flags & 3]
    length = (1 if single else 0, 2, 4, 8)[kind]
    size = int.from_bytes(head[begin : begin + length], "little")
    return None if not length else size + 256 if length == 2 else size


def _zstd_unpacks_to_more(data: bytes, largest: int) -> bool:
    require_extra("pyarrow", "data")
    import pyarrow as pa

    return len(pa.CompressedInputStream(pa.BufferReader(data), "zstd").read(largest + 1)) > largest
