"""One level as a Gymnasium environment."""

from __future__ import annotations

import operator
from functools import cache
from typing import Any, SupportsIndex

import gymnasium as gym
import jax
import numpy as np

from robostack.envs.kinetix.levels import Level, load_level
from robostack.envs.kinetix.package import check_not_forked
from robostack.envs.kinetix.simulation import CONTROL_HZ, FEATURE_NAMES, Simulation, State, feature_units


class KinetixEnv(gym.Env[dict[str, np.ndarray], np.ndarray]):
    """A 2D world of shapes, motors and thrusters, controlled at 30 Hz.

    Observation (dict): one of `observation.state`, `observation.entities` and `observation.images.view`; see
        `Simulation.observe`.
    Action: (6,) 4 motors from −1 to 1, then 2 thrusters from 0 to 1. Out of range it is clipped.
    Reward: 1 at the goal, −1 at a failure, plus the dense part; see `Simulation.step`.
    `info` has `task` (text), `stage` (1 at the goal, else 0), `success`, and `diverged` where numbers became nan: that
    ends the episode too.

    A level has one fixed start. The seed of `reset` fixes the noise on the actions, and nothing else.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": CONTROL_HZ}  # noqa: RUF012 (Gymnasium's own name)
    highest_stage: int = 1
    stage_names: tuple[str, ...] = ("not at the goal", "at the goal")

    def __init__(
        self,
        level: str | Level,
        observation: str = "flat",
        action_noise: float = 0.0,
        dense_reward_scale: float = 1.0,
        render_mode: str | None = None,
    ) -> None:
        """Loads the level (see `load_level`); the first step compiles (some 20 s, or 3 s from the compile cache).

        `observation` is `flat`, `entities` or `pixels`, `action_noise` the standard deviation of Gaussian noise on the
        actions, `dense_reward_scale` the reward for a metre that green comes nearer to blue, `render_mode` `rgb_array`
        or None. Raises ValueError where there is no such level or an option is wrong, MissingExtraError without
        kinetix.
        """
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"expected render_mode None or 'rgb_array', got {render_mode!r}")
        level = load_level(level) if isinstance(level, str) else level
        self.simulation = Simulation(level, observation, action_noise, dense_reward_scale)
        self.task: str = level.task
        self.robot = "kinetix"
        self.render_mode = render_mode
        self.observation_space = self.simulation.observation_space()
        self.feature_names, self.feature_units = FEATURE_NAMES, feature_units(self.observation_space)
        self.action_space = self.simulation.action_space()
        self.state: State = self.simulation.initial()
        self._key = np.zeros(2, np.uint32)

    def reset(
        self, *, seed: SupportsIndex | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Starts an episode; without a seed, `np_random` goes on where it is. There are no options."""
        check_not_forked()
        if options:
            raise ValueError(f"unknown reset options {sorted(options)}: a level has none")
        super().reset(seed=None if seed is None else operator.index(seed))  # Gymnasium takes no integers of numpy's
        self._key = draw_key(self.np_random)
        self.state = self.simulation.initial()
        return _numpy(_observe(self.simulation)(self.state)), self._info(False, False)

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Advances 1/30 s. Raises ValueError for an action of another shape or one that is not finite."""
        check_not_forked()
        action = checked_actions(action, self.action_space.shape or ())
        transition, observation = _step(self.simulation)(self.state, action, self._key)
        self.state = transition.state
        info = self._info(bool(transition.success), bool(transition.diverged))
        return _numpy(observation), float(transition.reward), bool(transition.terminated), False, info

    def render(self) -> np.ndarray | None:  # pyright: ignore[reportIncompatibleMethodOverride] (no frame lists)
        """For people: (500, 500, 3) uint8, or None without a render mode. The first one compiles, in some 3 s."""
        if self.render_mode is None:
            return None
        check_not_forked()
        return np.array(compiled_picture(self.simulation)(self.state))

    def _info(self, success: bool, diverged: bool) -> dict[str, Any]:
        return {"task": self.task, "stage": int(success), "success": success, "diverged": diverged}


def checked_actions(actions: Any, shape: tuple[int, ...]) -> np.ndarray:
    """As float32. Raises ValueError for another shape or numbers that are not finite."""
    actions = np.asarray(actions, dtype=np.float32)
    one = len(shape) == 1
    if actions.shape != shape:
        raise ValueError(f"expected {'an action' if one else 'actions'} of shape {shape}, got {actions.shape}")
    if not np.isfinite(actions).all():
        bad = np.argwhere(~np.isfinite(actions))
        if one:
            raise ValueError(f"expected a finite action, got nan or inf in dimensions {bad[:, 0].tolist()}")
        raise ValueError(f"expected finite actions, got nan or inf at [environment, dimension] {bad.tolist()}")
    return actions


def draw_key(generator: np.random.Generator) -> np.ndarray:
    """(2,) uint32: what the noise of one episode follows from."""
    return generator.integers(0, 2**32, 2, dtype=np.uint32)


# One compiled program serves all equal simulations.


@cache
def compiled_picture(simulation: Simulation) -> Any:
    """A jitted function of one state: (500, 500, 3) uint8."""
    return jax.jit(lambda state: simulation.picture(state, 500))


@cache
def _observe(simulation: Simulation) -> Any:
    return jax.jit(simulation.observe)


@cache
def _step(simulation: Simulation) -> Any:
    def step(state: State, action: jax.Array, key: jax.Array) -> Any:
        transition = simulation.step(state, action, jax.random.fold_in(key, state.timestep))
        return transition, simulation.observe(transition.state)

    return jax.jit(step)


def _numpy(observation: dict[str, jax.Array]) -> dict[str, np.ndarray]:
    # Copies: users may write into what they get, and JAX believes its arrays never change.
    return {key: np.array(value) for key, value in observation.items()}
