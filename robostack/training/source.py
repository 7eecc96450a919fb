"""The data sets of a run: opened by what the user wrote, mixed to a stream of batches, described for the checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from robostack.datasets.episodes import DataError
from robostack.datasets.mixture import Mixture, name_robots
from robostack.datasets.moments import Windows
from robostack.datasets.store import EpisodeStore
from robostack.datasets.windows import WindowSampler
from robostack.policies.checkpoint import TrainedOn
from robostack.policies.processor import Processor
from robostack.policies.protocol import PolicyConfig
from robostack.training.config import TrainConfig

ROWS_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class Source:
    """The data sets of a run, as the stream of batches that it trains on."""

    stores: Sequence[EpisodeStore]
    robots: Sequence[str]
    mixture: Mixture

    @staticmethod
    def of(stores: Sequence[EpisodeStore], processor: Processor, policy: PolicyConfig, train: TrainConfig) -> Source:
        """Raises DataError when a data set has no window, or lacks what its robot observes."""
        robots = name_robots(stores, (*processor.keys, "action"), train.robots)
        samplers = [
            WindowSampler(
                store,
                processor.keys_of(robot),
                policy.chunk_len,
                train.frame_stride,
                processor.rate,
                policy.history,
            )
            for store, robot in zip(stores, robots, strict=True)
        ]
        return Source(stores, robots, Mixture(samplers, train.weights))

    def draw(self, batch: int, rng: np.random.Generator) -> list[tuple[str, Windows, list[str]]]:
        """(robot, windows, task texts) for each data set that has a share in the batch."""
        return [
            (self.robots[part.source], part.windows, [self.stores[part.source].tasks[i] for i in part.windows.task])
            for part in self.mixture.draw(batch, rng)
        ]

    def describe(self) -> tuple[TrainedOn, ...]:
        """What the checkpoint says of its data, and a resumed run compares. Reads all actions once, at the speed of
        the disk: 56 MB for 10⁶ frames of 14 joints."""
        return tuple(
            TrainedOn(str(store.path), store.episodes, store.frames, _seeds(store), _actions_sha256(store))
            for store in self.stores
        )


def differing(then: Sequence[TrainedOn], now: Sequence[TrainedOn]) -> str:
    """What is not as it was, in words; "" where all is."""
    if len(then) != len(now):
        return f"{len(then)} data sets, now {len(now)}"
    for old, new in zip(then, now, strict=True):
        if not old.actions_sha256:
            new = replace(new, actions_sha256="")
        counts = [
            f"{was} {name}, now {got}"
            for name, was, got in (
                ("episodes", old.episodes, new.episodes),
                ("frames", old.frames, new.frames),
                ("as its seeds", old.seeds or "none", new.seeds or "none"),
            )
            if was != got
        ]
        if counts or old != new:
            return f"{old.path} with {', '.join(counts) or 'other actions than it has now'}"
    return ""


def _seeds(store: EpisodeStore) -> tuple[int, int] | None:
    """The first and last seed of its demonstrations, where it says any."""
    match store.provenance.get("seeds"):
        case None:
            return None
        case [int(first), int(last)]:
            return int(first), int(last)
        case other:
            raise DataError(f"{store.path}: expected the first and last of its seeds, got {ascii(other)[:60]}")


def _actions_sha256(store: EpisodeStore) -> str:
    digest = hashlib.sha256()
    for start in range(0, store.frames, ROWS_AT_ONCE):
        rows = store.read("action", start, min(start + ROWS_AT_ONCE, store.frames))
        digest.update(np.ascontiguousarray(rows).tobytes())
    return digest.hexdigest()
