"""y = x / sqrt(mean(x²) + ε) · (offset + w)   (Zhang & Sennrich, arXiv 1910.07467; offset 1 in Gemma, 0 in LLaMA)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def rms_norm(
    x: Float[Tensor, "*batch width"],
    weight: Float[Tensor, " width"] | None = None,
    eps: float = 1e-6,
    offset: float = 1.0,
) -> Float[Tensor, "*batch width"]:
    """Computed in float32 at least, and returned in x's type. Without a weight nothing is scaled."""
    exact = torch.promote_types(x.dtype, torch.float32)
    scale = None if weight is None else offset + weight.to(exact)
    return F.rms_norm(x.to(exact), x.shape[-1:], scale, eps).to(x.dtype)
