"""HDF5 files of others, read with suspicion.

A file may link to other files, hold arrays whose numbers lie elsewhere, groups that hold themselves, or chunks that
unpack to more than a machine has. What is read here lies in the file itself and is bounded before it is read;
everything else is a DataError of one line.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from robostack.common.files import check_regular
from robostack.common.text import one_line
from robostack.datasets.episodes import DataError

if TYPE_CHECKING:
    import h5py

SUFFIXES = (".hdf5", ".h5", ".hdf")
LARGEST_CHUNK = 1 << 30
"""Bytes of numbers in the largest chunk that is read; recorders make one of a whole episode of a camera."""
LARGEST_COLUMN = 1 << 32
"""Bytes of the numbers of one feature in one episode; cameras are read frame by frame."""
MOST_OBJECTS = 100_000
MOST_ENTRIES = 1 << 16
"""Of an attribute."""


def natural(text: str) -> list[tuple[int, int, str]]:
    """A key that sorts numbers within names by their value: demo_2 before demo_10."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d{1,18})", text)]


def files_of(path: Path) -> list[Path]:
    """The one file, or the HDF5 files of a folder in natural order; episode_<n>.hdf5 alone where there are such.

    Raises DataError where there is none.
    """
    if not path.is_dir():
        if not path.exists():
            raise DataError(f"{path}: expected files episode_<n>.hdf5, found none")
        return [path]
    files = [file for file in path.iterdir() if file.suffix in SUFFIXES and not file.name.startswith(".")]
    numbered = [file for file in files if re.fullmatch(r"episode_\d{1,9}\.hdf5", file.name)]
    if not files:
        raise DataError(f"{path}: expected files episode_<n>.hdf5, found none")
    return sorted(numbered or files, key=lambda file: natural(file.name))


@contextmanager
def opened(file: Path) -> Iterator[h5py.File]:
    """The file, to be read. Raises DataError where it is no HDF5 file, or damaged where it is looked at."""
    import h5py

    try:
        check_regular(file)
        with h5py.File(file, "r") as root:
            yield root
    except DataError:
        raise
    except (OSError, KeyError, RuntimeError, TypeError, ValueError, MemoryError, RecursionError) as error:
        raise DataError(f"it is truncated or damaged ({one_line(error, 200)}): restore it or leave it out") from error


def names(group: h5py.Group) -> list[str]:
    """What a group holds, in natural order."""
    return sorted(group, key=natural)


def member(group: h5py.Group, path: str, links: int = 8) -> h5py.Group | h5py.Dataset | None:
    """What lies at a path in the same file; None where there is nothing. Raises DataError where a link leads out."""
    import h5py

    low: Any = h5py  # its low level has no types
    here: Any = group.file["/"] if path.startswith("/") else group
    for name in (part for part in path.split("/") if part not in ("", ".")):
        encoded = name.encode("utf-8", "surrogateescape")
        if not isinstance(here, h5py.Group) or not here.id.links.exists(encoded):
            return None
        kind = here.id.links.get_info(encoded).type
        if kind == low.h5l.TYPE_SOFT and links:
            target = here.id.links.get_val(encoded)
            here = member(here, target.decode("utf-8", "surrogateescape"), links - 1)
        elif kind == low.h5l.TYPE_HARD:
            here = here[name]
        else:
            raise DataError(f"{name} is a link out of the file, which is not followed: copy what it leads to")
    return here if isinstance(here, (h5py.Group, h5py.Dataset)) else None


def arrays_below(group: h5py.Group) -> tuple[dict[str, h5py.Dataset], dict[str, str]]:
    """All arrays below a group by their paths, in natural order, and what else is there and why it is not read."""
    import h5py

    found: dict[str, h5py.Dataset] = {}
    aside: dict[str, str] = {}
    groups, met = [("", group)], {_place(group)}
    while groups:
        below, here = groups.pop(0)
        for name in names(here):
            path = f"{below}{name}"
            try:
                one = member(here, name)
            except DataError as error:
                aside[path] = one_line(error)
                continue
            if isinstance(one, h5py.Dataset):
                found[path] = one
            elif isinstance(one, h5py.Group) and _place(one) not in met:
                met.add(_place(one))
                groups.append((f"{path}/", one))
            if len(found) + len(met) + len(aside) > MOST_OBJECTS:
                raise DataError(f"it holds more than {MOST_OBJECTS:,} arrays and groups")
    return dict(sorted(found.items(), key=lambda item: natural(item[0]))), aside


