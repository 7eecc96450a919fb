"""What an environment says about itself, for whoever records it: its task, rate and robot, and what its numbers are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class EnvDescription:
    """What holds for every frame of an environment."""

    task: str
    """What to do, in words."""
    fps: float
    """Control steps per second."""
    robot: str | None
    """Kind of robot, such as "aloha"; data of one kind have entries of one meaning."""
    names: Mapping[str, tuple[str, ...]]
    """Names of the entries of a feature, such as "observation.state" or "action"; a feature need not have any."""
    units: Mapping[str, tuple[str, ...]]
    """Their units, likewise."""


def describe(env: Any) -> EnvDescription:
    """Of an environment or a vector of them, wrapped or not: its attributes `task`, `robot`, `feature_names` and
    `feature_units`, and `metadata["render_fps"]`. Where it has no task, its id stands for one. Raises ValueError where
    it gives no rate.
    """
    name = env.spec.id if env.spec is not None else type(env.unwrapped).__name__
    fps = env.metadata.get("render_fps")
    if not isinstance(fps, int | float) or not 0 < fps < float("inf"):
        raise ValueError(f"{name}: expected its rate in Hz in metadata['render_fps'], got {fps!r}")
    robot = _attribute(env, "robot", None)
    return EnvDescription(
        task=str(_attribute(env, "task", name)),
        fps=fps,
        robot=None if robot is None else str(robot),
        names={key: tuple(names) for key, names in _attribute(env, "feature_names", {}).items()},
        units={key: tuple(units) for key, units in _attribute(env, "feature_units", {}).items()},
    )


def _attribute(env: Any, name: str, default: Any) -> Any:
    """Of the environment or what it wraps."""
    while not hasattr(env, name) and hasattr(env, "env"):
        env = env.env
    return getattr(env, name, default)
