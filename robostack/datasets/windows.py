"""Random windows of a data set: a batch is gathered by reading rows, not sample by sample.

A window at frame t is what was seen up to frame t and the chunk of actions t .. t + chunk_len − 1; and, if asked for,
what was seen after it. Past the end of its episode the last action is repeated and marked as padding; before the start
the first observation is repeated, past the end the last one, and marked as not valid.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, Shaped

from robostack.datasets.episodes import DataError
from robostack.datasets.moments import History, Windows
from robostack.datasets.store import EpisodeStore


class WindowSampler:
    """Draws windows of the given observation features from a store, which stays on the disk: what is used often is in
    the system's page cache.

    Every frame is a window; `frame_stride` keeps every n-th only (images of neighbouring frames hardly differ).
    With another `rate` (Hz) than the store's, the actions of a chunk stand 1 / rate apart: numbers between two frames
    are interpolated, which suits targets such as joint positions, not increments. The observation is always that of a
    frame. With a chunk_len of 0 no actions are read, past ones neither, and the data set need not have any. Raises
    DataError when a feature is missing or no episode holds a chunk.
    """

    def __init__(
        self,
        store: EpisodeStore,
        observation_keys: Sequence[str],
        chunk_len: int,
        frame_stride: int = 1,
        rate: float | None = None,
        history: History = History(),
    ) -> None:
        store.require([*observation_keys, *(["action"] if chunk_len else [])])
        self._frames_a_step = store.fps / (rate or store.fps)
        self._past, self._length = history.steps if chunk_len else 0, history.length
        # Frames from the present to each observation step, and to each action of the past and of the chunk.
        steps = np.arange(1 - history.length, 1 + history.ahead) * history.stride
        self._seen = np.round(steps * self._frames_a_step).astype(np.int64)
        self._offsets = np.arange(-self._past, chunk_len) * self._frames_a_step
        self._returns = returns_to_go(store) if history.returns else None
        # Frames from the present to the first and the last of these actions, or to the frame beyond.
        ends = self._offsets[[0, -1]] if chunk_len else np.zeros(2)
        self._before, after = (int(np.ceil(round(abs(offset), 9))) for offset in ends)
        self._span = after + 1
        lengths = store.episode_ends - store.episode_starts
        if not len(lengths) or lengths.max() < self._span:
            longest = int(lengths.max()) if len(lengths) else 0
            raise DataError(
                f"{store.path} has too few frames for a chunk of {chunk_len} actions, which takes {self._span}: its "
                f"longest episode has {longest}; record longer episodes or train with a smaller chunk_len"
            )
        if chunk_len and self._frames_a_step != 1.0 and store.features["action"].dtype not in ("float32", "float64"):
            raise DataError(f"{store.path}: actions of {store.features['action'].dtype} cannot be brought to {rate} Hz")
        self._store, self._keys, self._stride = store, tuple(observation_keys), frame_stride

    def __len__(self) -> int:
        """How many windows there are to draw from."""
        return -(-self._store.frames // self._stride)

    def draw(self, batch: int, rng: np.random.Generator) -> Windows:
        """`batch` windows drawn uniformly with replacement; the same generator state gives the same batch."""
        return self.gather(rng.integers(len(self), size=batch))

    def gather(self, windows: Int[np.ndarray, " batch"]) -> Windows:
        """The windows numbered `windows`, 0 <= number < len(self). Raises DataError, naming episode and frame, for
        numbers that are not finite."""
        frames, store = windows * self._stride, self._store
        episode = np.searchsorted(store.episode_ends, frames, side="right")
        first, last = store.episode_starts[episode][:, None], store.episode_ends[episode][:, None] - 1
        actions = self._actions(frames[:, None], first, last)
        past, action = actions[:, : self._past], actions[:, self._past :]
        steps = frames[:, None] + self._offsets
        # A step at another rate is rounded: it counts as outside by more than that.
        acted = steps[:, : self._past] >= first - 1e-6
        is_pad = steps[:, self._past :] > last + 1e-6
        seen = frames[:, None] + self._seen
        shown = np.clip(seen, first, last)
        observation = {key: self._at(key, shown) for key in self._keys}
        for key, values in (("action", actions), *observation.items()):
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                row = int(np.argwhere(~np.isfinite(values))[0][0])
                start = max(int(first[row, 0]), int(frames[row]) - max(self._before, -int(self._seen[0])))
                end = int(frames[row]) + max(self._span, int(self._seen[-1]) + 1)
                store.read_finite(key, start, min(end, store.frames))
        valid, now = (seen >= first) & (seen <= last), self._length
        return Windows(
            {key: rows[:, :now] for key, rows in observation.items()},
            valid[:, :now],
            past,
            acted,
            None if self._returns is None else self._returns[shown[:, :now]],
            action=action,
            is_pad=is_pad,
            task=store.tasks_at(frames),
            ahead={key: rows[:, now:] for key, rows in observation.items()},
            ahead_valid=valid[:, now:],
        )

    def _actions(self, frames: np.ndarray, first: np.ndarray, last: np.ndarray) -> np.ndarray:
        """The actions at all offsets from `frames` (batch, 1), held at the ends of the episode: (batch, steps, dim)."""
        if not len(self._offsets):
            return np.zeros((len(frames), 0, 0), np.float32)
        # Near the ends of the data a span is read from further inside, and some of its rows are not used.
        length = min(self._before + self._span, self._store.frames)
        starts = np.clip(frames - self._before, 0, self._store.frames - length)
        rows = self._store.windows("action", starts[:, 0], length).reshape(len(starts), length, -1)
        if self._frames_a_step != 1.0:
            return _interpolate(rows, np.clip(frames + self._offsets, first, last) - starts)
        if length == self._before + self._span:
            # Most windows lie inside their episode and are as they were read.
            moved = np.flatnonzero((frames - self._before < first) | (frames + self._span - 1 > last))
        else:
            moved = np.arange(len(rows))
        at = np.clip(frames[moved] + self._offsets.astype(np.int64), first[moved], last[moved]) - starts[moved]
        taken = rows[moved[:, None], at]
        if len(moved) == len(rows):
            return taken
        rows[moved] = taken
        return rows

    def _at(self, key: str, frames: Int[np.ndarray, "batch obs_steps"]) -> np.ndarray:
        """Rows of a feature, (batch, obs_steps, *shape)."""
        rows = self._store.gather(key, frames.ravel())
        return rows.reshape(*frames.shape, *rows.shape[1:])


def returns_to_go(store: EpisodeStore) -> Float[np.ndarray, " frames"]:
    """The sum of `next.reward` from each frame to the end of its episode, float32.

    Raises DataError when there is no reward, or one that is not finite.
    """
    store.require(["next.reward"])
    returns = np.empty(store.frames, np.float32)
    for start, end in zip(store.episode_starts, store.episode_ends, strict=True):
        rewards = store.read_finite("next.reward", int(start), int(end)).astype(np.float64).reshape(end - start)
        returns[start:end] = np.cumsum(rewards[::-1])[::-1]
    return returns


def _interpolate(
    rows: Shaped[np.ndarray, "batch span dim"], at: Shaped[np.ndarray, "batch chunk_len"]
) -> Shaped[np.ndarray, "batch chunk_len dim"]:
    """Rows at fractional places `at`, between the two neighbours in proportion."""
    below = np.floor(at + 1e-9).astype(np.int64)
    above = np.minimum(below + 1, rows.shape[1] - 1)
    share = np.clip(at - below, 0.0, 1.0).astype(rows.dtype)[..., None]
    samples = np.arange(len(rows))[:, None]
    return rows[samples, below] * (1 - share) + rows[samples, above] * share
