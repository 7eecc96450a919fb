"""Where people and programs read: standard error is for people, standard output for results, and with --json for JSON
lines alone."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console

from robostack.common.text import printable

console = Console(stderr=True)


def say(line: str, style: str = "") -> None:
    """Tells people a line. What it holds of data and paths is text: it colours nothing and ends no line."""
    console.print(printable(line), style=style, markup=False, highlight=False, soft_wrap=True)


def print_json(lines: Iterable[Mapping[str, Any]]) -> None:
    """Writes results, one JSON value a line."""
    write("".join(json.dumps(line) + "\n" for line in lines))


def write(text: str) -> None:
    """Writes results. Where nobody reads them any more, as after `robostack … | head -1`, the program ends quietly."""
    try:
        encoding = sys.stdout.encoding or "utf-8"
        sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
        sys.stdout.flush()
    except OSError as error:
        # What waits to be written would fail once more when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise SystemExit(128 + signal.SIGPIPE) from None
        raise OSError(error.errno, f"standard output: {error.strerror}") from error
