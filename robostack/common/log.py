"""Logs of runs: files of JSON lines, one per report, that grow while the run goes on."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from types import TracebackType
from typing import Any

from robostack.common.files import read_text, write_file
from robostack.common.text import one_line

LOG_FILE = "log.jsonl"


class Appending:
    """A file that is only added to, without a buffer: a full disk is told by the write that finds it, and closing has
    nothing left to fail with."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def write(self, data: bytes) -> None:
        """All of it, or OSError after a part."""
        while data:
            data = data[os.write(self._descriptor, data) :]

    def close(self) -> None:
        os.close(self._descriptor)


class Log:
    """Appends reports, dataclasses of numbers, to RUN/log.jsonl."""

    def __init__(self, run: Path, kept: list[dict[str, Any]]) -> None:
        """Begins with the lines `kept`: a resumed run drops what was logged after its checkpoint."""
        write_file(run / LOG_FILE, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = Appending(run / LOG_FILE)

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, report: Any) -> None:
        self._file.write((json.dumps(asdict(report)) + "\n").encode())


def read_reports(run: Path, report: type[Any]) -> list[dict[str, Any]]:
    """The reports of a run, oldest first; none for a run that logged nothing. A last line that a kill or a full disk
    cut short is dropped.

    Raises ValueError where any other line is not one of `report`: numbers by the names of its fields, None where there
    is none.
    """
    path = run / LOG_FILE
    if not path.exists():
        return []
    *lines, cut = read_text(path).split("\n")
    names, reports = {field.name for field in fields(report)}, []
    for number, line in enumerate(lines, start=1):
        try:
            values = json.loads(line)
            if not isinstance(values, Mapping) or set(values) != names or not all(map(_is_number, values.values())):
                raise ValueError(f"expected numbers for {', '.join(sorted(names))}")
        except (ValueError, RecursionError) as error:
            if number == len(lines) and not cut:
                break  # cut short, and ended by whoever copied it
            raise ValueError(f"{path}, line {number} is no report ({one_line(error, 200)}): remove it") from error
        reports.append(dict(values))
    return reports


def _is_number(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and abs(value) < 1e300 and math.isfinite(value))
