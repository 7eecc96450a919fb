"""One object that acts by a policy: observations in, actions out. Evaluation, server and control loop run the same."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from robostack.datasets.moments import Moments
from robostack.policies.checkpoint import Checkpoint
from robostack.policies.protocol import Observation, check_lengths
from robostack.runtime.chunks import Blend, ChunkScheduler, newest_chunk

Sampler = Callable[[Any, Observation, torch.Generator], torch.Tensor]
"""(policy, observation, generator) ↦ normalised chunks (batch, chunk_len, action_dim)."""


def plain(policy: Any, observation: Observation, generator: torch.Generator) -> torch.Tensor:
    """What the policy samples by itself."""
    return policy.sample(observation, generator)


class Agent:
    """A policy at work in one episode or in several that run in step, one per row. Time and randomness are passed in.

    At each control step: observe what is `wanted`, then `act`. Torch sums in another order for another batch size, and
    contacts amplify the last bit: an episode is the same again in a batch of the same size.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        policy: Any,
        device: torch.device | str = "cpu",
        execute_len: int | None = None,
        blend: Blend = newest_chunk,
        target_return: float | None = None,
        sampler: Sampler = plain,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`policy` is the checkpoint's, on `device`. Of each chunk `execute_len` actions are run, by default as many as
        its config says. Raises ValueError for settings that do not fit the policy."""
        self.checkpoint, self.policy = checkpoint, policy
        self._history = checkpoint.config.history
        self.execute_len = checkpoint.config.execute_len if execute_len is None else execute_len
        check_lengths(checkpoint.config.chunk_len, self.execute_len)
        self._processor, self._device = checkpoint.processor, torch.device(device)
        if target_return is not None and self._processor.largest_return is None:
            raise ValueError(f"{checkpoint.path}: a {checkpoint.policy} is not conditioned on a return: give no target")
        self._target = self._processor.largest_return if target_return is None else target_return
        self._scheduler, self._sampler, self._clock = ChunkScheduler(self.execute_len, blend), sampler, clock
        self._tasks: list[str] = []
        self._robot, self._generator = "", torch.Generator(self._device)
        self._shapes: Mapping[str, tuple[int, ...]] = {}
        self._forget()

    @staticmethod
    def load(path: Path, device: torch.device | str = "cpu", **settings: Any) -> Agent:
        """The agent of the checkpoint, or of the newest of a run, at `path`; `settings` as those of an `Agent`.

        Raises CheckpointError where there is none, or it is damaged.
        """
        checkpoint = Checkpoint.read(path)
        return Agent(checkpoint, checkpoint.load(device=device), device, **settings)

    @property
    def parameters(self) -> int:
        """Numbers that the policy has learned."""
        return sum(parameter.numel() for parameter in self.policy.parameters())

    def _forget(self) -> None:
        self.latencies_ms: list[float] = []
        """Of this episode: the time of each chunk, of all rows together."""
        self._observed: dict[int, tuple[Mapping[str, np.ndarray], np.ndarray]] = {}
        """Control step to what was seen then and what was still to be earned, one row per episode."""
        self._actions: deque[np.ndarray] = deque(maxlen=self._history.steps)
        """The last actions, as many as the policy's history holds."""
        self._step = 0
        self._returned = np.zeros(len(self._tasks))

    def begin(self, tasks: Sequence[str], robot: str | None, rate: float, seed: int) -> None:
        """A new episode in each row, with these task texts, of a robot that is controlled `rate` times a second.

        Raises DataError when the policy was trained on other robots, ValueError when it acts at another rate.
        """
        if rate != self._processor.rate:
            raise ValueError(f"the policy acts {self._processor.rate} times a second, the environment {rate} times")
        self._tasks = list(tasks)
        self._robot = self._processor.choose(robot)
        self._shapes = self._processor.shapes_of(self._robot)
        self._generator.manual_seed(seed)
        self._scheduler.reset()
        self._forget()

    @property
    def wanted(self) -> Mapping[str, tuple[int, ...]]:
        """What has to be observed at this step, key to shape of a row; nothing at most steps.

        An observation costs a picture of every camera: only what a chunk is made from is asked for.
        """
        ages = (ago * self._history.stride for ago in range(self._history.length))
        return self._shapes if self._scheduler.wants_observation(ages) else {}

    @torch.inference_mode()
    def act(
        self, observation: Mapping[str, np.ndarray], rewards: Float[np.ndarray, " rows"] | None = None
    ) -> Float[np.ndarray, "rows action_dim"]:
        """Actions of this control step, in the robot's units. `observation` holds what is `wanted`, one row per
        episode; `rewards` are those of the last step, for a policy that is conditioned on the return."""
        step = self._step
        if rewards is not None:
            self._returned = self._returned + rewards
        if self.wanted:
            self._observed[step] = observation, (self._target or 0.0) - self._returned
        if self._scheduler.due:
            begun = self._clock()
            moments = self._moments(step)
            batch = self._processor.observe(moments, self._tasks, self._robot, self._device)
            chunk = self._sampler(self.policy, batch, self._generator)
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
        observed = [self._observed[max(0, s)] for s in steps]
        self._observed = {s: kept for s, kept in self._observed.items() if s > step - past or s == 0}
        rows, entries = len(self._tasks), len(self._processor.robots[self._robot].places["action"])
        actions = np.zeros((rows, past, entries), np.float32)
        known = list(self._actions)
        if known:
            actions[:, past - len(known) :] = np.stack(known, axis=1)
        return Moments(
            observation={key: np.stack([rows[key] for rows, _ in observed], axis=1) for key in observed[0][0]},
            valid=np.array([[s >= 0 for s in steps]] * rows),
            past_action=actions,
            acted=np.array([np.arange(past) >= past - len(known)] * rows),
            returns_to_go=np.stack([to_go for _, to_go in observed], axis=1).astype(np.float32),
        )