def _place(group: h5py.Group) -> tuple[int, Any]:
    import h5py

    low: Any = h5py
    described = low.h5o.get_info(group.id)
    return described.fileno, described.addr


def check_array(name: str, array: h5py.Dataset) -> None:
    """Raises DataError unless an array lies in its file, was written in full (what a killed recorder left reads as
    zeros), and can be read a chunk at a time within `LARGEST_CHUNK`."""
    if array.is_virtual or array.external:
        raise DataError(f"/{name}: its numbers lie in other files, which are not read: copy them into this one")
    if not array.shape or not array.size:
        raise DataError(f"/{name} is empty, {array.shape}: leave the episode out")
    size = array.dtype.itemsize * math.prod(array.shape)
    if not array.chunks:
        written = array.id.get_storage_size()
        if written < size:
            raise DataError(f"/{name}: {int(written > 0)} of 1 chunks were written: leave the episode out")
        return
    chunk = array.dtype.itemsize * math.prod(array.chunks)
    if chunk > LARGEST_CHUNK:
        raise DataError(f"/{name}: a chunk of {array.chunks} {array.dtype} takes more than {LARGEST_CHUNK:,} bytes")
    chunks = math.prod(-(-size // chunk) for size, chunk in zip(array.shape, array.chunks, strict=True))
    written = array.id.get_num_chunks()
    if written < chunks:
        raise DataError(f"/{name}: {written} of {chunks} chunks were written: leave the episode out")
    described = array.id.get_create_plist()
    filters = [described.get_filter(i)[0] for i in range(described.get_nfilters())]
    if filters:
        _check_packed(name, array, filters, chunk)


def _check_packed(name: str, array: h5py.Dataset, filters: Sequence[int], chunk: int) -> None:
    """Packed twice, or packed to more than it is, a chunk could unpack to anything."""
    largest = 0

    def look(info: Any) -> None:
        nonlocal largest
        largest = max(largest, info.size)

    array.id.chunk_iter(look)
    if len(set(filters)) < len(filters) or largest > chunk + chunk // 8 + 4096:
        raise DataError(f"/{name}: its chunks unpack to more than the {chunk:,} bytes that they should hold")


def read_rows(name: str, array: h5py.Dataset) -> np.ndarray:
    """All rows of an array of numbers, in the byte order of this machine. Raises DataError where they are too many."""
    if array.dtype.itemsize * math.prod(array.shape) > LARGEST_COLUMN:
        raise DataError(f"/{name} of {array.shape} {array.dtype} has more than {LARGEST_COLUMN:,} bytes")
    rows = array[()]
    return rows.astype(rows.dtype.newbyteorder("="), copy=False)


def attribute(holder: h5py.Group | h5py.Dataset, name: str) -> Any:
    """The value of an attribute; None where there is none. Raises DataError where it is absurdly large."""
    import h5py

    if not h5py.h5a.exists(holder.id, name.encode()):
        return None
    if h5py.h5a.open(holder.id, name.encode()).get_space().get_simple_extent_npoints() > MOST_ENTRIES:
        raise DataError(f"attribute {name}: expected at most {MOST_ENTRIES:,} entries")
    return holder.attrs[name]


def text(value: Any, name: str) -> str:
    """One text, however it is stored. Raises DataError for anything else."""
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    if isinstance(value, bytes):
        value = value.decode()
    if not isinstance(value, str):
        raise DataError(f"{name}: expected one text, got {type(value).__name__} {np.shape(value)}")
    return value


def words(array: h5py.Dataset, name: str) -> tuple[str, ...]:
    """An attribute of several texts; none where it is missing."""
    values = attribute(array, name)
    if values is None:
        return ()
    if isinstance(values, (str, bytes)):
        values = [values]
    if not isinstance(values, (np.ndarray, Sequence)) or np.ndim(values) != 1:
        raise DataError(f"attribute {name}: expected texts, got {type(values).__name__}")
    return tuple(text(word, f"attribute {name}") for word in values)


def is_text(array: h5py.Dataset) -> bool:
    """Whether an array holds texts."""
    import h5py

    return h5py.check_string_dtype(array.dtype) is not None


def is_bytes(array: h5py.Dataset) -> bool:
    """Whether each element of an array is a number of bytes, such as an encoded picture."""
    import h5py

    return is_text(array) or h5py.check_vlen_dtype(array.dtype) in (np.dtype(np.uint8), np.dtype(np.int8))


Arrays = Mapping[str, "h5py.Dataset"]
