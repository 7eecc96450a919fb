"""The training of an expert: updates, a log, checkpoints of several qualities, and going on where it stopped.

What an update does follows from the state of training alone, all of which is in a checkpoint: a resumed run goes on
bit for bit.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from robostack.envs.kinetix import package  # noqa: F401 (first of all: says in one line what is not installed)
from robostack.envs.kinetix.levels import load_level
from robostack.envs.kinetix.simulation import Simulation
from robostack.experts.ppo import Learner, Metrics, Start, update_program
from robostack.experts.ppo_checkpoint import ExpertCheckpoint, ExpertError
from robostack.experts.ppo_config import ExpertConfig, level_of
from robostack.experts.ppo_expert import Acting, play, used_controls
from robostack.provenance import describe_run

LOG_FILE = "log.jsonl"
EVALUATION_SEED = 4_000_000
"""Added to the seed of training: the noise of evaluation episodes."""


@dataclass(frozen=True)
class Report:
    """One update. `cpu_s` and `time_s` add up over all updates of the run, without compiling and evaluating.

    Means over the episodes that ended in the update are None where none did. They are of the exploring policy.
    """

    update: int
    updates: int
    env_steps: int
    episodes: int
    solved: float | None
    mean_return: float | None
    length: float | None
    entropy: float
    surrogate: float
    value_loss: float
    kl: float
    clipped: float
    learning_rate: float
    steps_per_s: float
    cpu_s: float
    time_s: float


def train(
    config: ExpertConfig,
    report: Callable[[Report], None] = lambda _: None,
    stage: Callable[[int, str], None] = lambda *_: None,
) -> Path:
    """Trains an expert from scratch and returns the folder of the run.

    Args:
        config: what and how.
        report: is told about every update.
        stage: is told, with the number of updates made, what else takes a while: compiling, evaluating.

    Raises:
        FileExistsError: `config.out` exists.
        ValueError: the environment is unknown, has a scripted expert, or nothing in it can be moved.
        RuntimeError: the policy is no longer finite.
    """
    if config.out.exists():
        raise FileExistsError(f"{config.out} already exists: choose another folder, or continue it with --resume")
    level_of(config.env)
    return _run(config, None, report, stage)


def resume(
    run: Path,
    report: Callable[[Report], None] = lambda _: None,
    stage: Callable[[int, str], None] = lambda *_: None,
) -> Path:
    """Continues the run in a folder from its last checkpoint, with its own settings; see `train`.

    Raises ExpertError where there is no checkpoint or it is damaged, and as `train`.
    """
    checkpoint = ExpertCheckpoint.read(run)
    if checkpoint.path == run:
        raise ExpertError(f"{run} is a checkpoint: name the folder of its run")
    return _run(replace(checkpoint.config, out=run), checkpoint, report, stage)


def read_log(run: Path) -> list[dict[str, Any]]:
    """The reports of a run, oldest first. A line cut short by a kill is dropped, with those after it."""
    path = run / LOG_FILE
    reports = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            reports.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return reports


def world_of(config: ExpertConfig) -> tuple[Simulation, Start]:
    """The world of an expert, and how its level starts. Raises ValueError where nothing in it can be moved."""
    level = load_level(level_of(config.env))
    used = used_controls(level)
    if not any(used):
        raise ValueError(f"{config.env} has no motor and no thruster: there is nothing to learn")
    simulation = Simulation(level, "flat", config.action_noise, config.dense_reward_scale)
    return simulation, Start(simulation.initial(), jnp.asarray(used))


def _run(
    config: ExpertConfig,
    begun: ExpertCheckpoint | None,
    report: Callable[[Report], None],
    stage: Callable[[int, str], None],
) -> Path:
    world, start = world_of(config)
    learner, update, kept = Learner.initial(world, start, config.ppo, config.seed), 0, []
    if begun is not None:
        learner, update = begun.learner(learner), begun.update
        kept = [line for line in read_log(config.out) if line["update"] <= update]
    stage(update, "compiling")
    program = update_program(world, config.ppo).lower(start, learner, jnp.float32(0)).compile()
    config.out.mkdir(parents=True, exist_ok=True)
    (config.out / LOG_FILE).write_text("".join(json.dumps(line) + "\n" for line in kept))
    cpu_s, time_s = (kept[-1]["cpu_s"], kept[-1]["time_s"]) if kept else (0.0, 0.0)
    training = describe_run()
    with (config.out / LOG_FILE).open("a") as log:
        while update < config.updates:
            cpu_then, then = time.process_time(), time.perf_counter()
            learning_rate = config.ppo.learning_rate * (1 - update / config.updates)
            learner, metrics = program(start, learner, jnp.float32(learning_rate))
            metrics = Metrics(*(float(value) for value in metrics))
            cpu_s += time.process_time() - cpu_then
            time_s += (taken := time.perf_counter() - then)
            update += 1
            if not all(math.isfinite(value) for value in (metrics.entropy, metrics.value_loss, metrics.kl)):
                raise RuntimeError(f"the policy is not finite after update {update}: try a smaller learning rate")
            done = Report(
                update,
                config.updates,
                env_steps=update * config.ppo.batch,
                episodes=int(metrics.episodes),
                solved=_known(metrics.solved),
                mean_return=_known(metrics.mean_return),
                length=_known(metrics.length),
                entropy=metrics.entropy,
                surrogate=metrics.surrogate,
                value_loss=metrics.value_loss,
                kl=metrics.kl,
                clipped=metrics.clipped,
                learning_rate=learning_rate,
                steps_per_s=config.ppo.batch / taken,
                cpu_s=cpu_s,
                time_s=time_s,
            )
            log.write(json.dumps(asdict(done)) + "\n")
            log.flush()
            report(done)
            if config.is_checkpoint(update):
                stage(update, "evaluating")
                _checkpoint(config, update, world, start, learner, {"cpu_s": cpu_s, "time_s": time_s, **training})
    return config.out


def _checkpoint(
    config: ExpertConfig, update: int, world: Simulation, start: Start, learner: Learner, training: dict[str, Any]
) -> None:
    """Evaluates and saves."""
    folder = config.out / "checkpoints" / f"update-{update:08d}"
    if folder.exists():
        return
    acting, ppo = Acting(learner.network, learner.statistics, start.used), config.ppo
    seed = EVALUATION_SEED + config.seed
    evaluation = play(world, start, acting, config.evaluation_episodes, ppo.max_episode_steps, seed)
    observation, used = learner.statistics.mean.shape[0], tuple(start.used.tolist())
    ExpertCheckpoint(folder, config, update, observation, used, evaluation, training).save(learner)


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
