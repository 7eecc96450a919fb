"""Flows from noise to data: Gaussian paths, their conversions, time sampling and solvers.

Time runs from 0 (noise) to 1 (data). A path x_t = α_t x₁ + σ_t x₀ gives the training pair and every conversion
between predictions; a solver integrates a velocity field. Policies choose among them, they do not write their own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, assert_never

import torch
from jaxtyping import Float
from torch import Tensor

Prediction = Literal["velocity", "data"]
TimeSampling = Literal["uniform", "beta"]
Method = Literal["euler", "heun"]
Field = Callable[[Tensor, Tensor], Tensor]
"""(x (batch, ...), t (batch,)) ↦ velocity (batch, ...)."""


@dataclass(frozen=True)
class PathSample:
    """A point of the path and its velocity dx_t/dt; all (batch, ...) but t, (batch,) or (batch, tokens)."""

    x_0: Tensor
    x_1: Tensor
    t: Tensor
    x_t: Tensor
    velocity: Tensor


class GaussianPath(ABC):
    """x_t = α_t x₁ + σ_t x₀ with x₀ ~ N(0, 1), α_0 = 0 and α_1 = 1 (Lipman et al., arXiv 2412.06264, section 4.8)."""

    @abstractmethod
    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """α_t, σ_t and their derivatives in t, each of t's shape."""

    def sample(self, x_0: Tensor, x_1: Tensor, t: Tensor) -> PathSample:
        """The point at time t between noise x_0 and data x_1; t is (batch,) or (batch, tokens), a time each token."""
        alpha, sigma, d_alpha, d_sigma = self._expanded(t, x_1)
        return PathSample(x_0, x_1, t, alpha * x_1 + sigma * x_0, d_alpha * x_1 + d_sigma * x_0)

    def velocity_from_data(self, x_t: Tensor, data: Tensor, t: Tensor, smallest_sigma: float = 0.0) -> Tensor:
        """α̇ x̂₁ + σ̇ x̂₀ with x̂₀ = (x_t − α x̂₁)/σ. σ is bounded from below by `smallest_sigma` in the division."""
        alpha, sigma, d_alpha, d_sigma = self._expanded(t, x_t)
        noise = (x_t - alpha * data) / sigma.clamp(min=smallest_sigma)
        return d_alpha * data + d_sigma * noise

    def data_from_velocity(self, x_t: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
        """x̂₁ = (σ v − σ̇ x_t) / (σ α̇ − σ̇ α); the inverse of `velocity_from_data`."""
        alpha, sigma, d_alpha, d_sigma = self._expanded(t, x_t)
        return (sigma * velocity - d_sigma * x_t) / (sigma * d_alpha - d_sigma * alpha)

    def _expanded(self, t: Tensor, like: Tensor) -> list[Tensor]:
        shape = (*t.shape, *(1,) * (like.ndim - t.ndim))
        return [c.reshape(shape).to(like.dtype) for c in self.coefficients(t)]


class LinearPath(GaussianPath):
    """α = t, σ = 1 − t: straight lines, velocity = data − noise (rectified flow, arXiv 2209.03003)."""

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return t, 1.0 - t, torch.ones_like(t), -torch.ones_like(t)


def sample_time(
    sampling: TimeSampling, batch: int, generator: torch.Generator, device: torch.device | str = "cpu"
) -> Float[Tensor, " batch"]:
    """Training times in [0, 1).

    `beta`: 1 − (0.001 + 0.999 · Beta(1.5, 1)), π0's choice, which favours noisy times (arXiv 2410.24164, appendix B).
    Beta(1.5, 1) has the distribution function x^1.5, so that u^(2/3) draws from it.
    """
    uniform = torch.rand(batch, generator=generator, device=device)
    if sampling == "uniform":
        return uniform
    if sampling == "beta":
        return 0.999 * (1.0 - uniform ** (2.0 / 3.0))
    assert_never(sampling)


def integrate(field: Field, x: Tensor, times: Float[Tensor, " points"], method: Method = "euler") -> Tensor:
    """Carries x (batch, ...) from times[0] to times[-1] along dx/dt = field(x, t), one step between neighbours.

    `euler` asks the field once a step. `heun` (second order) asks twice, but takes a last step that ends at t = 1 as
    Euler, where a velocity made from a data prediction has no value (as in EDM, arXiv 2206.00364, algorithm 1).
    """
    for start, end in pairwise(times):
        step = end - start
        velocity = field(x, start.expand(x.shape[0]))
        if method == "heun" and end < 1.0:
            ahead = field(x + step * velocity, end.expand(x.shape[0]))
            velocity = 0.5 * (velocity + ahead)
        x = x + step * velocity
    return x
