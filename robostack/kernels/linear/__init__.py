"""The product with a weight matrix."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from robostack.kernels.linear import cpu, reference

__all__ = ["linear"]


def linear(
    x: Float[Tensor, "*batch inputs"], weight: Float[Tensor, "outputs inputs"], bias: Float[Tensor, " outputs"] | None
) -> Float[Tensor, "*batch outputs"]:
    """x Wᵀ + b; on a CPU a few rows are multiplied from the weight's side, as a policy at run time has them."""
    if not x.is_cuda and cpu.worth_it(x, weight):
        return cpu.linear(x, weight, bias)
    return reference.linear(x, weight, bias)
