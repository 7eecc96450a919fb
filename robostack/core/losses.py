"""What losses have in common."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor


def masked_mean(x: Float[Tensor, "*shape"], valid: Bool[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Mean of the valid numbers; the others may hold anything. NaN where none is valid."""
    return x.masked_fill(~valid, 0.0).sum() / valid.sum()
