"""The affine map that brings a feature to unit scale and back, made from its statistics.

The map is a (forward, inverse) pair made from the same two vectors, so that one undoes the other by construction.
Statistics are computed once from the training data and live in the checkpoint: a missing one is an error.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from robostack.datasets.episodes import DataError
from robostack.datasets.statistics import SMALLEST_SCALE, Normalization, Statistics


@dataclass(frozen=True)
class Normalizer:
    """x ↦ (x − offset) / scale, on arrays or tensors (..., D); `inverse` undoes `forward`."""

    offset: tuple[float, ...]
    scale: tuple[float, ...]

    @staticmethod
    def of(
        statistics: Statistics,
        normalization: Normalization = "mean_std",
        smallest: float | Sequence[float] | None = None,
    ) -> Normalizer:
        """Mean and deviation to 0 and 1; or minimum and maximum, or 1 % and 99 % quantile, to −1 and 1. No entry is
        divided by less than `smallest`, its own or that of all; by default that of `smallest_scales`."""
        offset, scale = _unit(statistics, normalization)
        floors = smallest_scales(statistics, normalization) if smallest is None else smallest
        floors = [floors] * len(scale) if isinstance(floors, int | float) else floors
        return Normalizer(offset, tuple(max(size, floor) for size, floor in zip(scale, floors, strict=True)))

    def forward[Values: (np.ndarray, torch.Tensor)](self, values: Values) -> Values:
        """Raises DataError when the values have another number of entries."""
        return (values - _like(self.offset, values)) / _like(self.scale, values)

    def inverse[Values: (np.ndarray, torch.Tensor)](self, values: Values) -> Values:
        """Undoes `forward`; raises DataError when the values have another number of entries."""
        return values * _like(self.scale, values) + _like(self.offset, values)


FARTHEST = 8.0
LEAST_OF_MAGNITUDE, LEAST_OF_PEERS, LEAST_OF_ALL = 1e-3, 2e-3, 1e-5
NATURAL_UNITS = {"rad": 1.0, "deg": 180 / math.pi, "1": 1.0, "0 closed .. 1 open": 1.0}
NATURAL_UNITS |= dict.fromkeys(("radian", "radians"), 1.0) | dict.fromkeys(("degree", "degrees"), 180 / math.pi)
"""Units of entries whose whole range is known, about 1; in this unit."""


def smallest_scales(
    statistics: Statistics,
    normalization: Normalization = "mean_std",
    units: Sequence[str] = (),
    still: float = SMALLEST_SCALE,
) -> tuple[float, ...]:
    """The least that each entry is divided by, so that neither noise nor rare values become huge.

    An entry is divided by what it varies by: its deviation, half of minimum to maximum, or half of the 1 % to the 99 %
    quantile. But never by less than

    - an eighth of the way from its offset to its farthest value: of the training data nothing lies beyond ±8. A gripper
      that moves in 0.5 % of the frames has no distance between its quantiles, and a deviation of a fourteenth;
    - for angles and pure numbers (units rad, deg, 1; grippers), whose whole range is about 1: `still`, a hundredth. An
      ALOHA joint that the task does not use, or the quaternion of a cube that is not turned, stays noise;
    - for others, in whatever unit or none: a thousandth of the entry's largest magnitude, two thousandths of what most
      entries of this unit vary by at most (all but a quarter of them, which may be of another kind), and 1e-5. A step
      in metres with a deviation of 5 mm is scaled by itself, as it is in millimetres; a height of 0.8 m that is
      constant to 1e-6 is not;
    - for an entry that never changes: `still`.
    """
    offset, scale = _unit(statistics, normalization)
    ends = list(zip(offset, statistics.min, statistics.max, strict=True))
    far = [max(high - middle, middle - low, 0.0) / FARTHEST for middle, low, high in ends]
    varies = [max(one, other) for one, other in zip(scale, far, strict=True)]
    units = tuple(units) if len(units) == len(scale) else ("",) * len(scale)
    peers = {unit: sorted((v for v, u in zip(varies, units, strict=True) if u == unit), reverse=True) for unit in units}
    floors = []
    for (_, low, high), least, unit in zip(ends, far, units, strict=True):
        if unit in NATURAL_UNITS:
            noise = still * NATURAL_UNITS[unit]
        else:
            magnitude, other = max(abs(low), abs(high)), peers[unit][len(peers[unit]) // 4]
            noise = max(LEAST_OF_MAGNITUDE * magnitude, LEAST_OF_PEERS * other, LEAST_OF_ALL)
        floors.append(max(least, noise, still if low == high else 0.0))
    return tuple(floors)


MOST_NAMED = 8


def warn_of_floored(
    features: Mapping[str, tuple[Statistics, Sequence[str], Sequence[float]]],
    normalization: Normalization = "mean_std",
) -> None:
    """Warns in one line of the entries that vary less than they are divided by. `features` maps keys to statistics,
    names of entries, and `smallest_scales`; few are named, many are counted."""
    told = []
    for key, (statistics, names, floors) in features.items():
        varies = list(zip(_unit(statistics, "min_max")[1], floors, strict=True))  # a rare value is no noise
        still = [names[i] if names else str(i) for i, (half, floor) in enumerate(varies) if half < floor]
        if still:
            counted = f"{len(still)} of {len(varies)} entries"
            told.append(f"{key} ({', '.join(still) if len(still) <= MOST_NAMED else counted})")
    if told:
        line = "hardly vary and are scaled as if they varied more, so that noise stays small"
        warnings.warn(f"{', '.join(told)}: {line}", stacklevel=2)


def _unit(statistics: Statistics, normalization: Normalization) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Offset and scale, not yet floored."""
    if normalization == "mean_std":
        return statistics.mean, statistics.std
    low, high = {
        "min_max": (statistics.min, statistics.max),
        "quantiles": (statistics.q01, statistics.q99),
    }[normalization]
    ends = list(zip(low, high, strict=True))
    return tuple((a + b) / 2 for a, b in ends), tuple((b - a) / 2 for a, b in ends)


def _like[Values: (np.ndarray, torch.Tensor)](numbers: tuple[float, ...], values: Values) -> Values:
    if values.shape[-1] != len(numbers):
        raise DataError(f"expected {len(numbers)} entries, as the statistics have, got {values.shape[-1]}")
    if isinstance(values, torch.Tensor):
        return torch.tensor(numbers, dtype=values.dtype, device=values.device)
    return np.asarray(numbers, dtype=values.dtype)
