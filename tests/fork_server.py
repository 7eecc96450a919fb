"""Runs robostack's verbs in forked children of a process that has imported everything: a start takes no seconds, and a
kill falls into the work and not into imports.

Reads a JSON line a run from standard input (see `Forks.start`) and answers it when the run has ended.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

WARM = (
    *("robostack.cli", "robostack.experts.collect", "robostack.experts.aloha", "robostack.datasets.formats.convert"),
    *(
        "robostack.datasets.formats.lerobot.reader",
        "robostack.datasets.formats.lerobot.writer",
        "robostack.datasets.formats.hdf5.aloha",
    ),
    *(
        "robostack.datasets.formats.diffusion_policy",
        "robostack.datasets.inspection.survey",
        "robostack.training.trainer",
    ),
    *("robostack.evaluation.evaluate", "robostack.pages.inspection", "robostack.evaluation.films"),
    *("robostack.pages.evaluation", "tyro", "torch", "torch._dynamo", "pyarrow.parquet", "h5py", "av", "PIL.Image"),
)


@dataclass(frozen=True)
class Ran:
    """How a run ended: its exit status (negative: the signal), what it told, and the seconds it took."""

    code: int
    told: str
    seconds: float


class Forks:
    """The parent's side; a context manager."""

    def __enter__(self) -> Forks:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
        self._server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        return self

    def __exit__(self, *_: Any) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(60)

    def run(
        self, arguments: Sequence[Any], kill_after: float | None = None, largest_file: int | None = None, **more: Any
    ) -> Ran:
        """`robostack` with these arguments; killed (SIGKILL) after so many seconds, or with no file allowed to become
        larger than so many bytes."""
        order = {"arguments": [str(argument) for argument in arguments], "kill": kill_after, "largest": largest_file}
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.write(json.dumps(order | more) + "\n")
        self._server.stdin.flush()
        return Ran(**json.loads(self._server.stdout.readline()))


def main() -> None:
    for name in WARM:
        with suppress(ImportError):
            importlib.import_module(name)
    import torch

    from robostack.common import progress

    progress.EVERY = 0.0  # every step is told: what is told must be kept
    torch.set_num_threads(1)
    for line in sys.stdin:
        order = json.loads(line)
        begun = time.monotonic()
        reading, writing = os.pipe()
        process = os.fork()
        if not process:
            os.close(reading)
            _child(order, writing)
        os.close(writing)
        code, told = _follow(process, reading, order["kill"])
        print(json.dumps({"code": code, "told": told, "seconds": time.monotonic() - begun}), flush=True)


def _child(order: dict[str, Any], writing: int) -> None:
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, file in enumerate((nothing, writing, writing)):
        os.dup2(file, number)
    if order["largest"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["largest"], order["largest"]))
    from robostack.cli import main as robostack

    code = 70
    try:
        code = robostack(order["arguments"])
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        import multiprocessing.util

        multiprocessing.util._exit_function()  # as at the end of a process
        os._exit(code)


def _follow(process: int, reading: int, kill: float | None) -> tuple[int, str]:
    """Exit status and output of a child; whatever it started ends with it."""
    end = None if kill is None else time.monotonic() + kill
    told, status = b"", None
    while status is None:
        ready, _, _ = select.select(
            [reading], [], [], 0.02 if end is None else max(0.0, min(0.02, end - time.monotonic()))
        )
        if ready:
            told += os.read(reading, 1 << 16)
        if end is not None and time.monotonic() >= end:
            os.kill(process, signal.SIGKILL)
            end = None
        done, found = os.waitpid(process, os.WNOHANG)
        status = found if done else None
    with suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)
    while select.select([reading], [], [], 0.0)[0] and (data := os.read(reading, 1 << 16)):
        told += data
    os.close(reading)
    return os.waitstatus_to_exitcode(status), told.decode(errors="replace")


if __name__ == "__main__":
    main()
