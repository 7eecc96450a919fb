"""Statistics of a feature and the affine map that brings it to unit scale and back.

The map is a (forward, inverse) pair made from the same two vectors, so that one undoes the other by construction.
Statistics are computed once from the training data and live in the checkpoint: a missing one is an error.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch

# A joint that the demonstrations hardly move has a deviation near 0: dividing by it turns noise into huge values
# and a small prediction error into none at all. 1e-2 of a radian, metre or gripper opening counts as still.
SMALLEST_SCALE = 1e-2


@dataclass(frozen=True)
class Statistics:
    """Per entry of a vector feature, in its own units: mean, standard deviation, minimum and maximum."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    min: tuple[float, ...]
    max: tuple[float, ...]

    @staticmethod
    def of(rows: np.ndarray) -> Statistics:
        """Statistics of rows (N, D), accumulated in float64."""
        values = np.asarray(rows, dtype=np.float64)
        return Statistics(
            *(tuple(float(x) for x in v) for v in (values.mean(0), values.std(0), values.min(0), values.max(0)))
        )

    def warn_of_still_entries(self, key: str, names: tuple[str, ...] = ()) -> None:
        """Warns, naming them, when entries hardly vary and their scale will be floored."""
        still = [names[i] if names else str(i) for i, std in enumerate(self.std) if std < SMALLEST_SCALE]
        if still:
            warnings.warn(f"{key}: {', '.join(still)} hardly vary: scaled by {SMALLEST_SCALE}, not less", stacklevel=2)


@dataclass(frozen=True)
class Normalizer:
    """x ↦ (x − mean) / max(std, SMALLEST_SCALE), on arrays or tensors (..., D); `inverse` undoes `forward`."""

    offset: tuple[float, ...]
    scale: tuple[float, ...]

    @staticmethod
    def of(statistics: Statistics) -> Normalizer:
        return Normalizer(statistics.mean, tuple(max(std, SMALLEST_SCALE) for std in statistics.std))

    def forward[Values: (np.ndarray, torch.Tensor)](self, values: Values) -> Values:
        return (values - _like(self.offset, values)) / _like(self.scale, values)

    def inverse[Values: (np.ndarray, torch.Tensor)](self, values: Values) -> Values:
        return values * _like(self.scale, values) + _like(self.offset, values)


def _like[Values: (np.ndarray, torch.Tensor)](numbers: tuple[float, ...], values: Values) -> Values:
    if isinstance(values, torch.Tensor):
        return torch.tensor(numbers, dtype=values.dtype, device=values.device)
    return np.asarray(numbers, dtype=values.dtype)
