"""Random windows of a data set: a batch is gathered by array indexing, not sample by sample.

A window at frame t is the observation of frame t and the chunk of actions t .. t + chunk_len − 1. Past the end of
its episode the last action is repeated and marked as padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from robostack.datasets.episodes import DataError
from robostack.datasets.store import EpisodeStore


@dataclass(frozen=True)
class Windows:
    """A batch of B windows: observations (B, ...), actions (B, chunk_len, D), is_pad (B, chunk_len), tasks (B,)."""

    observation: dict[str, np.ndarray]
    action: np.ndarray
    is_pad: np.ndarray
    task: np.ndarray


class WindowSampler:
    """Draws windows of the given observation features from a store.

    Numbers are held in memory, and so are images while all of them fit into `image_memory` bytes; else each batch
    reads its frames from the store. Every frame is a window; `frame_stride` keeps every n-th only (images of
    neighbouring frames hardly differ). Raises DataError when a feature is missing or no episode holds a chunk.
    """

    def __init__(
        self,
        store: EpisodeStore,
        observation_keys: Sequence[str],
        chunk_len: int,
        frame_stride: int = 1,
        image_memory: int = 4 << 30,
    ) -> None:
        store.require([*observation_keys, "action"])
        lengths = store.episode_ends - store.episode_starts
        if not len(lengths) or lengths.max() < chunk_len:
            longest = int(lengths.max()) if len(lengths) else 0
            raise DataError(
                f"{store.path} has too few frames for a chunk of {chunk_len} actions: its longest episode has "
                f"{longest}; record longer episodes or train with a smaller chunk_len"
            )
        self._store, self._keys, self._chunk_len = store, tuple(observation_keys), chunk_len
        self._frames = np.arange(0, store.frames, frame_stride)
        self._action = _read_finite(store, "action")
        self._end = np.repeat(store.episode_ends, lengths)
        self._task = np.repeat(store.episode_task, lengths)
        self._columns: dict[str, np.ndarray] = {}
        for key in self._keys:
            feature = store.features[key]
            kept = len(self._frames) * int(np.prod(feature.shape, dtype=np.int64))
            if not feature.is_image:
                self._columns[key] = _read_finite(store, key)[self._frames]
            elif kept <= image_memory:
                self._columns[key] = store.gather(key, self._frames)

    def __len__(self) -> int:
        """How many windows there are to draw from."""
        return len(self._frames)

    def draw(self, batch: int, rng: np.random.Generator) -> Windows:
        """`batch` windows drawn uniformly with replacement; the same generator state gives the same batch."""
        return self.gather(rng.integers(len(self._frames), size=batch))

    def gather(self, windows: np.ndarray) -> Windows:
        """The windows numbered `windows` (B,), 0 <= number < len(self)."""
        frames = self._frames[windows]
        steps = frames[:, None] + np.arange(self._chunk_len)
        last = self._end[frames][:, None] - 1
        observation = {
            key: self._columns[key][windows] if key in self._columns else self._store.gather(key, frames)
            for key in self._keys
        }
        return Windows(observation, self._action[np.minimum(steps, last)], steps > last, self._task[frames])


def _read_finite(store: EpisodeStore, key: str) -> np.ndarray:
    rows = store.read(key)
    if not np.isfinite(rows).all():
        frame = int(np.argwhere(~np.isfinite(rows))[0][0])
        episode = int(np.searchsorted(store.episode_ends, frame, side="right"))
        at = frame - int(store.episode_starts[episode])
        raise DataError(f"{store.path}: {key} is not finite in episode {episode} at frame {at}: drop or repair it")
    return rows
