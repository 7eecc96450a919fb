"""y = x / sqrt(mean(x²) + ε) · (1 + w)   (Zhang & Sennrich, arXiv 1910.07467, with Gemma's 1 + w)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def rms_norm(
    x: Float[Tensor, "*batch width"], weight: Float[Tensor, " width"] | None = None, eps: float = 1e-6
) -> Float[Tensor, "*batch width"]:
    """Computed in float32 whatever x is, and returned in x's type. Without a weight nothing is scaled."""
    scale = None if weight is None else 1.0 + weight.float()
    return F.rms_norm(x.to(torch.float32), x.shape[-1:], scale, eps).to(x.dtype)
