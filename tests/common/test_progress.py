"""Progress keeps what matters: step, time and loss, in a log as on a narrow terminal."""

import io
import re

import pytest
from rich.console import Console

from robostack.common.progress import EVERY, Bar

NOTE = "loss 0.0018, 123.4 steps/s, waits for data 0%"


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def run(console: Console, steps: int, clock: Clock, seconds: float = 1.0, note: str = NOTE) -> str:
    with Bar(console, "training", clock) as bar:
        for step in range(1, steps + 1):
            clock.now += seconds
            bar.update(step, steps, note)
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def log() -> Console:
    return Console(file=io.StringIO(), width=40)


def test_a_log_has_a_whole_line_now_and_then() -> None:
    lines = run(log(), 50, Clock()).splitlines()
    assert [line.split()[1] for line in lines] == ["15/50,", "30/50,", "45/50,", "50/50,"]
    assert lines[1] == f"training 30/50, 0:00:30 taken, 0:00:20 left: {NOTE}"
    assert lines[-1] == f"training 50/50, 0:00:50 taken: {NOTE}"


def test_short_work_is_one_line_and_none_is_no_line() -> None:
    assert len(run(log(), 5, Clock(), EVERY / 10).splitlines()) == 1
    console = log()
    with Bar(console, "training"):
        pass
    assert console.file.getvalue() == ""  # pyright: ignore[reportAttributeAccessIssue]


def test_an_interrupt_leaves_how_far_it_went_and_an_error_its_own_line() -> None:
    for error, lines in ((KeyboardInterrupt(), 1), (ValueError(), 0)):
        console = log()
        with pytest.raises(type(error)), Bar(console, "training") as bar:
            bar.update(3, 10, "loss 1")
            raise error
        assert len(console.file.getvalue().splitlines()) == lines  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("width", [80, 100, 160])
def test_a_narrow_terminal_keeps_step_time_and_loss(width: int) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    shown = re.sub(r"\x1b\[[^a-zA-Z]*[a-zA-Z]", "", run(console, 3000, Clock(), 0.0)).splitlines()[-1]
    assert "training" in shown and "3000/3000" in shown and re.search(r"\d:\d\d:\d\d left \d:\d\d:\d\d", shown), shown
    assert "loss 0.0018" in shown and len(shown) <= width, shown


@pytest.mark.parametrize("terminal", [False, True])
def test_what_a_note_holds_is_text(terminal: bool) -> None:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=160, color_system=None)
    shown = run(console, 1, Clock(), 1.0, "[red]x[/] [/] \x1b[2J\u2028y")
    assert r"[red]x[/] [/] \x1b[2J\u2028y" in shown
