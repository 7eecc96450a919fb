"""Files that are written whole or not at all, and files of others that are read with suspicion.

What somebody else wrote may be damaged, huge, no file at all, or name places that lie elsewhere: it is read through
the functions here, which answer with one line (ValueError or OSError) and never hang.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

LARGEST_TEXT = 256 << 20
"""Bytes of the largest text or JSON file that is read whole; a LeRobot data set of a million episodes has 200 MB."""


class DiskFullError(OSError):
    """There is no room for what was to be written; the message says where, what is kept and what to do."""


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an exception, or one that led to it, says that the disk, a quota or a file-size limit is exhausted.

    Libraries that write files in C often keep the system's text and lose its number, so that both are looked for.
    """
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    while error is not None:
        if isinstance(error, DiskFullError) or getattr(error, "errno", None) in numbers:
            return True
        if any(os.strerror(number) in str(error) for number in numbers):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def room_needed(where: Path | Callable[[], Path], kept: str | Callable[[], str]) -> Iterator[None]:
    """Turns whatever a full disk raises within into one DiskFullError: where it was, and `kept`, what the user still
    has and how to go on; a function is asked only then. Of several around each other the outermost speaks: it knows
    what command was given."""
    try:
        yield
    except Exception as error:
        if not is_disk_full(error):
            raise
        place = where if isinstance(where, Path) else where()
        told = kept if isinstance(kept, str) else kept()
        raise DiskFullError(f"the disk is full at {place}: {told}") from error


def refuse_taken(path: Path, instead: str = "choose another path or remove it first") -> None:
    """Raises FileExistsError where writing would meet something of the user's. An empty folder is free to be used."""
    try:
        taken = path.is_symlink() or not path.is_dir() or next(path.iterdir(), None) is not None
    except FileNotFoundError:
        return
    if taken and os.path.lexists(path):
        raise FileExistsError(f"{path} already exists: {instead}")


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to write in that gets the name `path` when the block ends, all on the disk; if it fails nothing is left.

    Raises OSError, with the new folder removed, where something other than an empty folder has the name.
    """
    partial = path.with_name(f".{path.name}.new")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for entry in (*partial.rglob("*"), partial):
            sync(entry)
        os.replace(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync(path.parent)


def write_file(path: Path, content: str | bytes) -> None:
    """Replaces a file by a whole new one that is on the disk; a kill or a full disk leaves the old one."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        sync(partial)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Brings a file or folder to the disk, so that a power cut after a rename finds it whole."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def inside(folder: Path, name: str) -> Path:
    """`folder`/`name`, for a name that data brings along. Raises ValueError where it would lead out of the folder.

    A link within the folder may lead anywhere: only its owner can have made it, and hubs keep their files so.
    """
    pure = PurePosixPath(name)
    if not pure.parts or pure.is_absolute() or ".." in pure.parts or "\0" in name:
        raise ValueError(f"the path {name!r} leads out of {folder}")
    return folder / pure


def check_regular(path: Path) -> os.stat_result:
    """Raises FileNotFoundError where there is no file, ValueError for a folder, pipe, socket or device, which to open
    could block forever or have effects."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{path} is no regular file: expected a file of the data")
    return found


def read_text(path: Path, largest: int = LARGEST_TEXT) -> str:
    """The UTF-8 text of a file, without a byte order mark; line ends stay what they are. Raises ValueError for a file
    of more than `largest` bytes, one that is no regular file, or other text than UTF-8."""
    size = check_regular(path).st_size
    if size > largest:
        raise ValueError(f"{path} has {size:,} bytes, expected at most {largest:,}")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from error


def read_json(path: Path, largest: int = LARGEST_TEXT) -> Any:
    """The value in a JSON file. Raises ValueError as `read_text`, or where it is not one JSON value."""
    values = _decode(path, read_text(path, largest))
    if len(values) != 1:
        raise ValueError(f"{path}: expected one JSON value, got {len(values)}")
    return values[0]


def read_json_lines(path: Path, largest: int = LARGEST_TEXT) -> list[Any]:
    """The values of a file of JSON lines. They may as well be indented over several lines, and hold any character that
    other programs take for a line's end, such as U+2028. Raises ValueError as `read_text`, or where it is not JSON."""
    return _decode(path, read_text(path, largest))


_NO_SPACE = re.compile(r"[^ \t\r\n]")


def _decode(path: Path, text: str) -> list[Any]:
    decoder, values, place = json.JSONDecoder(), [], 0
    while found := _NO_SPACE.search(text, place):
        try:
            value, place = decoder.raw_decode(text, found.start())
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON ({error.msg} in line {error.lineno})") from error
        except (RecursionError, ValueError) as error:  # nested without end, or a number of thousands of digits
            raise ValueError(f"{path} is no JSON that can be read: {error}") from error
        values.append(value)
    return values
