"""What `robostack eval` shows in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from robostack.common.text import printable


def print_summary(summary: Mapping[str, Any], console: Console) -> None:
    """Shows the summary of an evaluation."""

    def share(name: str) -> str:
        low, high = summary[f"{name}_interval"]
        return f"{summary[name]:.1%}  (95 % interval {low:.1%} to {high:.1%})"

    table = Table(
        show_header=False,
        title=Text(printable(f"{summary['policy']} in {summary['env']}: {summary['episodes']} episodes")),
        title_justify="left",
    )
    highest = max(summary["stages"], key=int)
    table.add_row(f"success (stage {highest} at any step)", share("success"))
    table.add_row(f"final (stage {highest} at the last step)", share("final"))
    names = summary["stage_names"]
    reached = [
        f"{count} reached stage {stage}" + (f", {printable(names[int(stage)])}" if int(stage) < len(names) else "")
        for stage, count in summary["stages"].items()
        if count
    ]
    table.add_row("highest stage", Text("\n".join(reached)))
    table.add_row("mean return", f"{summary['mean_return']:.1f}")
    together = f", {summary['together']} episodes together" if summary["together"] > 1 else ""
    latency = f"{summary['latency_ms_p50']} ms median, {summary['latency_ms_p95']} ms p95{together}"
    table.add_row("chunk latency", latency)
    console.print(table)
