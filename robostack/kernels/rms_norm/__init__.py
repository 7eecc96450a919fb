"""Root-mean-square normalisation."""

from __future__ import annotations

from robostack.kernels.rms_norm.reference import rms_norm

__all__ = ["rms_norm"]
