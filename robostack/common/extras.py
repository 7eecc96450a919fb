"""Optional packages, and one error for all who miss one."""

from __future__ import annotations

import importlib.util


class MissingExtraError(ModuleNotFoundError):
    """An optional package is needed and not installed."""


def require_extra(module: str, extra: str) -> None:
    """Checks, without importing it, that an optional package is there; call it where the work begins.

    Args:
        module: top-level module name, e.g. "av".
        extra: the extra of robostack that installs it, e.g. "report".

    Raises:
        MissingExtraError: it is not installed.
    """
    if importlib.util.find_spec(module) is None:
        raise MissingExtraError(f"needs the package {module}, not installed: pip install 'robostack[{extra}]'")
