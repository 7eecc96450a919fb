"""Who acts in an episode: a trained policy that looks again after every chunk, or an expert that plans once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import gymnasium as gym
import numpy as np
import torch

from robostack.datasets.windows import Moments
from robostack.experts import make_expert
from robostack.policies.checkpoint import Checkpoint
from robostack.policies.protocol import Observation, check_lengths
from robostack.runtime.chunks import Blend, ChunkScheduler, newest

Look = Callable[[], Mapping[str, np.ndarray]]
"""Gives the observation of this control step; cameras are rendered only when it is called."""

Sampler = Callable[[Any, Observation, torch.Generator], torch.Tensor]
"""(policy, observation, generator) ↦ normalised chunks (batch, chunk_len, action_dim)."""


def plain(policy: Any, observation: Observation, generator: torch.Generator) -> torch.Tensor:
    """What the policy samples by itself."""
    return policy.sample(observation, generator)


@runtime_checkable
class Actor(Protocol):
    """Acts in one episode at a time."""

    cameras: Mapping[str, tuple[int, int]]
    """The cameras it looks through: name to (height, width)."""
    latencies_ms: list[float]
    """Of this episode: the wall time of each chunk or plan."""

    def begin(self, env: gym.Env, seed: int) -> None:
        """Called after the environment was reset with `seed`, which also fixes the actor's own randomness."""
        ...

    def act(self, look: Look, reward: float) -> np.ndarray:
        """The action (action_dim,) of this control step, in the environment's units. `reward` is that of the last
        step, 0 at the first."""
        ...


class PolicyActor:
    """A policy from a checkpoint on the CPU or a GPU, one episode at a time.

    Batches of one: torch sums in another order for another batch size, contacts amplify the last bit, and an episode
    would depend on which others run beside it.
    """

    def __init__(
        self,
        path: Path,
        device: str = "cpu",
        execute_len: int | None = None,
        blend: Blend = newest,
        target_return: float | None = None,
        sampler: Sampler = plain,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.checkpoint = Checkpoint.read(path)
        self._history = self.checkpoint.config.history
        self.execute_len = execute_len or self.checkpoint.config.execute_len
        check_lengths(self.checkpoint.config.chunk_len, self.execute_len)
        self._policy: Any = self.checkpoint.load().to(device)
        self._processor, self._device = self.checkpoint.processor, torch.device(device)
        if target_return is not None and self._processor.largest_return is None:
            raise ValueError(f"{path}: a {self.checkpoint.policy} is not conditioned on a return: give no target")
        self._target = self._processor.largest_return if target_return is None else target_return
        self._scheduler, self._clock = ChunkScheduler(self.execute_len, blend), clock
        self._sampler = sampler
        self.cameras = self._processor.cameras
        self._task, self._robot, self._generator = "", "", torch.Generator(self._device)
        self._forget()

    def _forget(self) -> None:
        self.latencies_ms: list[float] = []
        self._looks: dict[int, tuple[Mapping[str, np.ndarray], float]] = {}
        """Control step to what was seen then and what was still to be earned."""
        self._actions: list[np.ndarray] = []
        self._returned = 0.0

    def begin(self, env: gym.Env, seed: int) -> None:
        """Raises DataError when the policy was trained on other robots, ValueError when it acts at another rate."""
        if (rate := env.metadata["render_fps"]) != self._processor.rate:
            raise ValueError(f"the policy acts {self._processor.rate} times a second, the environment {rate} times")
        self._task = env.get_wrapper_attr("task")
        self._robot = self._processor.choose(env.get_wrapper_attr("robot"))
        self._generator.manual_seed(seed)
        self._scheduler.reset()
        self._forget()

    @torch.inference_mode()
    def act(self, look: Look, reward: float) -> np.ndarray:
        step = len(self._actions)
        self._returned += reward
        # Of the steps between two chunks, only those are looked at that a later chunk looks back to.
        if any((step + ago * self._history.stride) % self.execute_len == 0 for ago in range(self._history.length)):
            seen = look()
            own = {key: seen[key] for key in self._processor.keys_of(self._robot) if key in seen}
            self._looks[step] = own, (self._target or 0.0) - self._returned
        if self._scheduler.due:
            begun = self._clock()
            moments = self._moments(step)
            observation = self._processor.observe(moments, [self._task], self._robot, self._device)
            chunk = self._sampler(self._policy, observation, self._generator)
            self._scheduler.put(self._processor.denormalize_actions(chunk, moments, self._robot)[0])
            self.latencies_ms.append(1000.0 * (self._clock() - begun))
        self._actions.append(self._scheduler.next())
        return self._actions[-1]

    def _moments(self, step: int) -> Moments:
        """What is known at `step`, as a batch of one and as the windows of training show it."""
        length, stride, past = self._history.length, self._history.stride, self._history.steps
        steps = [step - ago * stride for ago in reversed(range(length))]
        looks = [self._looks[max(0, s)] for s in steps]
        self._looks = {s: seen for s, seen in self._looks.items() if s > step - past or s == 0}
        entries = len(self._processor.robots[self._robot].places["action"])
        actions = np.zeros((past, entries), np.float32)
        known = self._actions[-past:] if past else []
        if known:
            actions[past - len(known) :] = known
        return Moments(
            observation={key: np.stack([seen[key] for seen, _ in looks])[None] for key in looks[0][0]},
            seen=np.array([[s >= 0 for s in steps]]),
            past_action=actions[None],
            acted=(np.arange(past) >= past - len(known))[None],
            returns_to_go=np.array([[to_go for _, to_go in looks]], np.float32),
        )


class ExpertActor:
    """The environment's scripted expert, which plans the whole episode at its start."""

    cameras: Mapping[str, tuple[int, int]] = {}

    def __init__(self, env_name: str, clock: Callable[[], float] = time.perf_counter) -> None:
        self._expert, self._clock = make_expert(env_name), clock
        self._plan = iter(())
        self.latencies_ms: list[float] = []

    def begin(self, env: gym.Env, seed: int) -> None:
        begun = self._clock()
        self._plan = iter(self._expert.plan_episode(env, seed))
        self.latencies_ms = [1000.0 * (self._clock() - begun)]

    def act(self, look: Look, reward: float) -> np.ndarray:
        return next(self._plan)
