"""What an evaluation is told. Imports neither torch nor a simulator, so that flags and wrong names answer at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

EVALUATION_SEED = 1_000_000
"""Where evaluation seeds start unless told otherwise: far from those of demonstrations, which start at 0."""


@dataclass(frozen=True)
class EvalConfig:
    """What to evaluate, where and how often."""

    env: str
    """Environment, such as aloha-transfer-cube."""
    episodes: int = 50
    seed: int = EVALUATION_SEED
    """Seed of the first episode; the next has the next number."""
    workers: int = 0
    """Processes; 0 takes one a core. The results do not depend on it."""
    videos: int = 2
    """Films at most so many successes and so many failures for the report."""
    execute_len: int | None = None
    """Actions run of each chunk; the policy's own number when not given."""
    ensemble: float | None = None
    """Averages what overlapping chunks say of a step, the i-th oldest weighted by exp(-ensemble * i), as ACT does;
    without it the newest chunk is run. Chunks overlap where execute_len is smaller than chunk_len."""
    target_return: float | None = None
    """What a policy that is conditioned on the return is asked to earn; by default the largest return of its data."""
    out: Path | None = None
    """Folder of the results; RUN/eval-ENV when not given. Must not exist yet."""

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise ValueError(f"episodes must be at least 1, got {self.episodes}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        if self.ensemble is not None and self.ensemble < 0.0:
            raise ValueError(f"ensemble must not be negative, got {self.ensemble}")
