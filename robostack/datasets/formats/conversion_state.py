"""conversion.json: what an unfinished conversion has to know to go on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from robostack.common.files import read_json, write_file
from robostack.common.serialize import from_json, to_json
from robostack.datasets.episodes import DataError
from robostack.datasets.formats import resume_writer


@dataclass(frozen=True)
class Noted:
    """What the file holds."""

    settings: Mapping[str, Any]
    """What is converted and how; `to` is the name of the format."""
    created: bool = False
    """Whether the writer was made."""
    appended: bool = False
    """Whether all episodes were written."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Damaged episodes of the source, by their numbers, and what is wrong with them."""
    left_out_features: Mapping[str, str] = field(default_factory=dict)
    """Features that one of the episodes does not have as it should, and why."""


class ConversionState:
    """What is noted, and where: `<partial>/conversion.json` beside the result, `<partial>/data`."""

    def __init__(self, partial: Path, noted: Noted) -> None:
        self.partial, self.noted = partial, noted

    @classmethod
    def begin(cls, partial: Path, settings: Mapping[str, Any]) -> ConversionState:
        """The state of the unfinished conversion that is there, if it has the same settings, else a new one; one that
        holds no episode makes way.

        Raises FileExistsError where something else has its name, DataError where it is damaged, ValueError where it
        holds episodes and has other settings.
        """
        if partial.is_symlink() or (partial.exists() and not partial.is_dir()):
            raise FileExistsError(f"{partial} is in the way: expected an unfinished conversion or nothing; remove it")
        path, new = partial / "conversion.json", cls(partial, Noted(json.loads(json.dumps(settings))))
        if not path.exists():
            partial.mkdir(parents=True, exist_ok=True)
            new.save()
            return new
        try:
            found = cls(partial, from_json(Noted, {"left_out_features": {}, **_object(read_json(path))}))
        except (OSError, ValueError) as error:
            raise DataError(f"{path} is damaged: remove {partial} and start again") from error
        before, now = found.noted.settings, new.noted.settings
        others = [key for key in now if before.get(key) != now[key]]
        if not others:
            return found
        if others == ["skip_damaged"] and not found.noted.left_out:  # so far that made no difference
            found.save(settings=now)
            return found
        if found._holds_episodes():
            changed = "; ".join(f"{key} {before.get(key)!r}, now {now[key]!r}" for key in others)
            raise ValueError(
                f"{partial} is an unfinished conversion with other settings ({changed}): give the same, or remove it"
            )
        shutil.rmtree(partial / "data", ignore_errors=True)
        new.save()
        return new

    def save(self, **changes: Any) -> None:
        """Notes changes, on the disk when it returns."""
        self.noted = replace(self.noted, **changes)
        write_file(self.partial / "conversion.json", json.dumps(to_json(self.noted), indent=1))

    def _holds_episodes(self) -> bool:
        if not self.noted.created or self.noted.appended:
            return self.noted.created
        try:
            return resume_writer(str(self.noted.settings.get("to")), self.partial / "data").episodes > 0
        except (ValueError, OSError):
            return True  # nobody knows: it is the user's


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, got {type(value).__name__}")
    return value
