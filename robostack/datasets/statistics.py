"""Statistics of a feature, taken in one pass over its rows in bounded memory.

Mean, deviation, minimum and maximum are exact (float64 sums). So are the quantiles up to 2²⁰ rows; of more, they are
those of about 2¹⁹ to 2²⁰ rows drawn at random: the rank of the 1 % quantile is then off by a standard error of
at most √(0.01 · 0.99 / 2¹⁹) = 0.00014, in whatever order the rows come. `quantile_rows` says how many rows were used.
The same data always gives the same draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Shaped

from robostack.datasets.episodes import DataError

# A joint that the demonstrations hardly move has a deviation near 0: dividing by it turns noise into huge values
# and a small prediction error into none at all. 1e-2 of a radian or gripper opening counts as still.
SMALLEST_SCALE = 1e-2

Normalization = Literal["mean_std", "min_max", "quantiles"]

QUANTILE_ROWS = 1 << 20
NUMBERS_KEPT = 1 << 26
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
        counts = values["count"], values["quantile_rows"]
        numbers = [number for vector in vectors.values() for number in vector]
        if not all(type(number) in (int, float) and math.isfinite(number) for number in (*numbers, *counts)):
            raise DataError("expected finite numbers as statistics, got others: measure them again")
        if any(low > high for low, high in zip(vectors["min"], vectors["max"], strict=True)) or min(vectors["std"]) < 0:
            raise DataError("a minimum is above its maximum, or a deviation below 0: measure the statistics again")
        return Statistics(**vectors, count=counts[0], quantile_rows=counts[1])


class Accumulator:
    """Figures of the entries of rows that come in blocks: `count`, `mean`, `std`, `min` and `max` of each, and the
    quantiles of the rows that are kept: all, or of more than `rows_kept` a random half, quarter, ... Values that are
    not finite are left out of all but the kept rows."""

    def __init__(self, entries: int, rows_kept: int | None = None) -> None:
        self._rows_kept = rows_kept or QUANTILE_ROWS
        self.count, self.mean, self._squares = np.zeros(entries, np.int64), np.zeros(entries), np.zeros(entries)
        self.min, self.max = np.full(entries, np.inf), np.full(entries, -np.inf)
        self.rows, self._share = 0, 1.0
        # Not every n-th row, which a motion that repeats every n frames would always show at the same place.
        self._rng = np.random.default_rng(0)
        self._kept: list[np.ndarray] = []
        self._lots: list[np.ndarray] = []

    @property
    def std(self) -> np.ndarray:
        return np.sqrt(self._squares / np.maximum(self.count, 1))

    @property
    def kept(self) -> np.ndarray:
        """The kept rows, in order."""
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
        low = np.where(known, block, np.inf).min(0, initial=np.inf)
        high = np.where(known, block, -np.inf).max(0, initial=-np.inf)
        self.join(count, mean, squares, low, high)
        self.keep(block)

    def join(self, count: np.ndarray, mean: np.ndarray, squares: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
        """Takes in the figures of rows that are not kept; `squares` is the sum of squared distances from `mean`."""
        # Chan's update joins the moments of two sets; sums of squares would lose digits far from zero.
        total, shift = np.maximum(self.count + count, 1), mean - self.mean
        self._squares += squares + shift**2 * self.count * count / total
        self.mean += shift * count / total
        self.count += count
        self.min, self.max = np.minimum(self.min, low), np.maximum(self.max, high)

    def keep(self, block: Shaped[np.ndarray, "rows entries"]) -> None:
        """Takes rows in for the quantiles alone."""
        lots = self._rng.random(len(block))  # one after the other: blocks of other sizes draw the same
        chosen = lots < self._share
        self._kept.append(block[chosen])
        self._lots.append(lots[chosen])
        self.rows += len(block)
        while sum(map(len, self._lots)) > self._rows_kept:
            self._share /= 2
            lots = np.concatenate(self._lots)
            self._kept, self._lots = [self.kept[lots < self._share]], [lots[lots < self._share]]

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
    (stop - start, *shape), and its number of rows. Of more than 64 entries fewer rows are kept for the quantiles."""
    accumulator, at_once = None, ROWS_AT_ONCE
    for read, rows in columns:
        if accumulator is None and rows:
            entries = max(1, read(0, 1)[0].size)
            accumulator = Accumulator(entries, min(QUANTILE_ROWS, NUMBERS_KEPT // entries))
            at_once = max(1, min(ROWS_AT_ONCE, (NUMBERS_KEPT >> 4) // entries))
        for start in range(0, rows, at_once):
            block = read(start, min(rows, start + at_once))
            assert accumulator is not None
            accumulator.add(block.reshape(len(block), -1))
    return (accumulator or Accumulator(0)).result()


def of_relative_actions(
    data_sets: Sequence[tuple[Callable[[int], tuple[np.ndarray, np.ndarray]], Sequence[int], int]],
) -> Statistics:
    """Statistics of action(t + k) − state(t) over all frames t and 0 <= k < K within their episode, over several data
    sets together. A data set is a function that gives state and action of episode i, (T, D) each, the lengths of its
    episodes, and K, the frames of a chunk.

    All are exact but the quantiles when there are more than 2²² such differences: they are then those from about
    2²² / K frames t drawn at random, and the rank of the 1 % quantile is off by a standard error of at most
    √(0.01 · 0.99 · K / 2²²), 0.0003 for a K of 50, besides the error told above.
    """
    pairs = sum(length * min(chunk, length) for _, lengths, chunk in data_sets for length in lengths)
    share = RELATIVE_ROWS / max(1, pairs)
    rng, accumulator = np.random.default_rng(0), None
    for episode, lengths, chunk in data_sets:
        for i in range(len(lengths)):
            state, action = episode(i)
            accumulator = accumulator or Accumulator(action.shape[1])
            accumulator.join(*_relative_figures(state.astype(np.float64), action.astype(np.float64), chunk))
            t = np.flatnonzero(rng.random(len(state)) < share)
            steps = t[:, None] + np.arange(chunk)
            relative = action[np.minimum(steps, len(action) - 1)] - state[t][:, None]
            accumulator.keep(relative[steps < len(action)])
    if accumulator is None:
        return Accumulator(0).result()
    return replace(accumulator.result(), count=int(accumulator.count[0]))


def _relative_figures(
    state: Float[np.ndarray, "frames entries"], action: Float[np.ndarray, "frames entries"], chunk: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Count, mean, sum of squared distances from it, minimum and maximum of the differences of one episode, without
    making them: there are `chunk` of each frame."""
    frames, entries = action.shape
    ends = np.minimum(np.arange(frames) + chunk, frames)
    ahead = (ends - np.arange(frames))[:, None]

    def sum_ahead(rows: np.ndarray) -> np.ndarray:
        sums = np.concatenate([np.zeros((1, entries)), np.cumsum(rows, axis=0)])
        return sums[ends] - sums[:-1]

    count = int(ahead.sum())
    mean = (sum_ahead(action) - ahead * state).sum(0) / count
    # Near zero, where squares keep their digits: differences stay what they are when both are moved.
    middle = action.mean(0)
    a, s = action - middle, state + mean - middle
    squares = (sum_ahead(a**2) - 2 * s * sum_ahead(a) + ahead * s**2).sum(0)
    low = (_reach(action, chunk, np.minimum) - state).min(0)
    high = (_reach(action, chunk, np.maximum) - state).max(0)
    return np.full(entries, count), mean, np.maximum(squares, 0.0), low, high


def _reach(
    rows: Float[np.ndarray, "frames entries"], length: int, pick: np.ufunc
) -> Float[np.ndarray, "frames entries"]:
    """Minimum or maximum of rows [t, t + length), as far as there are, for every t."""
    found, reached = rows, 1
    while reached < length:
        step = min(reached, length - reached)
        later = found[step:]
        found = np.concatenate([pick(found[: len(later)], later), found[len(later) :]])
        reached += step
    return found
