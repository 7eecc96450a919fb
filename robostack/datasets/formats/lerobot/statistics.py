"""The statistics that LeRobot keeps of an episode and of a data set: min, max, mean, std, count and five quantiles.

Of numbers they are those of `statistics`: exact, the quantiles up to 2²⁰ rows. (LeRobot's own quantiles of a data set
are means over its episodes.) Of pictures they come from a sample: of an episode of T frames, all up to 100,
else T^0.75 of them, evenly spaced; where a side has 300 pixels or more, only every nth row and column, so that about
150 remain. These are LeRobot's own rules; of that sample they too are exact, since 256 counts a channel hold all of it,
or 65536 of depth.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64, Shaped

from robostack.datasets.episodes import Feature
from robostack.datasets.statistics import ROWS_AT_ONCE, Accumulator

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
STATISTICS = ("min", "max", "mean", "std", "count", *QUANTILES)


def of_numbers(blocks: Iterable[np.ndarray]) -> dict[str, list]:
    """Of rows (frames, ...) that come in blocks, over all axes but the last, as LeRobot does; of (frames,), one number
    each."""
    figures, frames = Accumulator(0), 0
    for rows in blocks:
        values = rows.reshape(-1, rows.shape[-1] if rows.ndim > 1 else 1)
        figures = figures if frames else Accumulator(values.shape[1])
        frames += len(rows)
        for first in range(0, len(values), ROWS_AT_ONCE):
            figures.add(values[first : first + ROWS_AT_ONCE])
    found = {name: getattr(figures, name).tolist() for name in ("min", "max", "mean", "std")}
    quantiles = figures.quantiles(tuple(QUANTILES.values())).tolist()
    return {**found, "count": [frames], **dict(zip(QUANTILES, quantiles, strict=True))}


def sampled(length: int) -> Bool[np.ndarray, " length"]:
    """Which frames of an episode are looked at."""
    count = max(min(length, 100), min(int(length**0.75), 10_000))
    chosen = np.zeros(length, bool)
    chosen[np.round(np.linspace(0, length - 1, count)).astype(int)] = True
    return chosen


class PictureStatistics:
    """Counts how often each value occurs in a channel: the 256 of colours, or the 65536 of depth. Those of several
    episodes add up."""

    def __init__(self, feature: Feature) -> None:
        self._scale = 1 if feature.is_depth else 255
        self.counts: Int64[np.ndarray, "channels values"] = np.zeros(
            (feature.shape[2], 65536 if feature.is_depth else 256), np.int64
        )
        self.frames = 0

    def add(self, frame: Shaped[np.ndarray, "height width channels"]) -> None:
        height, width, channels = frame.shape
        step = int((width if width > height else height) / 150) if max(height, width) >= 300 else 1
        for channel in range(channels):
            values = frame[::step, ::step, channel].ravel()
            self.counts[channel] += np.bincount(values, minlength=self.counts.shape[1])
        self.frames += 1

    def to_json(self) -> dict[str, Any]:
        """What `add_json` adds; the many values of depth that never occur, below and above, are left out."""
        met = np.flatnonzero(self.counts.any(0)) if self._scale == 1 else np.array([0, 255])
        first, last = (int(met[0]), int(met[-1])) if len(met) else (0, -1)
        return {"counts": self.counts[:, first : last + 1].tolist(), "first": first, "frames": self.frames}

    def add_json(self, counted: Mapping[str, Any]) -> None:
        counts, first = np.asarray(counted["counts"], np.int64), counted.get("first", 0)
        self.counts[:, first : first + counts.shape[1]] += counts
        self.frames += counted["frames"]

    def result(self) -> dict[str, list]:
        """Of colours in [0, 1], of depth in its unit, each of shape (channels, 1, 1)."""
        values = np.arange(self.counts.shape[1]) / self._scale
        total = self.counts.sum(1)
        mean = self.counts @ values / total
        spread = np.sqrt(np.maximum(0, (self.counts * (values - mean[:, None]) ** 2).sum(1) / total))
        found = {"min": self._quantile(0), "max": self._quantile(1), "mean": mean, "std": spread}
        found |= {name: self._quantile(part) for name, part in QUANTILES.items()}
        return {n: [self.frames] if n == "count" else found[n].reshape(-1, 1, 1).tolist() for n in STATISTICS}

    def _quantile(self, part: float) -> Float64[np.ndarray, " channels"]:
        """The smallest value that at least this part of the pixels does not exceed."""
        reached = np.cumsum(self.counts, axis=1) >= max(1.0, part * self.counts.sum(1)[0])
        return np.argmax(reached, axis=1) / self._scale
