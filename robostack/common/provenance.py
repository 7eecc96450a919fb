"""Where a result comes from: command, commit, date and machine, for checkpoints, data sets and reports."""

from __future__ import annotations

import datetime
import platform
import shlex
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

from robostack.common.processes import cores


class Ran(TypedDict):
    """Where something comes from; the commit ends in +changes when the tree was not clean."""

    command: str
    commit: str
    date: str
    machine: str


@dataclass(frozen=True)
class Resumed:
    """A process that went on with a training, from this step (or update) on."""

    step: int
    command: str
    commit: str
    date: str
    machine: str


@dataclass(frozen=True, kw_only=True)
class Training:
    """How something was trained: for people. What each kind of training says besides is a subclass's."""

    command: str
    commit: str
    date: str
    machine: str
    resumed: tuple[Resumed, ...] = ()
    """What the four are of later processes, oldest first."""

    def goes_on[T: Training](self: T, step: int) -> T:
        """The same training, which this process goes on with."""
        return replace(self, resumed=(*self.resumed, Resumed(step, **describe_run())))


def describe_run() -> Ran:
    """Of this process, as of now."""
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(),
    }


def describe_machine() -> str:
    """Processor and cores usable by this process."""
    count = cores()
    return f"{_processor()}, {count} core{'s' if count > 1 else ''}, {platform.system()}"


def commit(folder: Path | None = None) -> str:
    """The commit of the checkout that `folder` lies in, by default of the robostack that runs; +changes where files
    that it tracks differ from it, results aside: writing down one does not change what the next is measured with.
    "unknown" for an installed package."""
    folder = Path(__file__).resolve().parent if folder is None else folder
    try:
        head = _git(folder, "rev-parse", "--short=12", "HEAD")
        status = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ":(top,exclude)docs/results")
        return head + ("+changes" if status else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
