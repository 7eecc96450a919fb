"""Verbs that write, as tests of kills and full disks see them: how to run and go on, what is kept, what is equal."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from robostack.datasets.formats import open_reader
from robostack.datasets.store import EpisodeStore

ENV = "aloha-transfer-cube"
SMALL = ("--policy.width", "16", "--policy.hidden", "16", "--policy.chunk-len", "20", "--policy.execute-len", "10")
STEPS, EVERY = 40, 5


@dataclass(frozen=True)
class Verb:
    """Commands take the path of what they write."""

    name: str
    first: Callable[[Path], Sequence[Any]]
    again: Callable[[Path], Sequence[Any]]
    """How to go on with what an earlier start left."""
    kept: Callable[[Path], int]
    """How much a stopped run still has, in the units that it tells."""
    promised: Callable[[int], int]
    """How much of what was told must be kept."""
    read: Callable[[Path], Any]
    """The result, as what must be equal."""


def told(text: str, what: str) -> int:
    """The last count that a run told, as in `collecting 2/3, …`."""
    return max((int(count) for count in re.findall(rf"^{what} (\d+)/\d+", text, re.MULTILINE)), default=0)


def rows(path: Path) -> Any:
    """Everything that a data set holds, of any format."""
    reader = open_reader(path)
    episodes = []
    for number in range(reader.episodes):
        episode = reader.read_episode(number)
        columns = {key: np.stack(list(column)).tobytes() for key, column in episode.columns.items()}
        episodes.append((columns, list(episode.task)))
    return reader.features, reader.fps, episodes


def collect(episodes: int = 3) -> Verb:
    def read(path: Path) -> Any:
        store = EpisodeStore(path)
        return rows(path), store.provenance["seeds"], store.robot, repr(store.statistics())

    return Verb(
        "collecting",
        lambda out: ["collect", "--env", ENV, "--episodes", episodes, "--workers", 1, "--out", out],
        lambda out: ["collect", "--resume", out],
        lambda out: EpisodeStore(out).episodes if out.exists() else 0,
        lambda count: count,
        read,
    )


def convert(source: Path, to: str, *flags: str) -> Verb:
    def command(out: Path) -> Sequence[Any]:
        return ["convert", source, out, "--to", to, *flags]

    # What is kept of an unfinished conversion is seen in what the next start still has to do.
    return Verb("converting", command, command, lambda _: 0, lambda _: 0, rows)


def train(data: Path, *flags: str) -> Verb:
    def command(out: Path) -> Sequence[Any]:
        lengths = ("--steps", STEPS, "--checkpoint-every", EVERY, "--log-every", 1, "--batch", 8, "--device", "cpu")
        return ["train", "act", "--data", data, "--out", out, *lengths, *SMALL, *flags]

    def kept(out: Path) -> int:
        found = sorted(out.glob("checkpoints/step-*/checkpoint.json"))
        return int(found[-1].parent.name.removeprefix("step-")) if found else 0

    def read(out: Path) -> Any:
        last = out / "checkpoints" / f"step-{STEPS:08d}"
        tensors = {file.name: load_file(file) for file in sorted(last.glob("*.safetensors"))}
        log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        return (
            {name: {key: value.tobytes() for key, value in values.items()} for name, values in tensors.items()},
            [(line["step"], line["loss"]) for line in log],
        )

    return Verb(
        "training",
        command,
        lambda out: ["train", "act", "--resume", out],
        kept,
        lambda count: max(0, count - 1) // EVERY * EVERY,  # a step is told before its checkpoint is made
        read,
    )


def evaluate(run: Path, episodes: int = 4) -> Verb:
    def command(out: Path) -> Sequence[Any]:
        counts = ("--episodes", episodes, "--workers", 1, "--videos", 0, "--seed", 500)
        return ["eval", run, "--env", ENV, *counts, "--out", out]

    def kept(out: Path) -> int:
        path = out / "episodes.jsonl"
        return path.read_text().count("\n") if path.exists() else 0

    def read(out: Path) -> Any:
        clocks = ("latencies_ms", "latency_ms_p50", "latency_ms_p95", "wall_s", "date", "command", "kept")
        lines = [json.loads(line) for line in (out / "episodes.jsonl").read_text().splitlines()]
        summary = json.loads((out / "summary.json").read_text())
        assert (out / "report.html").exists()
        return [{key: value for key, value in values.items() if key not in clocks} for values in (*lines, summary)]

    return Verb("evaluating", command, command, kept, lambda count: count, read)
