"""Episodes of an actor in an environment, over processes, and what they add up to.

One episode is one seed: its start, its noise and so its outcome are a function of that seed, on any number of workers.
Environments whose rows are one program run as many episodes at once as it has rows; which ones is fixed by the seeds
alone, since a row's last bit depends on how many rows there are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
from gymnasium.vector import AutoresetMode

from robostack import envs
from robostack.common.processes import cores, worker_pool
from robostack.evaluation.actors import Actor

VIDEO_STRIDE = 2
"""Every second control step becomes a frame: half the rendering."""


@runtime_checkable
class Worlds(Protocol):
    """What an actor acts in: a vector environment of which every row is an episode."""

    num_envs: int
    metadata: Mapping[str, Any]
    task: str
    robot: str
    highest_stage: int
    """What `info["stage"]` says where the task is done."""

    def reset(self, *, seed: Sequence[int]) -> tuple[Mapping[str, np.ndarray], Mapping[str, Any]]: ...

    def step(
        self, actions: np.ndarray
    ) -> tuple[Mapping[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray, Mapping[str, Any]]: ...

    def look(self, wanted: Mapping[str, tuple[int, ...]]) -> Mapping[str, np.ndarray]:
        """Those of the wanted observations (key to shape of a row) that the environments give, rendered only now."""
        ...

    def picture(self, index: int) -> np.ndarray:
        """A picture of a row for people, (height, width, 3) uint8."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Outcome:
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
    """Wall time of each chunk or plan, of all rows together."""


@dataclass
class _Row:
    """An episode while it runs."""

    seed: int
    stages: list[int] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    diverged: int | None = None
    chunks: int = 0
    """Chunks or plans that it took part in."""

    def episode(self, highest: int, latencies_ms: Sequence[float]) -> Outcome:
        reached = [step for step, stage in enumerate(self.stages) if stage == highest]
        return Outcome(
            seed=self.seed,
            success=bool(reached),
            final=self.diverged is None and self.stages[-1] == highest,
            stage_max=max(self.stages, default=0),
            stage_final=self.stages[-1] if self.diverged is None else 0,
            first_success_step=reached[0] if reached else None,
            diverged_step=self.diverged,
            total_reward=sum(self.rewards),
            latencies_ms=tuple(latencies_ms[: self.chunks]),
        )


def run_together(
    worlds: Worlds, actor: Actor, seeds: Sequence[int], videos: Mapping[int, Path] | None = None
) -> list[Outcome]:
    """An episode of each of the seeds, as many as there are rows, to its end; those in `videos` are filmed.

    Raises ValueError for actions that are not finite.
    """
    if len(seeds) != worlds.num_envs:
        raise ValueError(f"expected {worlds.num_envs} seeds, one per row, got {len(seeds)}")
    worlds.reset(seed=list(seeds))
    actor.begin(worlds, seeds)
    rows = [_Row(seed) for seed in seeds]
    films: dict[int, list[np.ndarray]] = {i: [] for i, seed in enumerate(seeds) if seed in (videos or {})}
    running, rewards = np.ones(len(seeds), dtype=bool), np.zeros(len(seeds))
    step = 0
    while running.any():
        if step % VIDEO_STRIDE == 0:
            for i, frames in films.items():
                if running[i]:
                    frames.append(worlds.picture(i))
        actions = actor.act(worlds.look, rewards)
        if len(bad := np.flatnonzero(~np.isfinite(actions).all(axis=1))):
            raise ValueError(f"the policy put out actions that are not finite in the episode of seed {seeds[bad[0]]}")
        _, rewards, terminated, truncated, info = worlds.step(actions)
        diverged = info.get("diverged", np.zeros(len(seeds), dtype=bool))
        over = terminated | truncated | diverged
        for i in map(int, np.flatnonzero(running)):
            rows[i].chunks = len(actor.latencies_ms)
            if diverged[i]:
                rows[i].diverged = step
            else:
                rows[i].stages.append(int(info["stage"][i]))
                rows[i].rewards.append(float(rewards[i]))
            if over[i] and i in films and worlds.metadata["autoreset_mode"] is not AutoresetMode.SAME_STEP:
                films[i].append(worlds.picture(i))  # else the row shows its next episode already
        running = running & ~over
        step += 1
    for i, frames in films.items():
        from robostack.datasets.formats.video import write_video

        assert videos is not None
        write_video(videos[seeds[i]], frames, worlds.metadata["render_fps"] / VIDEO_STRIDE)
    return [row.episode(worlds.highest_stage, actor.latencies_ms) for row in rows]


# The worlds and the actor of a process, made once: both take longer to build than an episode to run.
_worker: tuple[Worlds, Actor] | None = None


def _start_worker(env_name: str, make_actor: Callable[[], Actor]) -> None:
    import torch

    torch.set_num_threads(1)  # the processes are the parallelism; and the sums do not depend on how many there are
    global _worker
    _worker = (make_worlds(env_name), make_actor())


def _run_in_worker(seeds: Sequence[int], videos: Mapping[int, Path]) -> list[Outcome]:
    assert _worker is not None
    return run_together(*_worker, seeds, videos)


def make_worlds(env_name: str) -> Worlds:
    """The environment as results are published, with the rows of one program. Raises as `envs.resolve`."""
    kind = envs.vector_class(env_name)
    worlds = envs.make_vector(env_name, kind.rows_per_program, render_mode="rgb_array", **kind.published)
    return cast(Worlds, worlds)


def run_episodes(
    env_name: str,
    make_actor: Callable[[], Actor],
    seeds: range,
    workers: int = 0,
    videos: Mapping[int, Path] | None = None,
    wanted: Collection[int] | None = None,
) -> Iterator[Outcome]:
    """Episodes of `seeds` as they end, on `workers` processes (0: one per core), in each of which `make_actor` is
    called. One alone is this process.

    With `wanted`, or `videos`, seed to path, those alone are given, and filmed: just as they come out among all of
    `seeds`, which are run together in groups from the first on.
    """
    together, films = envs.vector_class(env_name).rows_per_program, dict(videos or {})
    asked = films or (seeds if wanted is None else wanted)
    groups = [range(first, first + together) for first in range(seeds.start, seeds.stop, together)]
    groups = [group for group in groups if any(seed in asked for seed in group)]
    workers = min(workers or cores(), len(groups))
    if workers <= 1:
        results = _run_here(env_name, make_actor, groups, films)
    else:
        results = _run_in_pool(env_name, make_actor, groups, films, workers)
    for episodes in results:
        yield from (episode for episode in episodes if episode.seed in asked)


def _run_here(
    env_name: str, make_actor: Callable[[], Actor], groups: Sequence[range], films: Mapping[int, Path]
) -> Iterator[list[Outcome]]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the workers: results depend on it
    try:
        worlds = make_worlds(env_name)
        try:
            actor = make_actor()
            for group in groups:
                yield run_together(worlds, actor, group, films)
        finally:
            worlds.close()
    finally:
        torch.set_num_threads(threads)


def _run_in_pool(
    env_name: str, make_actor: Callable[[], Actor], groups: Sequence[range], films: Mapping[int, Path], workers: int
) -> Iterator[list[Outcome]]:
    with worker_pool(workers, _start_worker, env_name, make_actor) as pool:
        pending = [
            pool.submit(_run_in_worker, group, {seed: films[seed] for seed in group if seed in films})
            for group in groups
        ]
        try:
            for future in as_completed(pending):
                yield future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
