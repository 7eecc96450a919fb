"""The chunk scheduler: which of the predicted actions is run at a control step, and when a new chunk is due.

A policy predicts chunks that overlap in time. Every `execute_len` steps a new one is due; where several speak of the
same step, `blend` makes one action of them: the newest alone, or ACT's temporal ensemble. Robots that are controlled in
step share a scheduler: their actions are rows of one array.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

import numpy as np
from jaxtyping import Float

Blend = Callable[[np.ndarray], np.ndarray]
"""(chunks, *rows, action_dim), what each chunk says of this step, oldest chunk first ↦ (*rows, action_dim)."""


def newest_chunk(actions: Float[np.ndarray, "chunks *rows action_dim"]) -> Float[np.ndarray, "*rows action_dim"]:
    """What the newest chunk says."""
    return actions[-1]


def temporal_ensemble(decay: float = 0.01) -> Blend:
    """Σ wᵢ aᵢ / Σ wᵢ with wᵢ = exp(−decay · i), i = 0 for the oldest chunk (ACT, arXiv 2304.13705, section IV.B).

    A decay of 0 is the mean; the larger it is, the longer the first prediction counts. Raises ValueError below 0.
    """
    if decay < 0.0:
        raise ValueError(f"the decay of a temporal ensemble must not be negative, got {decay}")

    def blend(actions: Float[np.ndarray, "chunks *rows action_dim"]) -> Float[np.ndarray, "*rows action_dim"]:
        weights = np.exp(-decay * np.arange(len(actions)))
        return np.tensordot(weights / weights.sum(), actions, axes=1).astype(actions.dtype)

    return blend


class ChunkScheduler:
    """Takes chunks when they are `due` and gives one action a control step."""

    def __init__(self, execute_len: int, blend: Blend = newest_chunk) -> None:
        if execute_len < 1:
            raise ValueError(f"execute_len must be at least 1, got {execute_len}")
        self._execute_len, self._blend = execute_len, blend
        self.reset()

    def reset(self) -> None:
        """Forgets all chunks: a new episode begins."""
        self._step, self._begun = 0, -self._execute_len
        self._chunks: deque[tuple[int, np.ndarray]] = deque()
        """First step and actions of the chunks that reach beyond the present."""

    @property
    def due(self) -> bool:
        """Whether a new chunk is wanted before the next action."""
        return self._step - self._begun >= self._execute_len

    def wants_observation(self, ages: Iterable[int]) -> bool:
        """Whether some chunk will be made from what is seen at this step, if each is made from the observations of
        `ages` steps before it, 0 for the step itself. Call it before `put`."""
        next_due = max(self._step, self._begun + self._execute_len)
        waits = (self._step + age - next_due for age in ages)
        return any(wait >= 0 and wait % self._execute_len == 0 for wait in waits)

    def put(self, chunk: Float[np.ndarray, "chunk_len *rows action_dim"]) -> None:
        """A chunk whose first action is for the next step."""
        self._chunks.append((self._step, chunk))
        self._begun = self._step

    def next(self) -> Float[np.ndarray, "*rows action_dim"]:
        """The action of this step; the next call is of the next step. Raises RuntimeError when no chunk reaches it."""
        while self._chunks and self._step - self._chunks[0][0] >= len(self._chunks[0][1]):
            self._chunks.popleft()
        if not self._chunks:
            raise RuntimeError(f"no chunk reaches step {self._step}: put one whenever one is due")
        action = self._blend(np.stack([chunk[self._step - begun] for begun, chunk in self._chunks]))
        self._step += 1
        return action
