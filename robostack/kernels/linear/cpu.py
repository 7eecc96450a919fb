"""x Wᵀ + b for a few rows x, multiplied from the weight's side.

One CPU thread is then bound by reading the weight, but MKL takes up to 2.6 times as long for 2 to 8 rows times a weight
of 512 → 512..3200 as for the transposed product. With more inputs than outputs it is the other way round, and small
weights lie in the cache.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def worth_it(x: Tensor, weight: Tensor) -> bool:
    """Whether this way is the faster one, by what was measured."""
    outputs, inputs = weight.shape
    return outputs >= inputs and outputs * inputs >= 2**17 and inputs < x.numel() <= 8 * inputs


def linear(
    x: Float[Tensor, "*batch inputs"], weight: Float[Tensor, "outputs inputs"], bias: Float[Tensor, " outputs"] | None
) -> Float[Tensor, "*batch outputs"]:
    """(W xᵀ)ᵀ + b."""
    product = torch.mm(weight, x.reshape(-1, weight.shape[1]).T).T.contiguous().unflatten(0, x.shape[:-1])
    return product if bias is None else product + bias
