"""What `robostack collect` shows in the terminal: how the actions of its demonstrations vary."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from robostack.common.text import printable
from robostack.experts.spread import Spread


def print_spread(entries: Sequence[Spread], console: Console) -> None:
    """A table of the entries of the action, and a warning where some take two branches."""
    table = Table("action", "std over episodes", "largest step", title="Spread", title_justify="left")
    for entry in entries:
        mark = ("  two branches", "red") if entry.branches else ""
        deviation = Text.assemble(f"{entry.largest_std:.3f}", mark)
        table.add_row(Text(printable(entry.name)), deviation, f"{entry.largest_step:.3f}")
    console.print(table)
    if branching := [printable(entry.name) for entry in entries if entry.branches]:
        warning = (
            f"warning: {', '.join(branching)} takes different branches in different episodes; a policy trained on "
            "this averages between them"
        )
        console.print(Text(warning, "yellow"), soft_wrap=True)
