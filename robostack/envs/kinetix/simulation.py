"""A level as pure functions for jit and vmap, which the environments, the PPO expert and the evaluator share.

The physics, rewards and features are the package's own; not its automatic reset, which computes a reset every step,
nor its time limit, which it reports as an ending like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jax import Array

from robostack.envs.kinetix import package
from robostack.envs.kinetix.entities import entity_tokens
from robostack.envs.kinetix.levels import MOTORS, THRUSTERS, Level

CONTROL_HZ = 30  # two physics steps of 1/60 s in each
MAX_STEPS = 256

ACTION_LOW = np.array([-1.0] * MOTORS + [0.0] * THRUSTERS, np.float32)
ACTION_HIGH = np.ones(MOTORS + THRUSTERS, np.float32)
FEATURE_NAMES: Mapping[str, tuple[str, ...]] = {
    "action": (*(f"motor{i}" for i in range(MOTORS)), *(f"thruster{i}" for i in range(THRUSTERS)))
}


def feature_units(observation: spaces.Space[Any]) -> dict[str, tuple[str, ...]]:
    """Of the action, and of what is observed in a flat vector: all numbers are of order 1 and have no unit."""
    parts = {"action": Simulation.action_space(), **(observation if isinstance(observation, spaces.Dict) else {})}
    return {key: ("1",) * space.shape[0] for key, space in parts.items() if len(space.shape or ()) == 1}


OBSERVATIONS: Mapping[str, str] = {
    "flat": "observation.state",
    "entities": "observation.entities",
    "pixels": "observation.images.view",
}
"""Each kind of observation, and its key."""
_NEVER = 2**30  # steps until the package's own time limit

State = Any
"""A kinetix EnvState: a structure of arrays, which vmap gives a leading axis."""


class Transition(NamedTuple):
    """What one step gives."""

    state: State
    reward: Array  # () float32
    terminated: Array  # () bool: goal, failure, or diverged
    success: Array  # () bool: green touched blue, and before that green no red
    diverged: Array  # () bool: a number in the state is nan


@dataclass(frozen=True)
class Simulation:
    """One level: an episode starts in `initial()`, always the same, and goes on by `step`.

    Two simulations are equal if they step and observe alike, wherever their levels start: what was compiled with one
    serves the other, if it takes the start state as an argument. Raises ValueError for an unknown observation, or noise
    or a scale that is negative or not finite.
    """

    level: Level = field(compare=False)
    """Start state, sizes and constants of the world."""
    observation: str = "flat"
    """`flat`, `entities` or `pixels`; see `observe`."""
    action_noise: float = 0.0
    """Standard deviation of Gaussian noise on the actions (0.1 in arXiv 2506.07339)."""
    dense_reward_scale: float = 1.0
    """The reward for a metre that green comes nearer to blue."""
    static_params: Any = field(init=False, repr=False)
    params: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.observation not in OBSERVATIONS:
            raise ValueError(f"unknown observation {self.observation!r}: known are {', '.join(OBSERVATIONS)}")
        for name in ("action_noise", "dense_reward_scale"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"expected {name} finite and not negative, got {getattr(self, name)}")
        params = self.level.params.replace(max_timesteps=_NEVER, dense_reward_scale=float(self.dense_reward_scale))
        object.__setattr__(self, "static_params", self.level.static_params)
        object.__setattr__(self, "params", params)

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}  # not what is made when first used

    def initial(self) -> State:
        """The start state of every episode, on JAX's device."""
        return jax.tree.map(jnp.asarray, self.level.state)

    def step(self, state: State, action: Array, key: Array) -> Transition:
        """1/30 s from `state`, which is of `initial` or an earlier step and counts its steps in `timestep`.

        `action` (6,) holds 4 motors from −1 to 1 and 2 thrusters from 0 to 1; it is clipped, after noise from `key`.
        The reward is 1 where green touches blue, −1 where green touches red, plus what the distance between green and
        blue shrank by, in metres times `dense_reward_scale`; that part is 0 in an episode's first step.
        """
        action = self.applied(action, key)
        _, after, reward, terminated, info = self._physics.step_env(key, state, action, self.params)
        diverged = jax.tree.reduce(jnp.logical_or, jax.tree.map(lambda leaf: jnp.isnan(leaf).any(), after))
        # In the types of the old state, so that the next step is the same program.
        after = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), after, state)
        return Transition(after, jnp.float32(reward), terminated | diverged, info["GoalR"], diverged)

    def applied(self, action: Array, key: Array) -> Array:
        """(6,) what motors and thrusters get: the action with its noise, then within bounds."""
        if self.action_noise:
            action = action + self.action_noise * jax.random.normal(key, action.shape, action.dtype)
        return jnp.clip(action, ACTION_LOW, ACTION_HIGH)

    def observe(self, state: State) -> dict[str, Array]:
        """What a policy sees, never nan.

        flat: `observation.state`, (140,), (247,) or (679,) float32 in s, m or l: the package's features, in turn.
        entities: `observation.entities`, (tokens, 52) float32, in every size the same features; see `entities`.
        pixels: `observation.images.view`, (125, 125, 3) uint8.
        """
        key = OBSERVATIONS[self.observation]
        if self.observation == "pixels":
            return {key: self.picture(state)}
        seen = self._features.get_obs(state)
        return {key: entity_tokens(seen) if self.observation == "entities" else jnp.nan_to_num(jnp.float32(seen))}

    def picture(self, state: State, size: Literal[125, 250, 500] = 125) -> Array:
        """(size, size, 3) uint8, upright, by the package's renderer; 125 has no outlines."""
        pixels = self._renderers[size](jax.tree.map(jnp.nan_to_num, state))
        return jnp.clip(pixels, 0, 255).astype(jnp.uint8).transpose(1, 0, 2)[::-1]  # from (x, y upwards) to rows

    def observation_space(self) -> spaces.Space[Any]:
        """Of one environment."""
        shapes = jax.eval_shape(lambda: self.observe(self.initial()))

        def space(leaf: Any) -> spaces.Box:
            if leaf.dtype == np.uint8:
                return spaces.Box(0, 255, leaf.shape, np.uint8)
            return spaces.Box(-np.inf, np.inf, leaf.shape, np.float32)

        return spaces.Dict({key: space(leaf) for key, leaf in shapes.items()})

    @staticmethod
    def action_space() -> spaces.Box:
        """Of one environment: what the motors and thrusters do, not the package's −1 to 1 for all."""
        return spaces.Box(ACTION_LOW, ACTION_HIGH, dtype=np.float32)

    # Made once and when first used, which may be within jit: there too their index tables must be numbers.

    @cached_property
    def _physics(self) -> Any:
        with jax.ensure_compile_time_eval():
            return package.PackageEnv(
                package.ContinuousActions(self.params, self.static_params),
                _NothingObserved(),  # pyright: ignore[reportArgumentType] (has the one method that is called)
                self.static_params,
                auto_reset=False,
            )

    @cached_property
    def _features(self) -> Any:
        with jax.ensure_compile_time_eval():
            if self.observation == "entities":
                return package.EntityObservations(self.params, self.static_params, ignore_mask=True)
            return package.SymbolicObservations(self.params, self.static_params)

    @cached_property
    def _renderers(self) -> dict[int, Callable[[State], Array]]:
        with jax.ensure_compile_time_eval():
            return {
                500 // downscale: package.make_render_pixels(
                    self.params, self.static_params.replace(downscale=downscale)
                )
                for downscale in (4, 2, 1)
            }


class _NothingObserved:
    """The package's step observes as well; ours observes apart."""

    def get_obs(self, state: State) -> tuple[()]:
        return ()


def repeated(state: State, count: int) -> State:
    """One state as that of `count` worlds."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *jnp.shape(leaf))), state)


def select(mask: Array, chosen: Any, others: Any) -> Any:
    """`chosen` in the rows where `mask`, (worlds,) bool, is true, elsewhere the rows of `others`.

    `chosen` has rows too, or is what each of these rows gets, such as a start state.
    """
    return jax.tree.map(
        lambda one, rows: jnp.where(mask.reshape(-1, *[1] * (rows.ndim - 1)), one, rows), chosen, others
    )
