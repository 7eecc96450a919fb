"""Optional packages, and one error for all who miss one."""

from __future__ import annotations

import importlib.util


class MissingExtraError(ModuleNotFoundError):
    """An optional package is needed and not installed."""


def require_extra(module: str, extra: str) -> None:
    """Checks, without importing it, that an optional package is there; call it where the work begins.

    `module` is its top-level module, such as "av", and `extra` that of robostack which installs it, such as "report".
    Raises MissingExtraError where it is not installed.
    """
    if importlib.util.find_spec(module) is None:
        raise MissingExtraError(f"needs the package {module}, not installed: pip install 'robostack[{extra}]'")
