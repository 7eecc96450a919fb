"""The affine map that brings a feature to unit scale and back, made from its statistics.

The map is a (forward, inverse) pair made from the same two vectors, so that one undoes the other by construction.
Statistics are computed once from the training data and live in the checkpoint: a missing one is an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from robostack.datasets.episodes import DataError
from robostack.datasets.statistics import SMALLEST_SCALE, Statistics

Normalization = Literal["mean_std", "min_max", "quantiles"]


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
        if normalization == "mean_std":
            return Normalizer(statistics.mean, tuple(max(std, smallest) for std in statistics.std))
        low, high = {
            "min_max": (statistics.min, statistics.max),
            "quantiles": (statistics.q01, statistics.q99),
        }[normalization]
        ends = list(zip(low, high, strict=True))
        return Normalizer(tuple((a + b) / 2 for a, b in ends), tuple(max((b - a) / 2, smallest) for a, b in ends))

    def forward[Values: (np.ndarray, torch.Tensor)](self, values: Values) -> Values:
        """Raises DataError when the values have another number of entries."""
        return (values - _like(self.offset, values)) / _like(self.scale, values)

    def inverse[Values: (np.ndarray, torch.Tensor)](self, values: Values) -> Values:
        """Undoes `forward`; raises DataError when the values have another number of entries."""
        return values * _like(self.scale, values) + _like(self.offset, values)


def _like[Values: (np.ndarray, torch.Tensor)](numbers: tuple[float, ...], values: Values) -> Values:
    if values.shape[-1] != len(numbers):
        raise DataError(f"expected {len(numbers)} entries, as the statistics have, got {values.shape[-1]}")
    if isinstance(values, torch.Tensor):
        return torch.tensor(numbers, dtype=values.dtype, device=values.device)
    return np.asarray(numbers, dtype=values.dtype)
