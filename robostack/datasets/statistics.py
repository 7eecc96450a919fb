"""Statistics of a feature, taken in one pass over its rows in bounded memory.

Mean, deviation, minimum and maximum are exact (float64 sums). So are the 1 % and 99 % quantiles up to 2²⁰ rows; of
more, they are those of every n-th row, where n keeps at least 2¹⁹: the rank of a quantile is then off by a standard
error of at most √(0.01 · 0.99 / 2¹⁹) = 0.00014 for rows in no particular order. `quantile_rows` says how many rows
were used.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from jaxtyping import Shaped

from robostack.datasets.episodes import DataError

# A joint that the demonstrations hardly move has a deviation near 0: dividing by it turns noise into huge values
# and a small prediction error into none at all. 1e-2 of a radian, metre or gripper opening counts as still.
SMALLEST_SCALE = 1e-2

QUANTILE_ROWS = 1 << 20
RELATIVE_ROWS = 1 << 22
ROWS_AT_ONCE = 65_536


@dataclass(frozen=True)
class Statistics:
    """Per entry of a vector feature, in its own units: mean, standard deviation, minimum, maximum, 1 % and 99 %
    quantile; and of how many rows."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    min: tuple[float, ...]
    max: tuple[float, ...]
    q01: tuple[float, ...]
    q99: tuple[float, ...]
    count: int
    quantile_rows: int
    """How many of the `count` rows the quantiles were taken from."""

    @staticmethod
    def of(rows: np.ndarray) -> Statistics:
        """Statistics of rows (N, D)."""
        return of_columns([(lambda start, stop: rows[start:stop], len(rows))])

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Statistics:
        """Undoes `dataclasses.asdict`. Raises DataError where a statistic is missing, unknown or of another length."""
        names = [field.name for field in fields(Statistics)]
        if set(values) != set(names):
            raise DataError(f"expected the statistics {', '.join(names)}, got {', '.join(values)}: measure them again")
        vectors = {name: tuple(values[name]) for name in names[:6]}
        if len({len(vector) for vector in vectors.values()}) != 1:
            lengths = {name: len(vector) for name, vector in vectors.items()}
            raise DataError(f"statistics of one feature differ in length: {lengths}: measure them again")
        return Statistics(**vectors, count=values["count"], quantile_rows=values["quantile_rows"])

    def warn_of_still_entries(self, key: str, names: Sequence[str] = (), smallest: float = SMALLEST_SCALE) -> None:
        """Warns, naming them, when entries hardly vary and their scale will be floored."""
        still = [names[i] if names else str(i) for i, std in enumerate(self.std) if std < smallest]
        if still:
            warnings.warn(f"{key}: {', '.join(still)} hardly vary: scaled by {smallest}, not less", stacklevel=2)


class Accumulator:
    """Takes `rows` rows in blocks and gives their statistics."""

    def __init__(self, rows: int) -> None:
        self._stride = -(-rows // QUANTILE_ROWS)
        self._count, self._kept = 0, list[np.ndarray]()
        self._sum = self._squares = self._shift = np.zeros(())
        self._min, self._max = np.array(np.inf), np.array(-np.inf)

    def add(self, block: Shaped[np.ndarray, "rows entries"]) -> None:
        """Takes a block of rows in."""
        if not len(block):
            return
        values = block.astype(np.float64)
        if not self._count:
            self._shift = values[0]  # sums around a value of the data: squares of large numbers cancel badly
        moved = values - self._shift
        self._sum = self._sum + moved.sum(0)
        self._squares = self._squares + (moved * moved).sum(0)
        self._min, self._max = np.minimum(self._min, values.min(0)), np.maximum(self._max, values.max(0))
        self._kept.append(block[-self._count % self._stride :: self._stride].copy())
        self._count += len(block)

    def result(self) -> Statistics:
        """Raises DataError when there were no rows."""
        if not self._count:
            raise DataError("there are no frames to take statistics of: the data set is empty")
        mean = self._sum / self._count
        kept = np.concatenate(self._kept)
        quantiles = np.stack(
            [np.quantile(kept[:, i].astype(np.float64), (0.01, 0.99)) for i in range(kept.shape[1])], axis=1
        )
        std = np.sqrt(np.maximum(self._squares / self._count - mean * mean, 0.0))
        vectors = (mean + self._shift, std, self._min, self._max, quantiles[0], quantiles[1])
        mean, std, low, high, q01, q99 = (tuple(vector.astype(float).tolist()) for vector in vectors)
        return Statistics(mean, std, low, high, q01, q99, self._count, len(kept))


def of_columns(columns: Sequence[tuple[Callable[[int, int], np.ndarray], int]]) -> Statistics:
    """Statistics of the rows of several columns together. A column is a function that gives its rows [start, stop),
    (stop - start, D) or (stop - start), and its number of rows."""
    accumulator = Accumulator(sum(rows for _, rows in columns))
    for read, rows in columns:
        for start in range(0, rows, ROWS_AT_ONCE):
            block = read(start, min(rows, start + ROWS_AT_ONCE))
            accumulator.add(block.reshape(len(block), -1))
    return accumulator.result()


def of_relative_actions(
    data_sets: Sequence[tuple[Callable[[int], tuple[np.ndarray, np.ndarray]], Sequence[int]]], chunk_len: int
) -> Statistics:
    """Statistics of action(t + k) − state(t) over all frames t and 0 <= k < chunk_len within their episode, over
    several data sets together. A data set is a function that gives state and action of episode i, (T, D) each, and the
    lengths of its episodes.

    When there are more than 2²² such rows, only every n-th frame t counts: all statistics are then those of this
    sample, and `count` says how large it is.
    """
    lengths = [length for _, lengths in data_sets for length in lengths]
    stride = -(-sum(length * min(chunk_len, length) for length in lengths) // RELATIVE_ROWS)
    total = sum(min(chunk_len, length - t) for length in lengths for t in range(0, length, stride))
    accumulator = Accumulator(total)
    for episode, lengths in data_sets:
        for i in range(len(lengths)):
            state, action = episode(i)
            t = np.arange(0, len(state), stride)
            steps = t[:, None] + np.arange(chunk_len)
            relative = action[np.minimum(steps, len(action) - 1)] - state[t][:, None]
            accumulator.add(relative[steps < len(action)])
    return accumulator.result()
