"""The progress of long work: a bar on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from robostack.common.text import printable

EVERY = 15.0
"""Seconds between two lines of a log."""


class Bar:
    """Count, time taken, time left and a note; on a narrow terminal the note is cut first.

    It shows up with the first `update`: work that fails before, on bad input, leaves its one line alone. Where the
    console is no terminal, a line is written every 15 s and one at the end.
    """

    def __init__(self, console: Console, description: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._description, self._clock = console, printable(description), clock
        self._begun = self._told = clock()
        self._untold: tuple[int, int, str] | None = None
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=min(max(console.width - 70, 8), 40)),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                _Note(),
                console=console,
            )
            # The task's clock starts here, whenever the bar is shown.
            self._task = self._bar.add_task(self._description, total=None, note="")

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif not isinstance(
            error, Exception
        ):  # an error has a line of its own; an interrupt does not say how far it got
            self._tell()

    def update(self, completed: int, total: int, note: str) -> None:
        """Shows that `completed` of `total` are done."""
        if self._bar is not None:
            self._bar.start()
            self._bar.update(self._task, completed=completed, total=total, note=printable(note))
            return
        self._untold = completed, total, note
        if completed >= total or self._clock() - self._told >= EVERY:
            self._tell()

    def _tell(self) -> None:
        if self._untold is None:
            return
        (completed, total, note), now = self._untold, self._clock()
        self._untold, self._told = None, now
        taken = now - self._begun
        left = f", {_time(taken * (total - completed) / completed)} left" if 0 < completed < total else ""
        line = f"{self._description} {completed}/{total}, {_time(taken)} taken{left}{note and f': {printable(note)}'}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _time(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


class _Note(ProgressColumn):
    """Gives way to the columns beside it, which would else all be cut."""

    def __init__(self) -> None:
        super().__init__(Column(no_wrap=False, overflow="ellipsis"))

    def render(self, task: Task) -> Text:
        return Text(task.fields["note"], no_wrap=True, overflow="ellipsis")
