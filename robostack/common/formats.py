"""Descriptions that an earlier robostack wrote, brought up to what this one reads.

A field that is added needs nothing: it takes its default where it is missing (`from_json` with `fill`). That default
has to be what was so before. Where it is not, or a field changes its meaning, the version rises by one, and a migration
turns a description of the version before into one of this: those of all versions are run one after the other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from robostack.common.text import one_line

Description = dict[str, Any]
Migration = Callable[[Description], Description]


@dataclass(frozen=True)
class Format:
    """A kind of description, which says `name`-VERSION as its "format". `migrations` maps a version to what makes the
    next one of it, which raises ValueError for what this robostack cannot do any more. What is not as its version wrote
    it may be left as it is: the typed read tells."""

    name: str
    migrations: Mapping[int, Migration]

    @property
    def version(self) -> int:
        """What this robostack writes."""
        return max(self.migrations) + 1

    def __str__(self) -> str:
        return f"{self.name}-{self.version}"

    def brought_up(self, values: Any) -> tuple[Description, int]:
        """A description as this version would have written it, and the version that it was of. Raises ValueError, which
        says what it is, for one of a later or too early version, and for what is no description at all."""
        if not isinstance(values, dict):
            raise ValueError(f"expected an object, got {type(values).__name__}")
        said = values.get("format")
        found = re.fullmatch(rf"{re.escape(self.name)}-(\d{{1,9}})", said) if isinstance(said, str) else None
        if found is None:
            raise ValueError(f"expected format {str(self)!r}, got {one_line(ValueError(repr(said)), 60)}")
        if (version := int(found[1])) > self.version:
            raise ValueError(
                f"a later robostack wrote it, in format {said!r}, and this one reads up to {str(self)!r}: update it"
            )
        if version < (earliest := min(self.migrations)):
            raise ValueError(
                f"an early robostack wrote it, in format {said!r}, and this one reads from '{self.name}-{earliest}' "
                "on: train it again, or use the robostack that wrote it"
            )
        for number in range(version, self.version):
            try:
                values = self.migrations[number](values)
            except (KeyError, TypeError, AttributeError):
                break
        return {**values, "format": str(self)}, version
