"""Ctrl-C, and what is true after it.

A verb knows what it has kept and how to go on; it says so by raising `Interrupted`, or runs its work within `saying`.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Interrupted(KeyboardInterrupt):
    """The user stopped the work. The message, one line, says what is kept and how to go on."""


class Terminated(KeyboardInterrupt):
    """The system, or a scheduler, asked the program to end (SIGTERM)."""


@contextmanager
def saying(kept: str | Callable[[], str]) -> Iterator[None]:
    """Turns an interrupt within into one that says what is kept; a function is asked only then, and may save first."""
    try:
        yield
    except Interrupted:
        raise
    except KeyboardInterrupt as interrupt:
        raise Interrupted(kept if isinstance(kept, str) else kept()) from interrupt


@contextmanager
def ends_as_interrupt() -> Iterator[None]:
    """Makes SIGTERM end the work within as Ctrl-C does, so that what can be saved is saved. Does nothing outside the
    main thread, where Python handles no signals, or where whoever started the program has it ignore the signal."""

    def end(*_: Any) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def held_back() -> Iterator[Callable[[], None]]:
    """Holds Ctrl-C and SIGTERM back until the function that it gives is called, between two pieces of work that must
    not be torn apart; a second one is raised wherever it falls. Outside the main thread nothing is held back."""
    asked: list[KeyboardInterrupt] = []
    before = {}

    def hold(number: int, _: Any) -> None:
        asked.append(Terminated() if number == signal.SIGTERM else KeyboardInterrupt())
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def let_through() -> None:
        if asked:
            raise asked[0]

    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        before = {number: handler for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}
        for number in before:
            signal.signal(number, hold)
    try:
        yield let_through
    finally:
        restore()
