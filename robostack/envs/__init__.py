"""Gymnasium environments by name; importing this module registers them and loads no simulator.

env = make("aloha-transfer-cube")                # or make("robostack/AlohaTransferCube-v0")
envs = make_vector("aloha-transfer-cube", 8)     # eight of them, stepped on all cores
env = make("kinetix-s-h6_unicycle_right")        # or make("robostack/Kinetix-s-h6_unicycle_right-v0")
env = make("kinetix:my_level.json")              # your own level; "kinetix:random/m/7" is a random one
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import load_env_creator
from gymnasium.vector import VectorEnv

from robostack.common.extras import require_extra
from robostack.envs.kinetix.levels import level_names

_ALOHA = {"aloha-transfer-cube": "transfer_cube", "aloha-insertion": "insertion"}
_KINETIX = {f"kinetix-{level.replace('/', '-')}": level for level in level_names()}
_ANY_LEVEL = "robostack/Kinetix-v0"

ENVIRONMENTS: Mapping[str, str] = MappingProxyType(
    {
        "aloha-transfer-cube": "robostack/AlohaTransferCube-v0",
        "aloha-insertion": "robostack/AlohaInsertion-v0",
        **{name: f"robostack/Kinetix-{level.replace('/', '-')}-v0" for name, level in _KINETIX.items()},
    }
)
"""Names on the command line and the gym ids they stand for; without kinetix there are none of its levels."""

for _name, _task in _ALOHA.items():
    gym.register(
        id=ENVIRONMENTS[_name],
        entry_point="robostack.envs.aloha.env:AlohaEnv",
        vector_entry_point="robostack.envs.aloha.vector:AlohaVectorEnv",
        max_episode_steps=400,  # 8 s: the scripted experts need up to 7 s
        kwargs={"task": _task},
    )

for _id, _kwargs in (
    (_ANY_LEVEL, {}),
    *((ENVIRONMENTS[name], {"level": level}) for name, level in _KINETIX.items()),
):
    gym.register(
        id=_id,
        entry_point="robostack.envs.kinetix.env:KinetixEnv",
        vector_entry_point="robostack.envs.kinetix.vector:KinetixVectorEnv",
        max_episode_steps=256,  # the package's own
        kwargs=_kwargs,
    )


def resolve(name: str) -> str:
    """The gym id that `name` (a command-line name or a gym id) stands for.

    Raises ValueError where no environment has this name, MissingExtraError where the extra that it needs is not
    installed.
    """
    if name.startswith(("kinetix-", "kinetix:", "robostack/Kinetix-")):
        require_extra("kinetix", "kinetix")
    if name.startswith("kinetix:"):
        return _ANY_LEVEL
    gym_id = ENVIRONMENTS.get(name, name)
    if gym_id not in ENVIRONMENTS.values():
        near = difflib.get_close_matches(name, ENVIRONMENTS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        known = ", ".join([*_ALOHA, "kinetix-<s|m|l>-<level>", "kinetix:<file>.json"])
        raise ValueError(f"unknown environment {name!r}: {hint}known are {known}")
    if "Aloha" in gym_id:
        require_extra("gym_aloha", "aloha")
    return gym_id


def make(name: str, **kwargs: Any) -> gym.Env:
    """One environment with its time limit; `kwargs` go to its constructor. Raises as `resolve`."""
    return gym.make(resolve(name), **_level_of(name), **kwargs)


def make_vector(name: str, count: int, **kwargs: Any) -> VectorEnv:
    """`count` environments stepped together; `kwargs` go to the vector environment. Raises as `resolve`."""
    gym_id, kwargs = resolve(name), _level_of(name) | kwargs
    return gym.make_vec(gym_id, num_envs=count, vectorization_mode="vector_entry_point", **kwargs)


def vector_class(name: str) -> type[Any]:
    """The class of `make_vector`'s environments. Raises as `resolve`."""
    entry_point = gym.spec(resolve(name)).vector_entry_point
    assert isinstance(entry_point, str)
    return load_env_creator(entry_point)  # pyright: ignore[reportReturnType] (a class)


def _level_of(name: str) -> dict[str, Any]:
    """What "kinetix:<level>" says besides the gym id."""
    return {"level": name.removeprefix("kinetix:")} if name.startswith("kinetix:") else {}
