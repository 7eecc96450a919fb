"""Who acts in episodes: a policy, or an expert."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from robostack.experts import Asked, Look, make_expert
from robostack.runtime.agent import Agent
from robostack.runtime.chunks import Blend, newest_chunk


@runtime_checkable
class Actor(Protocol):
    """Acts in episodes that run in step, one per row."""

    @property
    def latencies_ms(self) -> list[float]:
        """Of these episodes: the wall time of each chunk or plan, of all rows together."""
        ...

    def begin(self, worlds: Any, seeds: Sequence[int]) -> None:
        """Called after the `Worlds` of `rollout` were reset with `seeds`, which fix the actor's own randomness too."""
        ...

    def act(self, look: Look, rewards: np.ndarray) -> np.ndarray:
        """Actions (rows, action_dim) of this control step, in the environment's units. `rewards` (rows,) are those of
        the last step, 0 at the first."""
        ...


class PolicyActor:
    """An agent in the worlds of an evaluation."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent

    @property
    def latencies_ms(self) -> list[float]:
        return self.agent.latencies_ms

    def begin(self, worlds: Any, seeds: Sequence[int]) -> None:
        """Raises DataError when the policy was trained on other robots, ValueError when it acts at another rate."""
        self.agent.begin([worlds.task] * len(seeds), worlds.robot, worlds.metadata["render_fps"], seeds[0])

    def act(self, look: Look, rewards: np.ndarray) -> np.ndarray:
        wanted = self.agent.wanted
        return self.agent.act(look(wanted) if wanted else {}, rewards)


def load_actor(
    path: Path,
    device: str = "cpu",
    execute_len: int | None = None,
    blend: Blend = newest_chunk,
    target: float | None = None,
) -> PolicyActor:
    """The policy of the checkpoint or run at `path`; see `Agent`."""
    return PolicyActor(Agent.load(path, device, execute_len=execute_len, blend=blend, target_return=target))


class ExpertActor:
    """The expert of an environment, or with `checkpoints` trained ones."""

    def __init__(
        self, env_name: str, checkpoints: tuple[Path, ...] = (), clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._expert, self._clock = make_expert(env_name, Asked(checkpoints)), clock
        self.latencies_ms: list[float] = []

    def begin(self, worlds: Any, seeds: Sequence[int]) -> None:
        begun, self.latencies_ms = self._clock(), []
        self._expert.begin(worlds, seeds)
        if self._expert.plans:
            self.latencies_ms.append(1000.0 * (self._clock() - begun))

    def act(self, look: Look, rewards: np.ndarray) -> np.ndarray:
        begun = self._clock()
        actions = self._expert.act(look)
        if not self._expert.plans:
            self.latencies_ms.append(1000.0 * (self._clock() - begun))
        return actions
