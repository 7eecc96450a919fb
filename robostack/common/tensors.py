"""The tensor files of a checkpoint: what is in them by their headers, and whether they are still what was written.

A header is read before a tensor is: a file that does not fit is told before memory is asked for.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from robostack.common.files import check_regular

LARGEST_WEIGHT = 1e8
"""Beyond this a weight is no weight: neighbouring float32 numbers lie 8 apart, and products of a few overflow."""

TYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
"""safetensors' names of types, and those of numpy and torch."""


@dataclass(frozen=True)
class Kind:
    """What a tensor is, apart from its numbers."""

    dtype: str
    """As numpy and torch name it."""
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Of its numbers."""
        return math.prod(self.shape) * (int("".join(filter(str.isdigit, self.dtype)) or 8) // 8)


@dataclass(frozen=True)
class Seal:
    """What a file was when it was written. The hash finds what a disk, a copy or an editor did to it; it does not
    say who wrote it."""

    bytes: int
    sha256: str

    @staticmethod
    def of(path: Path) -> Seal:
        """Of the file as it is now. Reads it whole, at about 1 GB/s."""
        size = check_regular(path).st_size
        with path.open("rb") as file:
            return Seal(size, hashlib.file_digest(file, "sha256").hexdigest())

    def check(self, path: Path) -> None:
        """Raises ValueError where the file is another one, or damaged; a wrong size is told without reading it."""
        size = check_regular(path).st_size
        if size != self.bytes:
            raise ValueError(f"{path} is damaged: expected {self.bytes:,} bytes, got {size:,}")
        if (found := Seal.of(path)) != self:
            raise ValueError(f"{path} is damaged: expected SHA-256 {self.sha256[:16]}…, got {found.sha256[:16]}…")


def newest_checkpoint(path: Path, named: str, described: str) -> Path | None:
    """The checkpoint folder at `path`: itself, or of those under `path`/checkpoints that are named so the last. It is
    one by the file that describes it, which is written last."""
    if (path / described).is_file():
        return path
    found = sorted(path.glob(f"checkpoints/{named}/{described}"))
    return found[-1].parent if found else None


def read_kinds(path: Path) -> dict[str, Kind]:
    """The tensors of a safetensors file by name, without their numbers.

    Raises OSError or ValueError where there is no such file, or it is damaged.
    """
    check_regular(path)
    try:
        with safe_open(path, "numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            return {
                name: Kind(TYPES.get(str(part.get_dtype()), "unknown"), tuple(part.get_shape()))
                for name, part in slices.items()
            }
    except (SafetensorError, MemoryError) as error:  # a file of a terabyte is not even mapped
        raise ValueError(f"{path} cannot be read ({error})") from error


def differences(expected: Mapping[str, Kind], found: Mapping[str, Kind]) -> str:
    """In words, what is missing, unknown or of another type or shape; "" where nothing is."""
    problems = [f"{name} missing" for name in expected if name not in found]
    problems += [f"{name} unknown" for name in found if name not in expected]
    for name, kind in expected.items():
        if name in found and (got := found[name]) != kind:
            if got.dtype == kind.dtype:
                problems.append(f"{name} is {got.shape}, expected {kind.shape}")
            else:
                problems.append(f"{name} is {got.dtype} {got.shape}, expected {kind.dtype} {kind.shape}")
    more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
    return "; ".join(problems[:3]) + more
