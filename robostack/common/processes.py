"""Worker processes that outlive neither their work nor their parent."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing.context import SpawnContext, SpawnProcess
from types import ModuleType
from typing import Any, final


def worker_pool(workers: int, start: Callable[..., None], *arguments: Any) -> ProcessPoolExecutor:
    """A pool of `workers` processes (0: one for each core this process may use) that begin with start(*arguments).

    They are spawned, since a fork after torch or JAX has started threads can hang. What `start` raises, the work given
    to the pool raises. The script that runs is not run again in them, so that it needs no `if __name__ == "__main__"`;
    `start`, the work and their arguments are therefore defined in modules that can be imported.
    """
    return _Pool(workers or cores(), _Context(), _start, (start, *arguments))


@final
class _Pool(ProcessPoolExecutor):
    """Python's own ends with a traceback on the console and "terminated abruptly" when a worker fails to begin."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return super().submit(_work, fn, *args, **kwargs)


@final
class _Worker(SpawnProcess):
    """A spawned process prepares itself by running the main script anew, which would do again all that it did before;
    where the main module is a bare one there is nothing to run."""

    def start(self) -> None:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            super().start()
        finally:
            sys.modules["__main__"] = main


@final
class _Context(SpawnContext):
    Process = _Worker  # pyright: ignore[reportAssignmentType] (the stub asks for the very class)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start(start: Callable[..., None], *arguments: Any) -> None:
    # Ctrl-C goes to the whole group: the parent ends its workers, in order and without a traceback from each.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A killed parent can end nobody, and its workers would wait for work forever.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    global _failure
    try:
        start(*arguments)
    except Exception as failure:
        _failure = failure


_failure: Exception | None = None
"""Why this worker could not begin."""


def _work(function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Any:
    if _failure is not None:
        raise _failure
    return function(*arguments, **named)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)
