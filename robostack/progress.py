"""The progress bar of long work."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Bar:
    """A bar with count, time taken, time left and a note.

    It shows up with the first `update`: work that fails before, on bad input, leaves its one line alone.
    """

    def __init__(self, console: Console, description: str) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
        )
        # The task's clock starts here, whenever the bar is shown.
        self._task = self._progress.add_task(description, total=None, note="")

    def __enter__(self) -> "Bar":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def update(self, completed: int, total: int, note: str) -> None:
        """Shows that `completed` of `total` are done."""
        self._progress.start()
        self._progress.update(self._task, completed=completed, total=total, note=note)
