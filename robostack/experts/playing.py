"""Episodes of trained experts in a vector environment, recorded without holding them in memory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

STATE = "observation.state"


def play_together(
    worlds: Any,
    experts: Sequence[Any],
    players: np.ndarray,
    seeds: Sequence[int],
    observe: Sequence[str],
    folder: Path | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """An episode in every row of a vector environment of Kinetix, row i by experts[players[i]] from seeds[i].

    Row t of an observation is what was seen before action t; the actions are those that the expert asked for, before
    the environment's noise on them. All episodes run at once and are recorded in nameless files in `folder` (the
    system's own for such, by default): 128 with pictures take 1.5 GB. In memory is one step of all, then one episode.

    Raises ValueError for an observation that the environment does not have.
    """
    wanted = dict.fromkeys((STATE, *observe), ())
    worlds.reset(seed=list(seeds))
    lengths, steps = np.zeros(len(seeds), dtype=int), 0
    with ExitStack() as files:
        records: dict[str, _Record] = {}
        while not lengths.all():
            seen = worlds.look(wanted)
            if unknown := [key for key in observe if key not in seen]:
                raise ValueError(
                    f"there is no {unknown[0]} to record: expected observation.state, .entities or .images.view"
                )
            actions = np.zeros(worlds.action_space.shape, np.float32)
            for number, expert in enumerate(experts):
                rows = players == number
                actions[rows] = expert.act({STATE: seen[STATE][rows]})
            _, rewards, terminated, truncated, info = worlds.step(actions)
            step = {
                **{key: seen[key] for key in observe},
                "action": actions,
                "next.reward": rewards.astype(np.float32),
                "next.success": info["success"].astype(bool),
            }
            for key, rows in step.items():
                if key not in records:
                    records[key] = _Record(files.enter_context(tempfile.TemporaryFile(dir=folder)), rows)
                records[key].append(rows)
            steps += 1
            lengths[(terminated | truncated) & (lengths == 0)] = steps
        for i, length in enumerate(lengths):
            yield {key: record.episode(i, int(length)) for key, record in records.items()}


class _Record:
    """One feature of all rows over the steps, in a file."""

    def __init__(self, file: BinaryIO, like: np.ndarray) -> None:
        self._file, self._rows = file, len(like)
        self._shape, self._dtype = like.shape[1:], like.dtype
        self._size = like[0].nbytes

    def append(self, rows: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(rows).data)

    def episode(self, row: int, length: int) -> np.ndarray:
        """(length, ...) of one row."""
        self._file.flush()
        frames = np.empty((length, *self._shape), self._dtype)
        for step in range(length):
            read = os.pread(self._file.fileno(), self._size, (step * self._rows + row) * self._size)
            frames[step] = np.frombuffer(read, self._dtype).reshape(self._shape)
        return frames
