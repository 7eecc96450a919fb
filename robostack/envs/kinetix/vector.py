"""Many environments of one level, stepped by one compiled program.

Step, automatic reset and observation are one jitted function of all environments.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any, ClassVar, NamedTuple, SupportsIndex

import jax
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from robostack.envs.kinetix.env import KinetixEnv, checked_actions, compiled_picture, draw_key
from robostack.envs.kinetix.levels import Level, load_level
from robostack.envs.kinetix.package import check_not_forked
from robostack.envs.kinetix.simulation import (
    FEATURE_NAMES,
    MAX_STEPS,
    OBSERVATIONS,
    Simulation,
    State,
    feature_units,
    repeated,
    select,
)
from robostack.envs.seeds import seed_of_each


class KinetixVectorEnv(VectorEnv[dict[str, np.ndarray], np.ndarray, np.ndarray]):
    """`num_envs` independent environments of one level; see `KinetixEnv` for what they observe.

    An episode depends on its own seed and actions alone, not on the batch it runs in. An environment that is over is
    reset within the same step: the observation is then the first of the next episode, whose noise goes on from the
    seed, and `info["final_obs"]` and `info["final_info"]` hold the last of the old one, as Gymnasium lays them out.
    `stage`, `success` and `diverged` are of the step just made in `info` itself, too.
    Arrays that are returned are read-only views of JAX's.
    """

    metadata = {**KinetixEnv.metadata, "autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012
    highest_stage: int = KinetixEnv.highest_stage
    rows_per_program: ClassVar[int] = 128
    """All rows are one program: so many cost little more than one."""
    published: ClassVar[Mapping[str, Any]] = {"action_noise": 0.1}
    """Settings under which results are published (arXiv 2506.07339). Without noise all episodes would be the same."""

    def __init__(
        self,
        num_envs: int,
        level: str | Level,
        max_episode_steps: int = MAX_STEPS,
        observation: str = "flat",
        action_noise: float = 0.0,
        dense_reward_scale: float = 1.0,
        render_mode: str | None = None,
    ) -> None:
        """Loads the level; the first step compiles, for this `num_envs`. After `max_episode_steps` an episode is
        truncated; the rest is as for `KinetixEnv`."""
        if num_envs < 1:
            raise ValueError(f"expected at least one environment, got num_envs={num_envs}")
        if max_episode_steps < 1:
            raise ValueError(f"expected at least one step per episode, got max_episode_steps={max_episode_steps}")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"expected render_mode None or 'rgb_array', got {render_mode!r}")
        super().__init__()
        level = load_level(level) if isinstance(level, str) else level
        self.num_envs = num_envs
        self.simulation = Simulation(level, observation, action_noise, dense_reward_scale)
        self.task: str = level.task
        self.robot = "kinetix"
        self.render_mode = render_mode
        self.single_observation_space = self.simulation.observation_space()
        self.feature_names, self.feature_units = FEATURE_NAMES, feature_units(self.single_observation_space)
        self.single_action_space = self.simulation.action_space()
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._start = self.simulation.initial()
        self._programs = _compiled(self.simulation, max_episode_steps)
        self.states: State = None  # of all environments; None before the first reset
        self._seen: dict[str, np.ndarray] = {}  # what the last reset or step gave
        self._generators = [np.random.default_rng() for _ in range(num_envs)]
        self._keys = np.zeros((num_envs, 2), np.uint32)

    def reset(
        self,
        *,
        seed: SupportsIndex | Iterable[SupportsIndex | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Starts episodes. `seed` is one for every environment (None: its noise goes on where it is), or a number s for
        s, s + 1, …

        `options` may hold `reset_mask`, (num_envs,) bool: which to reset; the others keep their episodes.
        """
        check_not_forked()
        options = dict(options or {})
        mask = np.asarray(options.pop("reset_mask", np.ones(self.num_envs, dtype=bool)))
        if options:
            raise ValueError(f"unknown reset options {sorted(options)}: known is reset_mask")
        if mask.shape != (self.num_envs,) or mask.dtype != bool:
            raise ValueError(f"expected a reset_mask of {self.num_envs} bools, got {mask.dtype} {mask.shape}")
        if self.states is None and not mask.all():
            raise ValueError("expected a first reset of all environments, got a reset_mask that leaves some out")
        seeds = seed_of_each(seed, self.num_envs)
        for i in np.flatnonzero(mask):
            if seeds[i] is not None:
                self._generators[i] = np.random.default_rng(seeds[i])
            self._keys[i] = draw_key(self._generators[i])
        states = repeated(self._start, self.num_envs) if self.states is None else self.states
        self.states, observation = self._programs.reset(self._start, states, mask)
        self._seen = _views(observation)
        return dict(self._seen), {"task": [self.task] * self.num_envs}

    def step(
        self, actions: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Advances every environment by 1/30 s; `actions` is (num_envs, 6). Raises ValueError where they have another
        shape or are not finite, RuntimeError before the first reset."""
        actions = checked_actions(actions, (self.num_envs, 6))
        done = self._advance(actions)
        info = {
            "task": [self.task] * self.num_envs,
            "stage": np.asarray(done.success, dtype=np.int64),
            "success": np.asarray(done.success),
            "diverged": np.asarray(done.diverged),
        }
        over = np.asarray(done.over)
        if over.any():
            final = _views(done.final_observation)
            last = np.full(self.num_envs, None, dtype=object)
            for i in np.flatnonzero(over):
                last[i] = {key: value[i] for key, value in final.items()}
            masked = {key: np.where(over, value, 0).astype(value.dtype) for key, value in info.items() if key != "task"}
            tasks = np.array([self.task if ended else None for ended in over], dtype=object)
            info |= {
                "final_obs": last,
                "_final_obs": over,
                "final_info": {"task": tasks, "_task": over, **masked, **{f"_{key}": over for key in masked}},
                "_final_info": over,
            }
        return (
            dict(self._seen),
            np.asarray(done.reward),
            np.asarray(done.terminated),
            np.asarray(done.truncated),
            info,
        )

    def look(self, wanted: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
        """Those of the `wanted` observations that the level has, of every kind, at this step, one row per environment.
        `wanted` maps keys to the shape of a row."""
        check_not_forked()
        return {key: self._seen[key] if key in self._seen else self._look(key) for key in wanted if key in _KINDS}

    def _look(self, key: str) -> np.ndarray:
        simulation = replace(self.simulation, observation=_KINDS[key])
        return np.asarray(_observe_all(simulation)(self.states)[key])

    def picture(self, index: int) -> np.ndarray:
        """One environment for people: (500, 500, 3) uint8; the first one compiles."""
        check_not_forked()
        return np.array(compiled_picture(self.simulation)(jax.tree.map(lambda leaf: leaf[index], self.states)))

    def render(self) -> tuple[np.ndarray | None, ...]:
        """One picture per environment: (500, 500, 3) uint8. The first one compiles, in some 3 s."""
        if self.render_mode is None or self.states is None:
            return (None,) * self.num_envs
        check_not_forked()
        picture, states = compiled_picture(self.simulation), jax.tree.map(np.asarray, self.states)
        return tuple(np.array(picture(jax.tree.map(lambda leaf, i=i: leaf[i], states))) for i in range(self.num_envs))

    def _advance(self, actions: np.ndarray) -> _Done:
        check_not_forked()
        if self.states is None:
            raise RuntimeError("there was no reset yet: reset the environments first")
        self.states, done = self._programs.step(self._start, self.states, self._keys, actions)
        done = jax.block_until_ready(done)
        self._seen = _views(done.observation)
        over = np.flatnonzero(np.asarray(done.over))
        if len(over):  # as KinetixEnv does when it is reset without a seed
            for i in over:
                self._keys[i] = draw_key(self._generators[i])
        return done


_KINDS = {key: kind for kind, key in OBSERVATIONS.items()}


@cache
def _observe_all(simulation: Simulation) -> Any:
    return jax.jit(jax.vmap(simulation.observe))


class _Done(NamedTuple):
    """What a step gives, each with a leading axis of environments."""

    observation: dict[str, jax.Array]  # after the reset of what is over
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    success: jax.Array
    diverged: jax.Array
    over: jax.Array
    final_observation: dict[str, jax.Array]  # before it


class _Programs(NamedTuple):
    reset: Any
    step: Any


@cache
def _compiled(simulation: Simulation, max_episode_steps: int) -> _Programs:
    """The level's start is an argument, so that all levels of one size share the compiled programs."""

    def reset(start: State, states: State, mask: jax.Array) -> tuple[State, dict[str, jax.Array]]:
        states = select(mask, start, states)
        return states, jax.vmap(simulation.observe)(states)

    def step(start: State, states: State, keys: jax.Array, actions: jax.Array) -> tuple[State, _Done]:
        step_keys = jax.vmap(jax.random.fold_in)(keys, states.timestep)
        after = jax.vmap(simulation.step)(states, actions, step_keys)
        truncated = after.state.timestep >= max_episode_steps
        over = after.terminated | truncated
        final = jax.vmap(simulation.observe)(after.state)
        first = simulation.observe(start)
        done = _Done(
            observation=select(over, first, final),
            reward=after.reward,
            terminated=after.terminated,
            truncated=truncated,
            success=after.success,
            diverged=after.diverged,
            over=over,
            final_observation=final,
        )
        return select(over, start, after.state), done

    return _Programs(jax.jit(reset), jax.jit(step))


def _views(observation: dict[str, jax.Array]) -> dict[str, np.ndarray]:
    return {key: np.asarray(value) for key, value in observation.items()}
