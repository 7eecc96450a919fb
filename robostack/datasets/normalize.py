"""The affine map that brings a feature to unit scale and back, made from its statistics.

The map is a (forward, inverse) pair made from the same two vectors, so that one undoes the other by construction.
Statistics are computed once from the training data and live in the checkpoint: a missing one is an error.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
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
        statistics: Statistics, normalization: Normalization = "mean_std", smallest: float = SMALLEST_SCALE
    ) -> Normalizer:
        """Mean and deviation to 0 and 1; or minimum and maximum, or 1 % and 99 % quantile, to −1 and 1. No entry is
        scaled up by more than 1 / `smallest`."""
        offset, scale = _unit(statistics, normalization)
        return Normalizer(offset, tuple(max(size, smallest) for size in scale))

    def forward[Values: (np.ndarray, torch.Tensor)](self, values: Values) -> Values:
        """Raises DataError when the values have another number of entries."""
        return (values - _like(self.offset, values)) / _like(self.scale, values)

    def inverse[Values: (np.ndarray, torch.Tensor)](self, values: Values) -> Values:
        """Undoes `forward`; raises DataError when the values have another number of entries."""
        return values * _like(self.scale, values) + _like(self.offset, values)


MOST_NAMED = 16


def warn_of_floored(
    key: str,
    statistics: Statistics,
    names: Sequence[str] = (),
    normalization: Normalization = "mean_std",
    smallest: float = SMALLEST_SCALE,
) -> None:
    """Warns of entries that vary so little, as the normalisation sees it, that their scale is floored: by name, or by
    number where there are many."""
    still = [
        names[i] if names else str(i) for i, size in enumerate(_unit(statistics, normalization)[1]) if size < smallest
    ]
    if still:
        which = ", ".join(still) if len(still) <= MOST_NAMED else f"{len(still)} of {len(statistics.mean)} entries"
        warnings.warn(f"{key}: {which} hardly vary by {normalization}: scaled by {smallest}", stacklevel=2)


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
