"""Statistics of a feature, taken in one pass over its rows in bounded memory.

Mean, deviation, minimum and maximum are exact (float64 sums). So are the quantiles up to 2²⁰ rows; of more, they are
those of every n-th row, where n keeps at least 2¹⁹: the rank of the 1 % quantile is then off by a standard
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
ROWS_AT_ONCE = 16_384


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
    """Figures of the entries of rows that come in blocks: `count`, `mean`, `std`, `min` and `max` of each, and of every
    n-th row the quantiles; n doubles whenever more than `rows_kept` rows would be kept. Values that are not finite are
    left out of all but the kept rows."""

    def __init__(self, entries: int, rows_kept: int | None = None) -> None:
        self._rows_kept = rows_kept or QUANTILE_ROWS
        self.count, self.mean, self._squares = np.zeros(entries, np.int64), np.zeros(entries), np.zeros(entries)
        self.min, self.max = np.full(entries, np.inf), np.full(entries, -np.inf)
        self.rows, self._stride = 0, 1
        self._kept: list[np.ndarray] = []

    @property
    def std(self) -> np.ndarray:
        return np.sqrt(self._squares / np.maximum(self.count, 1))

    @property
    def kept(self) -> np.ndarray:
        """Every n-th row, in order."""
        return np.concatenate(self._kept) if self._kept else np.empty((0, len(self.count)))

    def quantiles(self, levels: Sequence[float]) -> np.ndarray:
        """(levels, entries), interpolated between the kept rows."""
        kept = self.kept  # as float64 one entry at a time: all of them would double the memory
        columns = [np.quantile(kept[:, i].astype(np.float64), levels) for i in range(kept.shape[1])]
        return np.stack(columns, axis=1)

    @np.errstate(over="ignore", invalid="ignore")
    def add(self, block: Shaped[np.ndarray, "rows entries"]) -> None:
        """Takes a block of rows in."""
        known = np.isfinite(block)
        values = np.where(known, block, 0).astype(np.float64)
        count = known.sum(0)
        mean = values.sum(0) / np.maximum(count, 1)
        squares = (np.where(known, values - mean, 0.0) ** 2).sum(0)
        # Chan's update joins the moments of two sets; sums of squares would lose digits far from zero.
        total, shift = np.maximum(self.count + count, 1), mean - self.mean
        self._squares += squares + shift**2 * self.count * count / total
        self.mean += shift * count / total
        self.count += count
        self.min = np.minimum(self.min, np.where(known, block, np.inf).min(0, initial=np.inf))
        self.max = np.maximum(self.max, np.where(known, block, -np.inf).max(0, initial=-np.inf))
        self._kept.append(block[-self.rows % self._stride :: self._stride].copy())
        self.rows += len(block)
        while -(-self.rows // self._stride) > self._rows_kept:
            self._kept, self._stride = [self.kept[::2].copy()], self._stride * 2

    def result(self) -> Statistics:
        """Raises DataError when there were no rows."""
        if not self.rows:
            raise DataError("there are no frames to take statistics of: the data set is empty")
        q01, q99 = self.quantiles((0.01, 0.99))
        vectors = (self.mean, self.std, self.min, self.max, q01, q99)
        mean, std, low, high, q01, q99 = (tuple(vector.astype(float).tolist()) for vector in vectors)
        return Statistics(mean, std, low, high, q01, q99, self.rows, len(self.kept))


def of_columns(columns: Sequence[tuple[Callable[[int, int], np.ndarray], int]]) -> Statistics:
    """Statistics of the rows of several columns together. A column is a function that gives its rows [start, stop),
    (stop - start, D) or (stop - start), and its number of rows."""
    accumulator = None
    for read, rows in columns:
        for start in range(0, rows, ROWS_AT_ONCE):
            block = read(start, min(rows, start + ROWS_AT_ONCE))
            block = block.reshape(len(block), -1)
            accumulator = accumulator or Accumulator(block.shape[1])
            accumulator.add(block)
    return (accumulator or Accumulator(0)).result()


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
    accumulator = None
    for episode, lengths in data_sets:
        for i in range(len(lengths)):
            state, action = episode(i)
            t = np.arange(0, len(state), stride)
            steps = t[:, None] + np.arange(chunk_len)
            relative = action[np.minimum(steps, len(action) - 1)] - state[t][:, None]
            accumulator = accumulator or Accumulator(action.shape[1])
            accumulator.add(relative[steps < len(action)])
    return (accumulator or Accumulator(0)).result()
