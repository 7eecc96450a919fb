"""What the training of an expert is told. Imports no JAX, so that flags and wrong names answer at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import gymnasium as gym

from robostack import envs
from robostack.common.numbers import check_bounds

EXPERT_FILE = "expert.json"
"""In which a checkpoint describes itself."""
CHECKPOINTS = "update-*"
"""Names of the checkpoints of a run, below its folder `checkpoints`."""


@dataclass(frozen=True)
class PpoConfig:
    """The algorithm and its network."""

    worlds: int = 128
    """Worlds stepped together."""
    steps: int = 64
    """Steps of each world between two updates."""
    epochs: int = 4
    """How often an update goes through its steps."""
    minibatches: int = 8
    """Gradient steps per epoch."""
    widths: tuple[int, ...] = (128, 128)
    """Hidden layers of actor and critic, which share none."""
    normalise: bool = False
    """Observations by their running mean and variance. Kinetix's are of about unit size as they are, and centring
    them slows learning: s/h6_unicycle_right takes 5 CPU s to 80 % without, and more than 40 with it."""
    deviation: float = 1.0
    """Standard deviation of the actions at the start; learned from there, one number per action."""
    learning_rate: float = 5e-4
    """At the start; falls linearly to 0."""
    discount: float = 0.995
    """γ."""
    trace: float = 0.95
    """λ of generalised advantage estimation."""
    clip: float = 0.2
    """ε: how far a probability may move within an update before its gradient stops."""
    entropy: float = 1e-3
    """Weight of the entropy bonus."""
    value: float = 0.5
    """Weight of the critic's loss."""
    gradient_clip: float = 0.5
    """Bound of the gradient's norm."""
    max_episode_steps: int = 256
    """After so many steps an episode is cut off, and its rest estimated by the critic."""

    def __post_init__(self) -> None:
        check_bounds(self, 1, 10**6, "worlds", "steps", "epochs", "minibatches", "max_episode_steps")
        if self.worlds * self.steps % self.minibatches:
            raise ValueError(
                f"worlds × steps must be a multiple of minibatches, got {self.worlds} × {self.steps} and "
                f"{self.minibatches}"
            )
        if not 0 < len(self.widths) <= 64 or not all(1 <= width <= 100_000 for width in self.widths):
            raise ValueError(f"widths must be at least 1, got {str(self.widths)[:60]}")
        for name in ("deviation", "learning_rate", "clip", "gradient_clip"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("discount", "trace"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {getattr(self, name)}")
        for name in ("entropy", "value"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")

    @property
    def batch(self) -> int:
        """Environment steps per update."""
        return self.worlds * self.steps


@dataclass(frozen=True)
class ExpertConfig:
    """An environment, and how long and on what to train its expert."""

    env: str
    """Environment without a scripted expert, such as kinetix-s-h6_unicycle_right."""
    out: Path
    """Folder of the run; must not exist yet, or be empty."""
    seed: int = 0
    updates: int = 128
    """Updates of the policy, each from worlds × steps environment steps."""
    action_noise: float = 0.1
    """Standard deviation of the environment's noise on the actions, in training and in evaluation."""
    dense_reward_scale: float = 1.0
    """Reward for a metre that green comes nearer to blue, beside 1 at the goal and −1 at a failure."""
    first_checkpoint: int = 8
    """A checkpoint is made after this many updates, after each doubling, and at the end."""
    evaluation_episodes: int = 256
    """Episodes of the deterministic policy at each checkpoint."""
    ppo: PpoConfig = field(default_factory=PpoConfig)

    def __post_init__(self) -> None:
        check_bounds(self, 1, 10**9, "updates", "first_checkpoint")
        check_bounds(self, 1, 10**6, "evaluation_episodes")
        check_bounds(self, 0, 2**31 - 1 - 4_000_000, "seed")
        check_bounds(self, 0.0, 1e9, "action_noise")
        check_bounds(self, -1e9, 1e9, "dense_reward_scale")

    def is_checkpoint(self, update: int) -> bool:
        """Whether a checkpoint is made after `update` updates."""
        doublings = update // self.first_checkpoint
        doubled = update % self.first_checkpoint == 0 and doublings > 0 and doublings & (doublings - 1) == 0
        return doubled or update == self.updates


def level_of(env: str) -> str:
    """The Kinetix level of an environment that experts are trained in, as `load_level` takes it.

    Raises ValueError where the environment is unknown, has a scripted expert or names no level, MissingExtraError
    where kinetix is not installed.
    """
    gym_id = envs.resolve(env)
    if env.startswith("kinetix:"):
        return env.removeprefix("kinetix:")
    if "Kinetix" not in gym_id:
        raise ValueError(f"{env} has a scripted expert: `robostack collect --env {env}` plays it")
    spec = gym.spec(gym_id)
    if "level" not in spec.kwargs:
        raise ValueError(f"{env} names no level: take kinetix-<s|m|l>-<level> or kinetix:<file>.json")
    return spec.kwargs["level"]
