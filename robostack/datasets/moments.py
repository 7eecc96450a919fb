"""What is known at a moment of an episode, and how far back: types alone, shared by recording, training and acting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped


@dataclass(frozen=True)
class History:
    """What of the past is seen: `length` observation steps, `stride` control steps apart, the last of them now."""

    length: int = 1
    stride: int = 1
    returns: bool = False
    """Whether the return-to-go is seen: the sum of the rewards from an observation step to the end of its episode."""
    actions: bool = True
    """Whether the actions between the observation steps are used, as what was done or to be predicted too."""
    ahead: int = 0
    """Observation steps after now, `stride` control steps apart: in the windows of a data set alone, for what learns
    from what comes next."""

    def __post_init__(self) -> None:
        if self.length < 1 or self.stride < 1:
            raise ValueError(f"a history needs a length and a stride of at least 1, got {self.length}, {self.stride}")
        if self.ahead < 0:
            raise ValueError(f"a history looks at 0 steps ahead or more, got {self.ahead}")

    @property
    def steps(self) -> int:
        """Control steps from the first observation step to the last."""
        return (self.length - 1) * self.stride


@dataclass(frozen=True)
class Moments:
    """What is known at B moments, in the units of data and robot."""

    observation: Mapping[str, np.ndarray]
    """(B, observation steps, *shape) by feature, oldest first."""
    valid: Bool[np.ndarray, "batch obs_steps"]
    """False for a step before the start of its episode, which repeats the first one."""
    past_action: Shaped[np.ndarray, "batch past action_dim"]
    """The actions run between the first observation step and the last, `History.steps` of them."""
    acted: Bool[np.ndarray, "batch past"]
    """False for an action before the start of the episode, which holds the first one."""
    returns_to_go: Float[np.ndarray, "batch obs_steps"] | None = None

    @staticmethod
    def of(observation: Mapping[str, np.ndarray], action_dim: int = 0) -> Moments:
        """Single observation steps (B, *shape) without a past."""
        batch = len(next(iter(observation.values())))
        steps = {key: rows[:, None] for key, rows in observation.items()}
        nothing = np.zeros((batch, 0, action_dim), np.float32)
        return Moments(steps, np.ones((batch, 1), bool), nothing, np.zeros((batch, 0), bool))


@dataclass(frozen=True)
class Windows(Moments):
    """Moments of a data set, what was done then and what came of it."""

    action: Shaped[np.ndarray, "batch chunk_len action_dim"] = field(kw_only=True)
    is_pad: Bool[np.ndarray, "batch chunk_len"] = field(kw_only=True)
    task: Int[np.ndarray, " batch"] = field(kw_only=True)
    """Index into the texts of the data set."""
    ahead: Mapping[str, np.ndarray] = field(kw_only=True)
    """(B, steps ahead, *shape) by feature: the observation steps after now, nearest first."""
    ahead_valid: Bool[np.ndarray, "batch ahead"] = field(kw_only=True)
    """False for a step past the end of its episode, which repeats the last one."""
