"""Convolution over the steps of (steps, batch, channels): one tap is a matrix product of contiguous rows."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from robostack.kernels.conv1d import cpu, reference
from robostack.kernels.conv1d.cpu import WeightLayout

__all__ = ["WeightLayout", "conv1d"]


def conv1d(
    x: Float[Tensor, "steps batch before"],
    weight: Float[Tensor, "kernel before after"],
    bias: Float[Tensor, " after"],
    stride: int = 1,
    layout: WeightLayout | None = None,
) -> Float[Tensor, "fewer batch after"]:
    """y_i = Σ_k x_{s i + k − K//2} W_k + b, with zeros beyond the ends; stride s is 1, or 2 for K = 3 taps and an even
    number of steps. With a `layout`, which the owner of the weight keeps, a single chunk on a CPU is read faster."""
    if x.is_cuda:
        return reference.conv1d(x, weight, bias, stride)
    if layout is not None and (single := layout.conv1d(x, weight, bias, stride)) is not None:
        return single
    return cpu.conv1d(x, weight, bias, stride)
