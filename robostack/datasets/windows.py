"""Random windows of a data set: a batch is gathered by reading rows, not sample by sample.

A window at frame t is the observation of frame t and the chunk of actions t .. t + chunk_len − 1. Past the end of
its episode the last action is repeated and marked as padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, Shaped

from robostack.datasets.episodes import DataError
from robostack.datasets.store import EpisodeStore


@dataclass(frozen=True)
class Windows:
    """A batch of B windows."""

    observation: dict[str, np.ndarray]
    """(B, *shape) by feature."""
    action: Shaped[np.ndarray, "batch chunk_len action_dim"]
    is_pad: Bool[np.ndarray, "batch chunk_len"]
    task: Int[np.ndarray, " batch"]
    """Index into the texts of the data set."""


class WindowSampler:
    """Draws windows of the given observation features from a store, which stays on the disk: what is used often is in
    the system's page cache.

    Every frame is a window; `frame_stride` keeps every n-th only (images of neighbouring frames hardly differ).
    With another `rate` (Hz) than the store's, the actions of a chunk stand 1 / rate apart: numbers between two frames
    are interpolated, which suits targets such as joint positions, not increments. The observation is always that of a
    frame. Raises DataError when a feature is missing or no episode holds a chunk.
    """

    def __init__(
        self,
        store: EpisodeStore,
        observation_keys: Sequence[str],
        chunk_len: int,
        frame_stride: int = 1,
        rate: float | None = None,
    ) -> None:
        store.require([*observation_keys, "action"])
        self._frames_a_step = store.fps / (rate or store.fps)
        # Frames from the first action of a chunk to its last, or to the frame after it where it lies between two.
        self._span = 1 + int(np.ceil(round((chunk_len - 1) * self._frames_a_step, 9)))
        lengths = store.episode_ends - store.episode_starts
        if not len(lengths) or lengths.max() < self._span:
            longest = int(lengths.max()) if len(lengths) else 0
            raise DataError(
                f"{store.path} has too few frames for a chunk of {chunk_len} actions, which takes {self._span}: its "
                f"longest episode has {longest}; record longer episodes or train with a smaller chunk_len"
            )
        if self._frames_a_step != 1.0 and store.features["action"].dtype not in ("float32", "float64"):
            raise DataError(f"{store.path}: actions of {store.features['action'].dtype} cannot be brought to {rate} Hz")
        self._store, self._keys, self._chunk_len, self._stride = store, tuple(observation_keys), chunk_len, frame_stride

    def __len__(self) -> int:
        """How many windows there are to draw from."""
        return -(-self._store.frames // self._stride)

    def draw(self, batch: int, rng: np.random.Generator) -> Windows:
        """`batch` windows drawn uniformly with replacement; the same generator state gives the same batch."""
        return self.gather(rng.integers(len(self), size=batch))

    def gather(self, windows: Int[np.ndarray, " batch"]) -> Windows:
        """The windows numbered `windows`, 0 <= number < len(self). Raises DataError, naming episode and frame, for
        numbers that are not finite."""
        frames = windows * self._stride
        store = self._store
        end = store.episode_ends[np.searchsorted(store.episode_ends, frames, side="right")]
        # Near the end of the data a span is read from further ahead, and its first rows are not used.
        starts = np.minimum(frames, store.frames - self._span)
        rows = store.windows("action", starts, self._span)
        last = (end - 1 - frames)[:, None]
        steps = np.arange(self._chunk_len) * self._frames_a_step
        is_pad = steps > last + 1e-6  # steps at another rate are rounded
        if self._frames_a_step != 1.0:
            action = _interpolate(rows, (frames - starts)[:, None] + np.minimum(steps, last))
        else:
            action = rows
            moved = np.flatnonzero(is_pad.any(1) | (starts < frames))
            taken = (frames - starts)[moved, None] + np.minimum(np.arange(self._chunk_len), last[moved])
            action[moved] = rows[moved[:, None], taken]
        observation = {key: store.gather(key, frames) for key in self._keys}
        for key, values in (("action", action), *observation.items()):
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                first = int(frames[np.argwhere(~np.isfinite(values))[0][0]])
                store.read_finite(key, first, min(first + self._span, store.frames))
        return Windows(observation, action, is_pad, store.tasks_at(frames))


def _interpolate(
    rows: Shaped[np.ndarray, "batch span dim"], at: Shaped[np.ndarray, "batch chunk_len"]
) -> Shaped[np.ndarray, "batch chunk_len dim"]:
    """Rows at fractional places `at`, between the two neighbours in proportion."""
    below = np.floor(at + 1e-9).astype(np.int64)
    above = np.minimum(below + 1, rows.shape[1] - 1)
    share = np.clip(at - below, 0.0, 1.0).astype(rows.dtype)[..., None]
    samples = np.arange(len(rows))[:, None]
    return rows[samples, below] * (1 - share) + rows[samples, above] * share
