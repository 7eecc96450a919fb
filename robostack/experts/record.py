"""Demonstrations: an expert acts in an environment, and what it saw and did is recorded.

How the episodes run follows from what the environment says. Where rows are simulations of their own, processes play
one each; where all rows are one program, it plays many at once and takes the cores by itself. Which episodes run
together is fixed by the seeds alone, since the last bit of a row depends on how many there are.
"""

from __future__ import annotations

import io
import tempfile
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, closing
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from robostack import envs
from robostack.common.processes import cores, worker_pool
from robostack.envs.description import EnvDescription, describe
from robostack.experts import Asked, Expert, make_expert


class Demonstration(NamedTuple):
    """The episode of a seed."""

    seed: int
    frames: dict[str, np.ndarray]
    """See `record_episodes`."""
    world: EnvDescription
    """What the environment says of itself."""


def demonstrations(
    env: str, asked: Asked, start: int, wanted: int, workers: int, folder: Path
) -> Generator[Demonstration]:
    """Those of the seeds from `start` on, in order and without end; a seed's is the same wherever it starts.

    At most `workers` processes (0: one per core) are begun for `wanted` of them. What does not fit into memory is
    recorded in nameless files in `folder`.
    """
    rows = envs.vector_class(env).rows_per_program
    first = asked.first + (start - asked.first) // rows * rows
    groups = (range(seed, seed + rows) for seed in count(first, rows))
    if rows == 1:
        played = _in_processes(env, asked, groups, min(workers or cores(), wanted))
    else:
        played = _in_one_program(env, asked, groups, folder)
    with closing(played):
        yield from (one for one in played if one.seed >= start)


def record_episodes(
    worlds: Any, expert: Expert, seeds: Sequence[int], folder: Path | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """An episode in every row of a vector environment, row i from seeds[i]; the result depends on nothing else.

    Each holds the observations that the expert records, `action`, `next.reward` (float32) and `next.success` (bool: the
    highest stage is reached after this step), with one row per step. Row t of an observation is what was seen before
    action t; actions are those that the expert asked for, before the environment's noise on them. An episode that
    breaks the simulation ends with the action that did.

    All episodes run at once. They are recorded in memory, or in nameless files in `folder`: 128 with pictures take
    1.5 GB. Then one step of all is in memory, and later one episode.
    """
    wanted = expert.records
    worlds.reset(seed=list(seeds))
    expert.begin(worlds, seeds)
    lengths, steps = np.zeros(len(seeds), dtype=int), 0
    with ExitStack() as files:
        tracks: dict[str, _Track] = {}
        while not lengths.all():
            seen = worlds.look(wanted)
            if missing := [key for key in wanted if key not in seen]:
                raise ValueError(f"there is no {missing[0]} to record in this environment: leave it out")
            # What is recorded is not observed again.
            actions = expert.act(lambda keys, seen=seen: seen if keys.keys() <= seen.keys() else worlds.look(keys))
            _, rewards, terminated, truncated, info = worlds.step(actions)
            step = {
                **{key: seen[key] for key in wanted},
                "action": actions,
                "next.reward": rewards.astype(np.float32),
                "next.success": info["stage"] == worlds.highest_stage,
            }
            for key, rows in step.items():
                if key not in tracks:
                    file = io.BytesIO() if folder is None else tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
                    tracks[key] = _Track(files.enter_context(file), rows)
                tracks[key].append(rows)
            steps += 1
            lengths[(terminated | truncated) & (lengths == 0)] = steps
        for i, length in enumerate(lengths):
            yield {key: track.episode(i, int(length)) for key, track in tracks.items()}


class _Track:
    """One feature of all rows over the steps."""

    def __init__(self, file: io.BufferedIOBase, like: np.ndarray) -> None:
        self._file, self._rows = file, len(like)
        self._shape, self._dtype = like.shape[1:], like.dtype
        self._size = like[0].nbytes

    def append(self, rows: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(rows).data)

    def episode(self, row: int, length: int) -> np.ndarray:
        """(length, ...) of one row."""
        frames = np.empty((length, *self._shape), self._dtype)
        for step, place in enumerate(frames.reshape(length, -1).view(np.uint8)):
            self._file.seek((step * self._rows + row) * self._size)
            self._file.readinto(place)
        return frames


def _make_worlds(env: str) -> Any:
    kind = envs.vector_class(env)
    return envs.make_vector(env, kind.rows_per_program, **kind.published)


def _in_one_program(env: str, asked: Asked, groups: Iterable[range], folder: Path) -> Generator[Demonstration]:
    worlds, expert = _make_worlds(env), make_expert(env, asked)
    world = describe(worlds)
    for seeds in groups:
        for seed, frames in zip(seeds, record_episodes(worlds, expert, seeds, folder), strict=True):
            yield Demonstration(seed, frames, world)


def _in_processes(env: str, asked: Asked, groups: Iterator[range], workers: int) -> Generator[Demonstration]:
    """Workers run a few seeds ahead."""
    with worker_pool(workers, _start_worker, env, asked) as pool:
        pending = deque[Future[list[Demonstration]]]()
        try:
            while True:
                while len(pending) < 2 * workers:
                    pending.append(pool.submit(_record_in_worker, next(groups)))
                yield from pending.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_worker: tuple[Any, Expert] | None = None


def _start_worker(env: str, asked: Asked) -> None:
    global _worker
    _worker = (_make_worlds(env), make_expert(env, asked))


def _record_in_worker(seeds: range) -> list[Demonstration]:
    assert _worker is not None
    worlds, expert = _worker
    played = zip(seeds, record_episodes(worlds, expert, seeds), strict=True)
    return [Demonstration(seed, frames, describe(worlds)) for seed, frames in played]
