"""What `robostack inspect` shows in the terminal: a data set, or a checkpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from robostack.common.serialize import to_json
from robostack.common.text import printable
from robostack.core.text.words import Vocabulary
from robostack.datasets.inspection.findings import FeatureSummary, Inspection, Problem
from robostack.pages.html import number
from robostack.pages.inspection import bytes_text

if TYPE_CHECKING:
    from robostack.policies.checkpoint import Checkpoint

ENTRIES_SHOWN = 64
"""Of one feature."""
LINES_SHOWN = 50
"""Of problems, and of tasks."""


def print_inspection(inspection: Inspection, console: Console) -> None:
    """Shows a data set's facts, features, tasks, notes and problems."""
    lengths = sorted(inspection.lengths.values()) or [0]
    facts = _facts()
    facts.add_row("format", _text(inspection.format))
    facts.add_row("robot", _text(inspection.robot or "not recorded"))
    facts.add_row("rate", "not recorded" if inspection.fps is None else f"{inspection.fps:g} Hz")
    median = f"{np.median(lengths):,.0f}"
    of = f"of {lengths[0]:,} to {lengths[-1]:,} frames, median {median}"
    facts.add_row("episodes", f"{inspection.episodes:,} {of}; {inspection.frames:,} frames in all")
    facts.add_row("size", bytes_text(inspection.bytes))
    console.print(facts, highlight=False)

    entries = [entry for summary in inspection.features for entry in summary.entries[:ENTRIES_SHOWN]]
    unit = max([len(printable(entry.unit)) for entry in entries] or [0])
    unit = min(max(unit, 8), max(console.width - 72, 10))
    console.print(
        _figure_table(("feature", "unit", "smallest", "largest", "mean", "deviation"), header=True, unit=unit)
    )
    for summary in inspection.features:
        _print_feature(summary, console, unit)

    tasks = Table("task", "episodes", title="Tasks", title_justify="left")
    tasks.columns[1].justify = "right"
    for task, count in list(inspection.tasks.items())[:LINES_SHOWN]:
        tasks.add_row(_text(task) if task else _text("(no text)", "dim"), f"{count:,}")
    if (more := len(inspection.tasks) - LINES_SHOWN) > 0:
        tasks.add_row(_text(f"and {more:,} more", "dim"), "")
    console.print(tasks)

    problems = [finding.text for finding in inspection.wrong]
    for what, findings, colour in (("note", _summed_up(inspection.notes), "dim"), ("problem", problems, "yellow")):
        for finding in findings[:LINES_SHOWN]:
            console.print(_text(f"{what}: {finding}", colour), soft_wrap=True)
        if (more := len(findings) - LINES_SHOWN) > 0:
            console.print(_text(f"and {more:,} {what}s more: --json lists them all", colour))
    if not inspection.wrong:
        console.print(_text("no problem found", "green"))


def _summed_up(notes: Sequence[Problem]) -> list[str]:
    """A line each, but one for all entries that are still."""
    lines: dict[str, list[str]] = {}
    for note in notes:
        if note.kind in ("constant", "hardly varies"):
            lines.setdefault(note.kind, []).append(" ".join(part for part in (note.feature, note.entry) if part))
        else:
            lines[note.text] = []
    return [f"{line}: {', '.join(entries)}" if entries else line for line, entries in lines.items()]


def _text(of: str, style: str = "") -> Text:
    """What is told of data is text, whatever it holds."""
    return Text(printable(of), style)


def _print_feature(summary: FeatureSummary, console: Console, unit: int) -> None:
    feature = summary.feature
    shape = " × ".join(str(size) for size in feature.shape)
    kind = "camera" if feature.is_image else "depth camera" if feature.is_depth else ""
    about = ", ".join(part for part in (kind, shape, feature.dtype) if part)
    console.print(Text.assemble((printable(summary.key), "bold"), "  ", (about, "dim")), soft_wrap=True)
    rows = [(f"  {entry.name or 'value'}", entry.unit, *_figures(asdict(entry))) for entry in summary.entries]
    if rows:
        console.print(_figure_table(*rows[:ENTRIES_SHOWN], unit=unit))
    if (more := len(rows) - ENTRIES_SHOWN) > 0:
        console.print(_text(f"  and {more:,} more", "dim"))


