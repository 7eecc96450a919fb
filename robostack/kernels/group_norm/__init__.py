"""Group normalisation of (steps, batch, channels)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from robostack.kernels.group_norm import cpu, reference

__all__ = ["group_norm"]


def group_norm(
    x: Float[Tensor, "steps batch width"],
    groups: int,
    weight: Float[Tensor, " width"],
    bias: Float[Tensor, " width"],
    eps: float = 1e-5,
) -> Float[Tensor, "steps batch width"]:
    """(x − mean)/√(variance + ε) · weight + bias, over the steps and the channels of a group (arXiv 1803.08494)."""
    return (reference if x.is_cuda else cpu).group_norm(x, groups, weight, bias, eps)
