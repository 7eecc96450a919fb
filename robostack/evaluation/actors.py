"""Who acts in an episode: a trained policy that looks again after every chunk, or an expert that plans once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import gymnasium as gym
import numpy as np
import torch

from robostack.experts import make_expert
from robostack.policies.checkpoint import Checkpoint


@runtime_checkable
class Actor(Protocol):
    """Acts in one episode at a time."""

    cameras: Mapping[str, tuple[int, int]]
    """The cameras it looks through: name to (height, width)."""

    def begin(self, env: gym.Env, seed: int) -> None:
        """Called after the environment was reset with `seed`, which also fixes the actor's own randomness."""
        ...

    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """The actions (n, action_dim) to run before it is asked again, in the environment's units."""
        ...


class PolicyActor:
    """A policy from a checkpoint on the CPU or a GPU, one episode at a time.

    Batches of one: torch sums in another order for another batch size, contacts amplify the last bit, and an episode
    would depend on which others run beside it.
    """

    def __init__(self, path: Path, device: str = "cpu", execute_len: int | None = None) -> None:
        self.checkpoint = Checkpoint.read(path)
        self.execute_len = execute_len or self.checkpoint.config.execute_len
        if not 0 < self.execute_len <= self.checkpoint.config.chunk_len:
            raise ValueError(
                f"execute_len must lie in 1..{self.checkpoint.config.chunk_len} (chunk_len), got {self.execute_len}"
            )
        self._policy: Any = self.checkpoint.load().to(device)
        self._processor, self._device = self.checkpoint.processor, torch.device(device)
        self.cameras = self._processor.cameras
        self._task, self._robot, self._generator = "", "", torch.Generator(self._device)

    def begin(self, env: gym.Env, seed: int) -> None:
        """Raises DataError when the policy was trained on other robots, ValueError when it acts at another rate."""
        if (rate := env.metadata["render_fps"]) != self._processor.rate:
            raise ValueError(f"the policy acts {self._processor.rate} times a second, the environment {rate} times")
        self._task = env.get_wrapper_attr("task")
        self._robot = self._processor.choose(env.get_wrapper_attr("robot"))
        self._generator.manual_seed(seed)

    @torch.inference_mode()
    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        keys = self._processor.keys_of(self._robot)
        batch = {key: observation[key][None] for key in keys if key in observation}
        seen = self._processor.observe(batch, [self._task], self._robot, self._device)
        chunk = self._policy.sample(seen, self._generator)
        return self._processor.denormalize_actions(chunk, batch, self._robot)[0, : self.execute_len]


class ExpertActor:
    """The environment's scripted expert, which plans the whole episode at its start."""

    cameras: Mapping[str, tuple[int, int]] = {}

    def __init__(self, env_name: str) -> None:
        self._expert = make_expert(env_name)
        self._plan = np.zeros((0, 0))

    def begin(self, env: gym.Env, seed: int) -> None:
        self._plan = self._expert.plan_episode(env, seed)

    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        return self._plan
