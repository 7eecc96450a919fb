"""What a training run tells: a JSON-lines log, TensorBoard where it is installed, and a record for the screen."""

from __future__ import annotations

import os
import socket
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from robostack.common import log
from robostack.common.log import LOG_FILE, Appending, Log

__all__ = ["LOG_FILE", "TrainingLog", "TrainingReport", "read_training_log"]


@dataclass(frozen=True)
class TrainingReport:
    """One logged step. `time_s` and `cpu_s` count from the start of the run, over all its resumptions."""

    step: int
    steps: int
    loss: float
    gradient_norm: float
    learning_rate: float
    steps_per_s: float
    data_wait: float
    """Share of the time since the last report in which the loop waited for data."""
    time_s: float
    cpu_s: float
    """CPU time of the process, all threads."""


class TrainingLog:
    """Appends reports to RUN/log.jsonl and RUN/tensorboard; a resumed run drops what lies after its checkpoint."""

    def __init__(self, run: Path, step: int) -> None:
        kept = [line for line in read_training_log(run) if line["step"] <= step]
        before = kept[-1] if kept else {"time_s": 0.0, "cpu_s": 0.0}
        self._wall, self._cpu = time.perf_counter() - before["time_s"], time.process_time() - before["cpu_s"]
        self._last = (step, time.perf_counter(), 0.0)
        with ExitStack() as opened:
            self._log = opened.enter_context(Log(run, kept))
            try:
                self._board = _Board(run / "tensorboard", step)
            except ImportError:  # an extra: the JSON lines say the same
                self._board = None
            else:
                opened.callback(self._board.close)
            self._opened = opened.pop_all()

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()

    def write(
        self, step: int, steps: int, loss: float, gradient_norm: float, learning_rate: float, waited: float
    ) -> TrainingReport:
        """Logs a step; `waited` is the time in seconds that the loop has waited for data since its start."""
        now = time.perf_counter()
        last_step, then, waited_then = self._last
        self._last = (step, now, waited)
        report = TrainingReport(
            step,
            steps,
            loss,
            gradient_norm,
            learning_rate,
            steps_per_s=(step - last_step) / (now - then),
            data_wait=(waited - waited_then) / (now - then),
            time_s=now - self._wall,
            cpu_s=time.process_time() - self._cpu,
        )
        self._log.write(report)
        if self._board is not None:
            values = asdict(report)
            self._board.write(step, {name: values[name] for name in values if name not in ("step", "steps")})
        return report


def read_training_log(run: Path) -> list[dict[str, Any]]:
    """The reports of a run, oldest first; see `robostack.common.log.read_reports`."""
    return log.read_reports(run, TrainingReport)


class _Board:
    """Curves for TensorBoard, written at once: its own writer does so in a thread, whose errors come late and as a
    traceback. Raises ImportError where TensorBoard is not installed."""

    def __init__(self, folder: Path, step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = Event, Summary
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        self._file = Appending(folder / name)
        self._records = RecordWriter(self._file)
        self._write(file_version="brain.Event:2")
        # What an earlier process drew beyond this step is not shown.
        self._write(step=step + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, values: dict[str, float]) -> None:
        self._write(step=step, summary=self._summary(value=[
            self._summary.Value(tag=name, simple_value=value) for name, value in values.items()
        ]))  # fmt: skip

    def close(self) -> None:
        self._file.close()

    def _write(self, **values: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **values).SerializeToString())
