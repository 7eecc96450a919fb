"""What an evaluation is told, and the folder that it writes. Nothing heavy is imported here: a wrong flag and a folder
that is taken are told at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from robostack.common.files import refuse_taken

EVALUATION_SEED = 1_000_000
"""Where evaluation seeds start unless told otherwise: far from those of demonstrations, which start at 0."""
SCRIPTED = "expert"
"""What the command line names in place of a run where the environment's scripted expert is meant."""
SETTINGS, EPISODES, SUMMARY, REPORT = "settings.json", "episodes.jsonl", "summary.json", "report.html"
"""Files of the folder, in the order in which they are written."""


@dataclass(frozen=True)
class EvalConfig:
    """What to evaluate, where and how often."""

    env: str
    """Environment, such as aloha-transfer-cube."""
    episodes: int = 50
    seed: int = EVALUATION_SEED
    """Seed of the first episode; the next has the next number."""
    workers: int = 0
    """Processes; 0 takes one per core, with a GPU as many as have room there for a policy each. With one, episodes run
    in this process. The results do not depend on it."""
    videos: int = 2
    """Films at most so many successes and so many failures for the report."""
    device: str = "auto"
    """Where the policy runs: `auto` takes a GPU when there is one, else the CPU. Experts run on the CPU."""
    execute_len: int | None = None
    """Actions run of each chunk; the policy's own number when not given."""
    ensemble: float | None = None
    """Averages what overlapping chunks say of a step, the i-th oldest weighted by exp(-ensemble * i), as ACT does;
    without it the newest chunk is run. Chunks overlap where execute_len is smaller than chunk_len."""
    target_return: float | None = None
    """What a policy that is conditioned on the return is asked to earn; by default the largest return of its data."""
    out: Path | None = None
    """Folder of the results; RUN/eval-ENV when not given. An evaluation that was interrupted there goes on; one that
    is finished is left alone."""

    def __post_init__(self) -> None:
        for name, least in (("episodes", 1), ("execute_len", 1), ("seed", 0), ("workers", 0), ("videos", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if self.ensemble is not None and not self.ensemble >= 0.0:
            raise ValueError(f"ensemble must not be negative, got {self.ensemble}")


def results_folder(run: str, config: EvalConfig) -> Path:
    """The folder of an evaluation's results."""
    if config.out is not None:
        return config.out
    name = config.env.replace("/", "-")  # the name of a level may be a path
    return Path(f"expert-{name}") if run == SCRIPTED else Path(run) / f"eval-{name}"


def refuse_finished(folder: Path) -> None:
    """Raises FileExistsError where a new evaluation would meet a finished one or anything else of the user's. An empty
    folder is free, and so is one of an evaluation that was interrupted."""
    if folder.is_dir() and {entry.name for entry in folder.iterdir()} <= {f".{SETTINGS}.partial"}:
        return  # killed before it was settled what to evaluate
    finished = (folder / SUMMARY).exists() and (folder / REPORT).exists()
    if finished or not (folder / SETTINGS).is_file():
        refuse_taken(folder, "choose another with --out or remove it first")
