"""What a training run tells: a JSON-lines log, TensorBoard where it is installed, and a record for the screen."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

LOG_FILE = "log.jsonl"


@dataclass(frozen=True)
class Report:
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
        self._path = run / LOG_FILE
        kept = [line for line in read_log(run) if line["step"] <= step]
        self._path.write_text("".join(json.dumps(line) + "\n" for line in kept))
        before = kept[-1] if kept else {"time_s": 0.0, "cpu_s": 0.0}
        self._wall, self._cpu = time.perf_counter() - before["time_s"], time.process_time() - before["cpu_s"]
        self._last = (step, time.perf_counter(), 0.0)
        self._file = self._path.open("a")
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:  # an extra: the JSON lines say the same
            self._board = None
        else:
            self._board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()

    def write(
        self, step: int, steps: int, loss: float, gradient_norm: float, learning_rate: float, waited: float
    ) -> Report:
        """Logs a step; `waited` is the time in seconds that the loop has waited for data since its start."""
        now = time.perf_counter()
        last_step, then, waited_then = self._last
        self._last = (step, now, waited)
        report = Report(
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
        self._file.write(json.dumps(asdict(report)) + "\n")
        self._file.flush()
        if self._board is not None:
            for key, value in asdict(report).items():
                if key not in ("step", "steps"):
                    self._board.add_scalar(key, value, step)
        return report


def read_log(run: Path) -> list[dict[str, float]]:
    """The reports of a run, oldest first; none for a run that logged nothing. A line cut short by a kill is dropped."""
    path = run / LOG_FILE
    lines = path.read_text().splitlines() if path.exists() else []
    reports = []
    for line in lines:
        try:
            reports.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return reports
