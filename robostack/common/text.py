"""Texts of others, to be shown."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def printable(text: str) -> str:
    """The text with control characters, line ends and stray surrogates written as escapes: what a path, a name or a
    task holds cannot move the cursor, end a line or colour a terminal. Give it to rich as `Text` or with markup off."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text)


def one_line(error: BaseException, longest: int = 300) -> str:
    """What an exception says, in one printable line."""
    said = f"{error.args[0]} is missing" if isinstance(error, KeyError) and error.args else str(error)
    said = printable(" ".join(said.split()))
    return (said if len(said) <= longest else said[: longest - 1] + "…") or type(error).__name__


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ "did you mean …? " for the known name that is spelled most like `name`; nothing where none is."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]!r}? " if near else ""
