"""(x − mean)/deviation over the steps and the channels of a group (arXiv 1803.08494), by torch's own norm."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def group_norm(
    x: Float[Tensor, "steps batch width"],
    groups: int,
    weight: Float[Tensor, " width"],
    bias: Float[Tensor, " width"],
    eps: float = 1e-5,
) -> Float[Tensor, "steps batch width"]:
    """Scaled by `weight` and shifted by `bias`; autocast takes it in float32."""
    return F.group_norm(x.permute(1, 2, 0), groups, weight, bias, eps).permute(2, 0, 1)
