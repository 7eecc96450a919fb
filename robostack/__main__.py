"""`python -m robostack` is `robostack`."""

from __future__ import annotations

from robostack.cli import main

if __name__ == "__main__":  # the worker processes import this too
    raise SystemExit(main())
