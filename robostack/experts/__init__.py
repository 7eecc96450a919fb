"""Who demonstrates: scripted experts that play an environment and record what they saw and did."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import gymnasium as gym
import numpy as np

from robostack.envs.aloha.cameras import Camera


@runtime_checkable
class Expert(Protocol):
    """Plays whole episodes of one environment."""

    def plan_episode(self, env: gym.Env, seed: int) -> np.ndarray:
        """All actions (steps, action_dim) for the episode of `seed`, to which `env` has just been reset."""
        ...

    def demonstrate(
        self, env: gym.Env, seed: int, cameras: Sequence[Camera] = (), noise: float = 0.0
    ) -> dict[str, np.ndarray]:
        """Plays the episode of `seed`; the result depends on nothing else.

        Row t of an observation is what was seen before action t. With `noise` it plays worse: that is the deviation, in
        radians, of a smooth disturbance of the commanded joints. The actions returned are those that were run.

        Returns:
            `observation.state`, `observation.environment_state`, `observation.images.<camera>` for each of `cameras`,
            `action`, `next.reward` (float32) and `next.success` (bool: the task is solved after this step), each with
            a row a step. An episode that breaks the simulation ends with the action that did.
        """
        ...


def make_expert(name: str) -> Expert:
    """The expert of an environment, by its command-line name or gym id.

    Raises:
        ValueError: the environment is unknown, or nobody is scripted for it.
    """
    from robostack.envs import ENVIRONMENTS, resolve

    gym_id = resolve(name)
    if gym_id == ENVIRONMENTS["aloha-transfer-cube"]:
        from robostack.experts.aloha import AlohaExpert, plan_transfer_cube

        return AlohaExpert(plan_transfer_cube)
    if gym_id == ENVIRONMENTS["aloha-insertion"]:
        from robostack.experts.aloha import AlohaExpert, plan_insertion

        return AlohaExpert(plan_insertion)
    raise ValueError(f"no expert is scripted for {name!r}: train one with `robostack expert --env {name}`")
