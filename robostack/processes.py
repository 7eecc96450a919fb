"""Worker processes that outlive neither their work nor their parent."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, final


def worker_pool(workers: int, start: Callable[..., None], *arguments: Any) -> ProcessPoolExecutor:
    """A pool of `workers` processes (0: one for each core this process may use) that begin with start(*arguments).

    They are spawned, since a fork after torch or JAX has started threads can hang. What `start` raises, the work given
    to the pool raises.
    """
    context = multiprocessing.get_context("spawn")
    return _Pool(workers or cores(), context, _start, (start, *arguments))


@final
class _Pool(ProcessPoolExecutor):
    """Python's own ends with a traceback on the console and "terminated abruptly" when a worker fails to begin."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return super().submit(_work, fn, *args, **kwargs)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start(start: Callable[..., None], *arguments: Any) -> None:
    # Ctrl-C goes to the whole group: the parent ends its workers, in order and without a traceback from each.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A killed parent can end nobody, and its workers would wait for work for ever.
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
