"""Episodes of an actor in an environment, over processes, and what they add up to.

One episode is one seed: its start, its noise and so its outcome are a function of that seed alone, on any number of
workers and beside any other episodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from robostack import envs
from robostack.envs.aloha.cameras import image_key, parse_camera
from robostack.evaluation.actors import Actor
from robostack.processes import cores, worker_pool

SUCCESS_STAGE = 4
"""The highest stage of a task: reward 4 in ALOHA."""
VIDEO_STRIDE = 2
"""Every second control step becomes a frame: 25 frames/s at 50 Hz, half the rendering."""


@dataclass(frozen=True)
class Episode:
    """What became of one seed."""

    seed: int
    success: bool
    """The highest stage was reached at some step, as gym_aloha counts."""
    final: bool
    """It still held at the end of the episode."""
    stage_max: int
    stage_final: int
    first_success_step: int | None
    diverged_step: int | None
    """Where the simulation broke down under the actor's actions, which ends the episode as a failure."""
    total_reward: float
    """The sum of the rewards: the return that a decision transformer is asked for."""
    latencies_ms: tuple[float, ...]
    """Wall time of each chunk or plan."""


def run_episode(env: gym.Env, actor: Actor, seed: int, video: Path | None = None) -> Episode:
    """One episode from `seed` to its time limit, as a video (25 frames/s) if a path is given."""
    observation, _ = env.reset(seed=seed)
    actor.begin(env, seed)
    stages: list[int] = []
    rewards: list[float] = []
    frames: list[np.ndarray] = []
    over, diverged = False, None
    while not over:
        if video is not None and len(stages) % VIDEO_STRIDE == 0:
            frames.append(_picture(env))
        action = actor.act(partial(_look, env, observation, actor), rewards[-1] if rewards else 0.0)
        if not np.isfinite(action).all():
            raise ValueError(f"the policy put out actions that are not finite in the episode of seed {seed}")
        try:
            observation, reward, terminated, truncated, info = env.step(action)
        except FloatingPointError:
            diverged, over = len(stages), True
        else:
            stages.append(info["stage"])
            rewards.append(float(reward))
            over = terminated or truncated
    if video is not None:
        from robostack.datasets.video import write_video

        write_video(video, [*frames, _picture(env)], env.metadata["render_fps"] / VIDEO_STRIDE)
    reached = [step for step, stage in enumerate(stages) if stage == SUCCESS_STAGE]
    return Episode(
        seed=seed,
        success=bool(reached),
        final=diverged is None and stages[-1] == SUCCESS_STAGE,
        stage_max=max(stages, default=0),
        stage_final=stages[-1] if diverged is None else 0,
        first_success_step=reached[0] if reached else None,
        diverged_step=diverged,
        total_reward=sum(rewards),
        latencies_ms=tuple(actor.latencies_ms),
    )


def _look(env: gym.Env, observation: dict[str, np.ndarray], actor: Actor) -> dict[str, np.ndarray]:
    """The observation with the actor's cameras, rendered only now that somebody looks."""
    if not actor.cameras:
        return observation
    render: Callable[..., np.ndarray] = env.get_wrapper_attr("render_camera")
    cameras = [parse_camera(f"{name}:{height}x{width}") for name, (height, width) in actor.cameras.items()]
    return {**observation, **{image_key(camera): render(camera) for camera in cameras}}


def _picture(env: gym.Env) -> np.ndarray:
    frame = env.render()
    assert isinstance(frame, np.ndarray)
    return frame


# One environment and one actor a process, made once: both take longer to build than an episode to run.
_worker: tuple[gym.Env, Actor] | None = None


def _start_worker(env_name: str, make_actor: Callable[[], Actor]) -> None:
    import torch

    torch.set_num_threads(1)  # the processes are the parallelism; and the sums do not depend on how many there are
    global _worker
    _worker = (envs.make(env_name, render_mode="rgb_array"), make_actor())


def _run_in_worker(seed: int, video: Path | None) -> Episode:
    assert _worker is not None
    return run_episode(*_worker, seed, video)


def run_episodes(
    env_name: str, make_actor: Callable[[], Actor], seeds: Sequence[int], workers: int = 0, videos: Path | None = None
) -> Iterator[Episode]:
    """Episodes of `seeds` as they end, on `workers` processes (0: one a core); `make_actor` is called in each.

    With a folder `videos` every episode is filmed to <seed>.mp4 in it.
    """
    with worker_pool(min(workers or cores(), len(seeds)), _start_worker, env_name, make_actor) as pool:
        futures: list[Future[Any]] = [
            pool.submit(_run_in_worker, seed, None if videos is None else videos / f"{seed}.mp4") for seed in seeds
        ]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
