"""The training of an expert: updates, a log, checkpoints of several qualities, and going on where it stopped.

What an update does follows from the state of training alone, all of which is in a checkpoint: a resumed run goes on
bit for bit. A run has its folder as soon as its first update is found sound, and can be resumed from then on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from robostack.common import log
from robostack.common.files import refuse_taken, room_needed, whole_folder
from robostack.common.interrupt import held_back, saying
from robostack.common.log import LOG_FILE, Log
from robostack.common.provenance import describe_run
from robostack.envs.kinetix import package  # noqa: F401 (first of all: says in one line what is not installed)
from robostack.envs.kinetix.levels import load_level
from robostack.envs.kinetix.simulation import Simulation
from robostack.experts.ppo.acting import Acting, play, used_controls
from robostack.experts.ppo.algorithm import Learner, Metrics, Start, update_program
from robostack.experts.ppo.checkpoint import (
    RUN_FILE,
    ExpertCheckpoint,
    ExpertError,
    ExpertTraining,
    resume_expert_command,
)
from robostack.experts.ppo.config import CHECKPOINTS, EXPERT_FILE, ExpertConfig, level_of

__all__ = ["LOG_FILE", "UpdateReport", "read_updates", "resume_expert", "train_expert", "world_of"]

EVALUATION_SEED = 4_000_000
"""Added to the seed of training: the noise of evaluation episodes."""


@dataclass(frozen=True)
class UpdateReport:
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


def train_expert(
    config: ExpertConfig,
    report: Callable[[UpdateReport], None] = lambda _: None,
    stage: Callable[[int, str], None] = lambda *_: None,
) -> Path:
    """Trains an expert from scratch and returns the folder of the run.

    `report` is told about every update; `stage`, with the number of updates made, what else takes a while: compiling,
    evaluating. Raises FileExistsError where `config.out` is taken, ValueError where the environment is unknown, has a
    scripted expert or nothing in it can be moved, RuntimeError where the policy is no longer finite, DiskFullError and
    Interrupted, which say what is kept and how to go on.
    """
    resumable = (config.out / RUN_FILE).exists() or (config.out / "checkpoints").exists()
    go_on = f"{resume_expert_command(config.out)} goes on with it, or choose another folder"
    refuse_taken(config.out, go_on if resumable else "choose another folder, or remove it first")
    level_of(config.env)
    training = ExpertTraining(cpu_s=0.0, time_s=0.0, **describe_run())
    return _run(config, None, training, report, stage)


def resume_expert(
    run: Path,
    report: Callable[[UpdateReport], None] = lambda _: None,
    stage: Callable[[int, str], None] = lambda *_: None,
) -> Path:
    """Continues the run in a folder from its last checkpoint, or its start where there is none, with its own settings;
    see `train_expert`.

    Raises ExpertError where there is no run or its checkpoint is damaged, and as `train_expert`.
    """
    begun = None if any(run.glob(f"checkpoints/{CHECKPOINTS}/{EXPERT_FILE}")) else ExpertCheckpoint.read_start(run)
    checkpoint = begun or ExpertCheckpoint.read(run)
    if checkpoint.path == run and begun is None:
        raise ExpertError(f"{run} is a checkpoint: name the folder of its run")
    training = checkpoint.training.goes_on(checkpoint.update)
    return _run(replace(checkpoint.config, out=run), None if begun else checkpoint, training, report, stage)


def read_updates(run: Path) -> list[dict[str, Any]]:
    """The reports of a run, oldest first; see `robostack.common.log.read_reports`."""
    return log.read_reports(run, UpdateReport)


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
    training: ExpertTraining,
    report: Callable[[UpdateReport], None],
    stage: Callable[[int, str], None],
) -> Path:
    world, start = world_of(config)
    make = partial(Learner.initial, world, start, config.ppo, config.seed)
    # Of a checkpoint, what its files hold is compared before memory is taken for what its settings say.
    learner, update, kept = (
        (make(), 0, []) if begun is None else (begun.learner(jax.eval_shape(make)), begun.update, [])
    )
    if begun is not None:
        kept = [line for line in read_updates(config.out) if line["update"] <= update]
    run = _ExpertRun(config, world, start, training, learner, update)
    if begun is not None and begun.evaluation is None and config.is_checkpoint(update):
        stage(update, "evaluating")  # it was stopped before that
        begun.save_evaluation(run.evaluate())
    stage(update, "compiling")
    program = update_program(world, config.ppo).lower(start, learner, jnp.float32(0)).compile()
    cpu_s, time_s = (kept[-1]["cpu_s"], kept[-1]["time_s"]) if kept else (0.0, 0.0)
    with ExitStack() as opened, saying(run.keep), held_back() as let_through:
        lines = None
        while run.update < config.updates:
            let_through()
            cpu_then, then = time.process_time(), time.perf_counter()
            learning_rate = config.ppo.learning_rate * (1 - run.update / config.updates)
            learner, metrics = program(start, run.learner, jnp.float32(learning_rate))
            metrics = Metrics(*(float(value) for value in metrics))
            cpu_s += time.process_time() - cpu_then
            time_s += (taken := time.perf_counter() - then)
            update = run.update + 1
            if not all(math.isfinite(value) for value in (metrics.entropy, metrics.value_loss, metrics.kl)):
                raise RuntimeError(
                    f"the policy is not finite after update {update}: {run.kept()}; try a smaller learning rate"
                )
            if lines is None:  # now the settings are known to work
                lines = opened.enter_context(run.begin(kept))
            run.advance(learner, update, cpu_s, time_s)
            done = UpdateReport(
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
            with run.room(LOG_FILE):
                lines.write(done)
            report(done)
            if config.is_checkpoint(update):
                stage(update, "evaluating")
                run.save(run.evaluate())
    return config.out


@dataclass
class _ExpertRun:
    """The state of a training, its folder, and what is said of that when it is stopped."""

    config: ExpertConfig
    world: Simulation
    start: Start
    training: ExpertTraining
    learner: Learner
    update: int
    saved: int = field(init=False)
    """Update of the last checkpoint; 0 where there is none."""

    def __post_init__(self) -> None:
        self.saved = self.update

    def advance(self, learner: Learner, update: int, cpu_s: float, time_s: float) -> None:
        training = replace(self.training, cpu_s=cpu_s, time_s=time_s)
        self.learner, self.update, self.training = learner, update, training

    def evaluate(self) -> dict[str, Any]:
        """How often the best action solves the level."""
        acting = Acting(self.learner.network, self.learner.statistics, self.start.used)
        steps, seed = self.config.ppo.max_episode_steps, EVALUATION_SEED + self.config.seed
        return play(self.world, self.start, acting, self.config.evaluation_episodes, steps, seed)

    def begin(self, kept: list[dict[str, Any]]) -> Log:
        """Makes the folder where there is none yet, and opens its log."""
        out = self.config.out
        with self.room(RUN_FILE):
            if not out.exists():
                with whole_folder(out) as folder:
                    self._checkpoint(out, None).save_start(folder)
            elif not self.saved and not (out / RUN_FILE).exists():
                self._checkpoint(out, None).save_start(out)
            return Log(out, kept)

    def save(self, evaluation: dict[str, Any] | None) -> None:
        """A checkpoint of the state as it is, unless there is one."""
        folder = self.config.out / "checkpoints" / f"update-{self.update:08d}"
        if self.update != self.saved and not folder.exists():
            try:
                with self.room(f"checkpoints/{folder.name}"):
                    self._checkpoint(folder, evaluation).save(self.learner)
            except ExpertError as error:
                raise RuntimeError(f"{error}: {self.kept()}; try a smaller learning rate") from error
        self.saved = self.update

    def keep(self) -> str:
        """Saves what is there between two updates; says what is kept and how to go on."""
        if self.update:
            self.save(None)
        return self.kept()

    def kept(self) -> str:
        out = self.config.out
        if self.saved:
            return f"{out}/checkpoints/update-{self.saved:08d} is kept, and {resume_expert_command(out)} goes on"
        if (out / RUN_FILE).exists():
            return f"no checkpoint was made yet; {resume_expert_command(out)} starts from update 0"
        return "nothing was begun"

    def room(self, name: str) -> AbstractContextManager[None]:
        """Turns a full disk into what is kept and how to go on."""
        return room_needed(self.config.out / name, f"{self.kept()}; make room first")

    def _checkpoint(self, folder: Path, evaluation: dict[str, Any] | None) -> ExpertCheckpoint:
        observation, used = self.learner.statistics.mean.shape[0], tuple(self.start.used.tolist())
        return ExpertCheckpoint(folder, self.config, self.update, observation, used, evaluation, self.training)


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