def _figure_table(*rows: tuple[str, ...], header: bool = False, unit: int = 8) -> Table:
    """Name, unit and four figures a row, in columns that are alike in every table; long names and units are folded."""
    table = Table(show_header=False, box=None, padding=(0, 1, 0, 0), style="bold" if header else "")
    table.add_column(width=24, overflow="fold")
    table.add_column(width=unit, overflow="fold")
    for _ in range(4):
        table.add_column(width=10, no_wrap=True, justify="right")
    for row in rows:
        table.add_row(*map(_text, row))
    return table


_NAMES = ("min", "max", "mean", "std")


def _figures(of: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(number(of[name], ".4g") for name in _NAMES)


def holds_checkpoint(path: Path) -> bool:
    """Whether `path` is a checkpoint, or a run with one."""
    return (path / "checkpoint.json").is_file() or any(path.glob("checkpoints/step-*/checkpoint.json"))


def describe_checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    """A checkpoint as JSON values: policy, config, parameters, what it observes, statistics, how it was trained.

    Parameters are counted from the header of the weights; no tensor is read.
    """
    processor = checkpoint.processor
    return {
        "path": str(checkpoint.path),
        "policy": checkpoint.policy,
        "step": checkpoint.step,
        "parameters": sum(math.prod(kind.shape) for kind in checkpoint.kinds(checkpoint.best).values()),
        "config": asdict(checkpoint.config),
        "state_keys": list(processor.state),
        "cameras": {name: list(size) for name, size in processor.cameras.items()},
        "depth": list(processor.depth),
        "tokenizer": "words" if isinstance(processor.tokenizer, Vocabulary) else processor.tokenizer.file,
        "words": processor.tokenizer.size - isinstance(processor.tokenizer, Vocabulary),
        "prompt": processor.prompt.template,
        "statistics": {
            f"{key} of {name}" if len(processor.robots) > 1 else key: asdict(statistics)
            for name, robot in processor.robots.items()
            for key, statistics in robot.statistics.items()
        },
        "training": to_json(checkpoint.training),
    }


def print_checkpoint(description: Mapping[str, Any], console: Console) -> None:
    """Shows what `describe_checkpoint` gives."""
    facts = _facts()
    for name in ("policy", "step", "parameters"):
        value = description[name]
        facts.add_row(name, _text(f"{value:,}" if isinstance(value, int) else value))
    facts.add_row("observes", _text(", ".join(description["state_keys"])))
    cameras = [
        f"{name} {height}×{width}{' depth' * (name in description['depth'])}"
        for name, (height, width) in description["cameras"].items()
    ]
    facts.add_row("cameras", _text(", ".join(cameras) or "none"))
    facts.add_row(
        "text", _text(f"{description['words']:,} tokens of {description['tokenizer']}, {description['prompt']!r}")
    )
    for name, value in {**description["config"], **description["training"]}.items():
        facts.add_row(_text(name), _text(value if isinstance(value, str) else json.dumps(value, default=str)))
    console.print(facts, highlight=False)
    console.print(_figure_table(("statistics", "", "smallest", "largest", "mean", "deviation"), header=True))
    for key, statistics in description["statistics"].items():
        console.print(_text(key, "bold"))
        places = range(len(statistics["mean"]))
        rows = [{name: values[place] for name, values in statistics.items() if name in _NAMES} for place in places]
        console.print(_figure_table(*((f"  {place}", "", *_figures(row)) for place, row in enumerate(rows))))


def _facts() -> Table:
    return Table(show_header=False, box=None, padding=(0, 2, 0, 0))
