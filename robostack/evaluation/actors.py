"""Who acts in episodes: a policy that looks again after every chunk, an expert that plans once, or one that looks at
every step."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from robostack.datasets.moments import Moments
from robostack.experts import make_expert
from robostack.policies.checkpoint import Checkpoint
from robostack.policies.protocol import Observation, check_lengths
from robostack.runtime.chunks import Blend, ChunkScheduler, newest

Shapes = Mapping[str, tuple[int, ...]]
Look = Callable[[Shapes], Mapping[str, np.ndarray]]
"""Gives those of the observations wanted, key to shape of a row, that there are at this control step, with a row an
episode. Cameras are rendered only when it is called."""

Sampler = Callable[[Any, Observation, torch.Generator], torch.Tensor]
"""(policy, observation, generator) ↦ normalised chunks (batch, chunk_len, action_dim)."""


def plain(policy: Any, observation: Observation, generator: torch.Generator) -> torch.Tensor:
    """What the policy samples by itself."""
    return policy.sample(observation, generator)


@runtime_checkable
class Actor(Protocol):
    """Acts in episodes that run in step, one a row."""

    latencies_ms: list[float]
    """Of these episodes: the wall time of each chunk or plan, of all rows together."""

    def begin(self, worlds: Any, seeds: Sequence[int]) -> None:
        """Called after the `Worlds` of `rollout` were reset with `seeds`, which fix the actor's own randomness too."""
        ...

    def act(self, look: Look, rewards: np.ndarray) -> np.ndarray:
        """Actions (rows, action_dim) of this control step, in the environment's units. `rewards` (rows,) are those of
        the last step, 0 at the first."""
        ...


class PolicyActor:
    """A policy from a checkpoint on the CPU or a GPU.

    Torch sums in another order for another batch size, and contacts amplify the last bit: an episode is the same again
    in a batch of the same size.
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
        self.execute_len = self.checkpoint.config.execute_len if execute_len is None else execute_len
        check_lengths(self.checkpoint.config.chunk_len, self.execute_len)
        self._policy: Any = self.checkpoint.load().to(device)
        self._processor, self._device = self.checkpoint.processor, torch.device(device)
        if target_return is not None and self._processor.largest_return is None:
            raise ValueError(f"{path}: a {self.checkpoint.policy} is not conditioned on a return: give no target")
        self._target = self._processor.largest_return if target_return is None else target_return
        self._scheduler, self._clock = ChunkScheduler(self.execute_len, blend), clock
        self._sampler = sampler
        self._tasks: list[str] = []
        self._robot, self._generator = "", torch.Generator(self._device)
        self._forget()

    @property
    def parameters(self) -> int:
        """Numbers that the policy has learned."""
        return sum(parameter.numel() for parameter in self._policy.parameters())

    def _forget(self) -> None:
        self.latencies_ms: list[float] = []
        self._looks: dict[int, tuple[Mapping[str, np.ndarray], np.ndarray]] = {}
        """Control step to what was seen then and what was still to be earned, a row an episode."""
        self._actions: deque[np.ndarray] = deque(maxlen=self._history.steps)
        """As many of the last as a chunk is told of."""
        self._step = 0
        self._returned = np.zeros(len(self._tasks))

    def begin(self, worlds: Any, seeds: Sequence[int]) -> None:
        """Raises DataError when the policy was trained on other robots, ValueError when it acts at another rate."""
        if (rate := worlds.metadata["render_fps"]) != self._processor.rate:
            raise ValueError(f"the policy acts {self._processor.rate} times a second, the environment {rate} times")
        self._tasks = [worlds.task] * len(seeds)
        self._robot = self._processor.choose(worlds.robot)
        self._wanted = self._processor.shapes_of(self._robot)
        self._generator.manual_seed(seeds[0])
        self._scheduler.reset()
        self._forget()

    @torch.inference_mode()
    def act(self, look: Look, rewards: np.ndarray) -> np.ndarray:
        step = self._step
        self._returned = self._returned + rewards
        # A look costs a picture of every camera: only what a chunk is made from is looked at.
        if self._scheduler.wants_look(ago * self._history.stride for ago in range(self._history.length)):
            self._looks[step] = look(self._wanted), (self._target or 0.0) - self._returned
        if self._scheduler.due:
            begun = self._clock()
            moments = self._moments(step)
            observation = self._processor.observe(moments, self._tasks, self._robot, self._device)
            chunk = self._sampler(self._policy, observation, self._generator)
            self._scheduler.put(self._processor.denormalize_actions(chunk, moments, self._robot).swapaxes(0, 1))
            self.latencies_ms.append(1000.0 * (self._clock() - begun))
        action = self._scheduler.next()
        self._actions.append(action)
        self._step += 1
        return action

    def _moments(self, step: int) -> Moments:
        """What is known at `step`, as the windows of training show it."""
        length, stride, past = self._history.length, self._history.stride, self._history.steps
        steps = [step - ago * stride for ago in reversed(range(length))]
        looks = [self._looks[max(0, s)] for s in steps]
        self._looks = {s: seen for s, seen in self._looks.items() if s > step - past or s == 0}
        rows, entries = len(self._tasks), len(self._processor.robots[self._robot].places["action"])
        actions = np.zeros((rows, past, entries), np.float32)
        known = list(self._actions)
        if known:
            actions[:, past - len(known) :] = np.stack(known, axis=1)
        return Moments(
            observation={key: np.stack([seen[key] for seen, _ in looks], axis=1) for key in looks[0][0]},
            seen=np.array([[s >= 0 for s in steps]] * rows),
            past_action=actions,
            acted=np.array([np.arange(past) >= past - len(known)] * rows),
            returns_to_go=np.stack([to_go for _, to_go in looks], axis=1).astype(np.float32),
        )


class ExpertActor:
    """The environment's scripted expert, which plans whole episodes at their start."""

    def __init__(self, env_name: str, clock: Callable[[], float] = time.perf_counter) -> None:
        self._expert, self._clock = make_expert(env_name), clock
        self._plans = iter(())
        self.latencies_ms: list[float] = []

    def begin(self, worlds: Any, seeds: Sequence[int]) -> None:
        begun = self._clock()
        plans = [self._expert.plan_episode(env, seed) for env, seed in zip(worlds.envs, seeds, strict=True)]
        self._plans = iter(np.stack(plans, axis=1))
        self.latencies_ms = [1000.0 * (self._clock() - begun)]

    def act(self, look: Look, rewards: np.ndarray) -> np.ndarray:
        return next(self._plans)


class TrainedExpertActor:
    """An expert of `robostack expert`, which looks at every step."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.perf_counter) -> None:
        from robostack.experts.ppo.acting import PpoExpert

        self._expert, self._clock = PpoExpert.load(path), clock
        self.latencies_ms: list[float] = []

    def begin(self, worlds: Any, seeds: Sequence[int]) -> None:
        self.latencies_ms = []

    def act(self, look: Look, rewards: np.ndarray) -> np.ndarray:
        begun = self._clock()
        actions = self._expert.act(look({"observation.state": ()}))
        self.latencies_ms.append(1000.0 * (self._clock() - begun))
        return actions
