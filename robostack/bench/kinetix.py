"""The Kinetix part of `robostack bench env`: steps of many worlds at once, beside the package's own jitted step.

Both step the same level with the same actions, reset by themselves what is over, and give the flat observation. Ours
does so behind Gymnasium's interface, with arrays of numpy going in and coming out; the package's step is called bare,
in one jit of one vmap, as its documentation does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robostack import envs
from robostack.bench import compare, measurement, take_turns
from robostack.envs.kinetix import package
from robostack.envs.kinetix.levels import load_level

ENVIRONMENT, LEVEL = "kinetix-s-h6_unicycle_right", "s/h6_unicycle_right"
BATCHES = (1, 16, 64, 256)
BLOCKS = 7


def bench_kinetix(batches: tuple[int, ...] = BATCHES) -> Iterator[dict[str, Any]]:
    """Measurements with the keys of `robostack bench`, two a batch: by CPU time and by wall time.

    Compiling takes some 40 CPU seconds a batch, or 10 from the compile cache; measuring about 10.
    """
    for batch in batches:
        steps = max(16, min(600, 4096 // batch))
        actions = np.random.default_rng(0).uniform(-1, 1, (steps, batch, 6)).astype(np.float32)
        walls: dict[str, list[float]] = {"ours": [], "peer": []}
        programs = {"ours": _ours(actions), "peer": _peer(actions)}
        rates = take_turns({name: _clocked(run, batch * steps, walls[name]) for name, run in programs.items()}, BLOCKS)
        peer = f"kinetix-env {version('kinetix-env')} jit(vmap(step))"
        case = f"kinetix {LEVEL}, {batch} environment{'s' if batch > 1 else ''}"
        by_clock = {
            "per CPU second": compare(rates["ours"], rates["peer"]),
            "per second": compare(walls["ours"][1:], walls["peer"][1:]),  # without the unmeasured round
        }
        for unit, found in by_clock.items():
            yield measurement("env", case, "control steps", unit, found, peer)


def _clocked(run: Callable[[], None], steps: int, walls: list[float]) -> Callable[[], float]:
    """The rate by CPU time; that by wall time is put into `walls`."""

    def rate() -> float:
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        walls.append(steps / (time.perf_counter() - wall))
        return steps / (time.process_time() - cpu)

    return rate


def _ours(actions: np.ndarray) -> Callable[[], None]:
    vector = envs.make_vector(ENVIRONMENT, actions.shape[1])

    def run() -> None:
        vector.reset(seed=0)
        for action in actions:
            vector.step(action)

    return run


def _peer(actions: np.ndarray) -> Callable[[], None]:
    level = load_level(LEVEL)
    params = package.EnvParams(dense_reward_scale=1.0)
    start = jax.tree.map(jnp.asarray, level.state)
    env = package.PackageEnv(
        package.ContinuousActions(params, level.static_params),
        package.SymbolicObservations(params, level.static_params),
        level.static_params,
        reset_function=lambda key: start,
        auto_reset=True,
    )
    step = jax.jit(jax.vmap(env.step, in_axes=(0, 0, 0, None)))
    batch = actions.shape[1]
    starts = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (batch, *leaf.shape)), start)
    keys = jax.random.split(jax.random.PRNGKey(0), batch)

    def run() -> None:
        states = starts
        for action in actions:
            # Whoever acts on what is observed must wait for it.
            observation, states, reward, done, _ = step(keys, states, action, params)
            jax.block_until_ready((observation, reward, done))

    return run
