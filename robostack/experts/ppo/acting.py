"""A trained expert at work: its best action, and how often that solves a level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from robostack.common.intervals import wilson_interval
from robostack.envs.kinetix import package  # noqa: F401 (first of all: says in one line what is not installed)
from robostack.envs.kinetix.levels import Level
from robostack.envs.kinetix.simulation import ACTION_HIGH, ACTION_LOW, OBSERVATIONS, repeated, select
from robostack.experts import Asked, Look, Shapes
from robostack.experts.ppo.algorithm import Start, World, observation_of, step_worlds
from robostack.experts.ppo.checkpoint import ExpertCheckpoint, ExpertError
from robostack.experts.ppo.network import ActorCritic, RunningStatistics

MAX_DELAY = 4
"""Steps that an observation may be old in `play`."""

_KEY = "observation.state"


@runtime_checkable
class Player(Protocol):
    """Who plays; a structure of arrays, so that one compiled program serves all of a kind."""

    def best(self, observations: Array) -> Array:
        """Actions (batch, action) for observations (batch, numbers)."""
        ...


class Acting(NamedTuple):
    """All that acting needs."""

    network: ActorCritic
    statistics: RunningStatistics
    used: Array

    def best(self, observations: Float[Array, "*batch observation"]) -> Float[Array, "*batch action"]:
        """The mean action, within bounds, and 0 where nothing is moved by it."""
        mean = self.network.mean(self.statistics.normalised(observations))
        return jnp.where(self.used, jnp.clip(mean, ACTION_LOW, ACTION_HIGH), 0.0)


class PpoExpert:
    """Acts as a checkpoint of `robostack expert` says, without chance."""

    def __init__(self, checkpoint: ExpertCheckpoint) -> None:
        """Reads the weights. Raises ExpertError where they do not fit."""
        self.checkpoint = checkpoint
        network, statistics = checkpoint.acting()
        self.acting = Acting(network, statistics, jnp.asarray(checkpoint.used))

    @staticmethod
    def load(path: str | Path) -> PpoExpert:
        """From a checkpoint, or the last one of a run. Raises ExpertError where there is none or it is damaged."""
        return PpoExpert(ExpertCheckpoint.read(path))

    def act(self, observations: Mapping[str, np.ndarray]) -> np.ndarray:
        """(batch, 6) float32 for `observation.state` (batch, numbers) of a world; other entries are not looked at.

        Each batch size compiles once, in a tenth of a second. Raises ExpertError where it is missing or misshapen.
        """
        if _KEY not in observations:
            raise ExpertError(f"the expert sees {_KEY}, got {', '.join(observations) or 'nothing'}")
        batch = np.asarray(observations[_KEY], np.float32)
        if batch.ndim != 2 or batch.shape[1] != self.checkpoint.observation:
            expected = f"(batch, {self.checkpoint.observation})"
            raise ExpertError(f"expected {_KEY} of shape {expected}, got {batch.shape}: trained in another level")
        return np.array(_best(self.acting, batch))


class PpoExperts:
    """Experts of one level, each of which plays its share of the seeds."""

    plans = False

    def __init__(self, asked: Asked) -> None:
        """Raises ExpertError where a checkpoint cannot be used, ValueError for what experts of this kind cannot do."""
        if asked.noise or asked.cameras:
            raise ValueError("noise and cameras are for scripted experts, got them with --expert")
        if unknown := [key for key in asked.observe if key not in OBSERVATIONS.values()]:
            raise ValueError(
                f"there is no {unknown[0]} to record: expected observation.state, .entities or .images.view"
            )
        self.records: Shapes = dict.fromkeys(asked.observe or (_KEY,), ())
        self._experts, self._first = [PpoExpert.load(path) for path in asked.checkpoints], asked.first
        self._players = np.zeros(0, dtype=int)

    def begin(self, worlds: Any, seeds: Sequence[int]) -> None:
        self._players = (np.array(seeds) - self._first) % len(self._experts)

    def act(self, look: Look) -> np.ndarray:
        seen = look({_KEY: ()})[_KEY]
        actions = np.zeros((len(seen), len(ACTION_LOW)), np.float32)
        for number, expert in enumerate(self._experts):
            rows = self._players == number
            actions[rows] = expert.act({_KEY: seen[rows]})
        return actions


@jax.jit
def _best(acting: Acting, observations: Array) -> Array:
    return acting.best(observations)


def used_controls(level: Level) -> tuple[bool, ...]:
    """(6,) which motors and thrusters of an action move anything in a level."""
    state, used = level.state, np.zeros(len(ACTION_LOW), dtype=bool)
    joints, thrusters, motors = state.joint, state.thruster, level.static_params.num_motor_bindings
    used[state.motor_bindings[joints.active & joints.motor_on & ~joints.is_fixed_joint]] = True
    used[motors + state.thruster_bindings[thrusters.active]] = True
    return tuple(bool(u) for u in used)


def play(
    world: World,
    start: Start,
    player: Player,
    episodes: int,
    max_steps: int,
    seed: int,
    delay: int = 0,
) -> dict[str, Any]:
    """Success of the best action over `episodes`, of which no two have the same noise. One fails after `max_steps`.

    `world` has the noise on actions that the environment has, which is drawn from `seed`. With `delay` an action
    follows from what was seen so many steps ago (in the first steps, from the first sight). Gives `episodes`,
    `successes`, `success`, `success_interval` (95 %, Wilson), `mean_return`, `mean_length` and `delay`.
    """
    if not 0 <= delay <= MAX_DELAY:
        raise ValueError(f"expected a delay from 0 to {MAX_DELAY}, got {delay}")
    program = _play_program(world, episodes, max_steps)
    key = jax.random.PRNGKey(seed)
    success, returns, lengths = (np.asarray(leaf) for leaf in program(start, player, key, jnp.int32(delay)))
    successes = int(success.sum())
    return {
        "episodes": episodes,
        "successes": successes,
        "success": successes / episodes,
        "success_interval": list(wilson_interval(successes, episodes)),
        "mean_return": float(returns.mean()),
        "mean_length": float(lengths.mean()),
        "delay": delay,
    }


@cache
def _play_program(world: World, episodes: int, max_steps: int) -> Any:
    def play(start: Start, player: Player, key: Array, delay: Array) -> tuple[Array, Array, Array]:
        def goes_on(carry: Any) -> Array:
            return ~carry[2].all()

        def step(carry: Any) -> Any:
            worlds, seen, over, success, returns, key = carry
            key, noise_key = jax.random.split(key)
            after = step_worlds(world, worlds, player.best(seen[delay]), noise_key)
            now = jax.vmap(lambda state: observation_of(world, state))(after.state)
            success = success | (after.success & ~over)
            returns = returns + jnp.where(over, 0.0, after.reward)
            ended = after.terminated | (after.state.timestep >= max_steps)
            # What is over stands still, so that its step count stays.
            worlds = select(over, worlds, after.state)
            return worlds, jnp.concatenate([now[None], seen[:-1]]), over | ended, success, returns, key

        first = jnp.broadcast_to(
            observation_of(world, start.state), (MAX_DELAY + 1, episodes, len(observation_of(world, start.state)))
        )
        none = jnp.zeros(episodes, dtype=bool)
        carry = (repeated(start.state, episodes), first, none, none, jnp.zeros(episodes), key)
        worlds, _, _, success, returns, _ = jax.lax.while_loop(goes_on, step, carry)
        return success, returns, worlds.timestep

    return jax.jit(play)
