"""Where data is from, wherever it goes.

Formats of others have no place for it, such as for the seeds of episodes, which an evaluation must stay out of: it
stands in a file of ours, `robostack.json`, within the folder of the data set, or where the format has attributes there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robostack.common.files import read_json, write_file
from robostack.common.text import one_line
from robostack.datasets.episodes import DataError

FILE = "robostack.json"


def note(path: Path, provenance: Mapping[str, Any]) -> None:
    """Writes down where the data in a folder is from, beside what the file says already."""
    known = read_json(path / FILE) if (path / FILE).exists() else {}
    write_file(path / FILE, json.dumps({**known, "provenance": lasting(provenance)}, indent=1))


def lasting(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What stays true in another format: all but what the last reader said of its files."""
    return {key: value for key, value in provenance.items() if key != "source"}


def noted(path: Path) -> dict[str, Any]:
    """What `note` wrote beside a data set, if it did. Raises DataError where it cannot be read."""
    folder = path.parent if path.suffix == ".hdf5" else path
    try:
        values = read_json(folder / FILE)
        return checked(values.get("provenance", {}) if isinstance(values, dict) else values)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / FILE} cannot be read ({one_line(error)}): remove or restore it") from error


def checked(value: Any) -> dict[str, Any]:
    """The provenance that somebody's file holds. Raises DataError where it is no object or its seeds are no range."""
    if not isinstance(value, dict):
        raise DataError(f"expected an object as provenance, got {type(value).__name__}")
    seeds = value.get("seeds")
    if seeds is not None and not (isinstance(seeds, list) and len(seeds) == 2 and all(type(s) is int for s in seeds)):
        raise DataError(f"expected the first and last seed, got {one_line(ValueError(seeds))}")
    return lasting(value)
