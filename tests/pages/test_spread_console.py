"""What people see of how demonstrations vary."""

from __future__ import annotations

import pytest
from rich.console import Console

from robostack.experts.spread import Spread
from robostack.pages.spread_console import print_spread


@pytest.mark.parametrize("branches", [False, True])
def test_entries_that_take_two_branches_are_warned_of(branches: bool) -> None:
    console = Console(width=60)
    with console.capture() as shown:
        print_spread([Spread("elbow", 0.1, 0.02, False), Spread("[red]wrist", 1.5, 0.03, branches)], console)
    text = shown.get()
    assert "0.100" in text and "0.030" in text and "[red]wrist" in text
    assert ("warning: [red]wrist takes different branches" in text) == branches
    assert ("two branches" in text) == branches
