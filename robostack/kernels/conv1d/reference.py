"""y_i = Σ_k x_{s i + k − K//2} W_k + b over the steps, with zeros beyond the ends, by torch's own convolution."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def conv1d(
    x: Float[Tensor, "steps batch before"],
    weight: Float[Tensor, "kernel before after"],
    bias: Float[Tensor, " after"],
    stride: int = 1,
) -> Float[Tensor, "fewer batch after"]:
    """K odd taps, every `stride`-th step."""
    y = F.conv1d(x.permute(1, 2, 0), weight.permute(2, 1, 0), bias, stride, len(weight) // 2)
    return y.permute(2, 0, 1).contiguous()
