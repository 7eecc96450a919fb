"""A page that needs nothing beside it: style and script inside, no network, all text from data escaped."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robostack.common.files import write_file
from robostack.common.numbers import is_finite
from robostack.common.text import printable

MISSING = "–"

_HERE = Path(__file__).parent
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; media-src data:; img-src data:"


def write_page(path: Path | str, title: str, sections: Sequence[str]) -> None:
    """Writes the sections, HTML already, as one page under `title`, plain text; it appears whole or not at all."""
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{text(title)}</title>
<style>
{(_HERE / "page.css").read_text()}</style>
</head>
<body>
<main>
{"".join(sections)}</main>
<script>
{(_HERE / "page.js").read_text()}</script>
</body>
</html>
"""
    write_file(Path(path), page)


def text(value: Any) -> str:
    """Any value as text that is safe in HTML and its attributes, control characters as escapes; None shows as "–"."""
    return MISSING if value is None else html.escape(printable(str(value)))


def number(value: Any, form: str, factor: float = 1) -> str:
    """`factor * value` in the given format; what is not a finite number shows as "–"."""
    return format(factor * value, form) if is_finite(value) else MISSING
