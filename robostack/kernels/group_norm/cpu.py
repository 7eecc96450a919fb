"""Group normalisation where the features lie as (steps, batch, channels), which torch's would have to transpose."""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor


def group_norm(
    x: Float[Tensor, "steps batch width"],
    groups: int,
    weight: Float[Tensor, " width"],
    bias: Float[Tensor, " width"],
    eps: float = 1e-5,
) -> Float[Tensor, "steps batch width"]:
    """One pass for the moments and one for the result, and as few backwards."""
    return cast(Tensor, _GroupNorm.apply(x, weight, bias, groups, eps))


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        grouped = x.unflatten(-1, (groups, -1))
        variance, mean = torch.var_mean(grouped, dim=(0, 3), correction=0)  # (batch, groups)
        inverse = (variance + eps).rsqrt()
        ctx.save_for_backward(x, weight, mean, inverse)
        scale = inverse[..., None] * weight.unflatten(0, (groups, -1))
        shift = bias.unflatten(0, (groups, -1)) - mean[..., None] * scale
        return torch.addcmul(shift, grouped, scale).flatten(2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, weight, mean, inverse = ctx.saved_tensors
        groups = mean.shape[1]
        gradient, grouped = gradients[0].unflatten(-1, (groups, -1)), x.unflatten(-1, (groups, -1))
        scale = weight.unflatten(0, (groups, -1))
        # x̂ = (x − mean) · inverse;  ∂x = inverse · (∂y w − mean of ∂y w − x̂ · mean of (∂y w x̂)).
        total = gradient.sum(0)  # (batch, groups, channels of a group)
        along = ((gradient * grouped).sum(0) - mean[..., None] * total) * inverse[..., None]
        count = x.shape[0] * grouped.shape[3]
        mean_total = (total * scale).sum(-1, keepdim=True) / count
        mean_along = (along * scale).sum(-1, keepdim=True) / count
        each = inverse[..., None]
        offset = each * (mean[..., None] * each * mean_along - mean_total)
        of_x = torch.addcmul(torch.addcmul(offset, grouped, -each * each * mean_along), gradient, each * scale)
        return of_x.flatten(2), along.sum(0).flatten(), total.sum(0).flatten(), None, None
