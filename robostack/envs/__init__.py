"""Gymnasium environments by name; importing this module registers them and loads no simulator.

env = make("aloha-transfer-cube")                # or make("robostack/AlohaTransferCube-v0")
envs = make_vector("aloha-transfer-cube", 8)     # eight of them, stepped on all cores
"""

import difflib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import gymnasium as gym
from gymnasium.vector import VectorEnv

from robostack.extras import require_extra

ENVIRONMENTS: Mapping[str, str] = MappingProxyType(
    {
        "aloha-transfer-cube": "robostack/AlohaTransferCube-v0",
        "aloha-insertion": "robostack/AlohaInsertion-v0",
    }
)
"""Names on the command line and the gym ids they stand for."""

for _name, _task in (("aloha-transfer-cube", "transfer_cube"), ("aloha-insertion", "insertion")):
    gym.register(
        id=ENVIRONMENTS[_name],
        entry_point="robostack.envs.aloha.env:AlohaEnv",
        vector_entry_point="robostack.envs.aloha.vector:AlohaVectorEnv",
        max_episode_steps=400,  # 8 s: the scripted experts need up to 7 s
        kwargs={"task": _task},
    )


def resolve(name: str) -> str:
    """The gym id that `name` (a command-line name or a gym id) stands for.

    Raises:
        ValueError: no environment has this name.
        MissingExtraError: the extra that the environment needs is not installed.
    """
    gym_id = ENVIRONMENTS.get(name, name)
    if gym_id not in ENVIRONMENTS.values():
        near = difflib.get_close_matches(name, ENVIRONMENTS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown environment {name!r}: {hint}known are {', '.join(ENVIRONMENTS)}")
    require_extra("gym_aloha", "aloha")
    return gym_id


def make(name: str, **kwargs: Any) -> gym.Env:
    """One environment with its time limit; `kwargs` go to its constructor. Raises as `resolve`."""
    return gym.make(resolve(name), **kwargs)


def make_vector(name: str, count: int, **kwargs: Any) -> VectorEnv:
    """`count` environments stepped together; `kwargs` go to the vector environment. Raises as `resolve`."""
    return gym.make_vec(resolve(name), num_envs=count, vectorization_mode="vector_entry_point", **kwargs)
