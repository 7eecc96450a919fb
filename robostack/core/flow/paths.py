"""Gaussian paths from noise to data, and the conversions between what a network may predict on them.

Time runs from 0 (noise) to 1 (data). A path x_t = α_t x₁ + σ_t x₀ gives the training pair and every conversion
between velocity, noise and data predictions. DDPM, EDM and rectified flow are different (α_t, σ_t), nothing more.
Times and losses of training are in `training`, solvers in `solvers`, guidance in `guidance`.

A time t is (batch,), or (batch, tokens) where every token has its own (diffusion forcing, arXiv 2407.01392).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, assert_never

import torch
from jaxtyping import Float
from torch import Tensor

Prediction = Literal["velocity", "noise", "data"]
Field = Callable[[Tensor, Tensor], Tensor]
"""(x (batch, ...), t (batch,) or (batch, tokens)) ↦ velocity, noise or data, of x's shape."""
Coefficients = tuple[Tensor, Tensor, Tensor, Tensor]
"""α_t, σ_t and their derivatives in t."""


@dataclass(frozen=True)
class PathSample:
    """A point of the path and its velocity dx_t/dt; all (batch, ...) but t, (batch,) or (batch, tokens)."""

    x_0: Tensor
    x_1: Tensor
    t: Tensor
    x_t: Tensor
    velocity: Tensor


class GaussianPath(ABC):
    """x_t = α_t x₁ + σ_t x₀ with x₀ ~ N(0, 1), α_1 = 1 and σ_1 = 0 (Lipman et al., arXiv 2412.06264, section 4.8).

    σ_t/α_t falls with t. At t = 0 the signal is gone (linear, cosine) or drowned (discrete, EDM).
    """

    @abstractmethod
    def coefficients(self, t: Tensor) -> Coefficients:
        """α_t, σ_t and their derivatives in t, each of t's shape."""

    @abstractmethod
    def time_of(self, ratio: Tensor) -> Tensor:
        """The time t at which σ_t/α_t is `ratio`, EDM's σ. The inverse of `ratio`."""

    def ratio(self, t: Tensor) -> Tensor:
        """σ_t/α_t: the noise on x_t/α_t = x₁ + (σ_t/α_t) x₀. Infinite where α_t = 0."""
        alpha, sigma, _, _ = self.coefficients(t)
        return sigma / alpha

    def input_scale(self, t: Tensor) -> Tensor:
        """What a network's input x_t is multiplied by, of t's shape, so that its size does not grow with the noise."""
        return torch.ones_like(t)

    def start(self, noise: Tensor) -> Tensor:
        """What sampling starts from at t = 0: σ_0 x₀."""
        return self.coefficients(torch.zeros((), dtype=noise.dtype, device=noise.device))[1] * noise

    def sample(self, x_0: Tensor, x_1: Tensor, t: Tensor) -> PathSample:
        """The point at time t between noise x_0 and data x_1; t is (batch,) or (batch, tokens), a time each token."""
        alpha, sigma, d_alpha, d_sigma = self.expanded(t, x_1)
        return PathSample(x_0, x_1, t, alpha * x_1 + sigma * x_0, d_alpha * x_1 + d_sigma * x_0)

    def data_and_noise(self, predicted: Tensor, kind: Prediction, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(x̂₁, x̂₀) with α x̂₁ + σ x̂₀ = x_t, from a prediction of either or of v̂ = α̇ x̂₁ + σ̇ x̂₀.

        A noise follows from data by a division by σ, data from a noise by one by α: at the ends of the path they have
        no value.
        """
        alpha, sigma, d_alpha, d_sigma = self.expanded(t, x_t)
        if kind == "data":
            return predicted, (x_t - alpha * predicted) / sigma
        if kind == "noise":
            return (x_t - sigma * predicted) / alpha, predicted
        if kind == "velocity":
            determinant = sigma * d_alpha - d_sigma * alpha
            data = (sigma * predicted - d_sigma * x_t) / determinant
            return data, (d_alpha * x_t - alpha * predicted) / determinant
        assert_never(kind)

    def convert(self, predicted: Tensor, kind: Prediction, into: Prediction, x_t: Tensor, t: Tensor) -> Tensor:
        """The same prediction at (x_t, t) as data, noise or velocity."""
        if kind == into:
            return predicted
        data, noise = self.data_and_noise(predicted, kind, x_t, t)
        if into == "data":
            return data
        if into == "noise":
            return noise
        _, _, d_alpha, d_sigma = self.expanded(t, x_t)
        return d_alpha * data + d_sigma * noise

    def expanded(self, t: Tensor, like: Tensor) -> list[Tensor]:
        """`coefficients` with ones appended to their shape, so that they multiply a tensor shaped as `like`."""
        shape = (*t.shape, *(1,) * (like.ndim - t.ndim))
        return [c.reshape(shape).to(like.dtype) for c in self.coefficients(t)]


class LinearPath(GaussianPath):
    """α = t, σ = 1 − t: straight lines, velocity = data − noise (rectified flow, arXiv 2209.03003)."""

    def coefficients(self, t: Tensor) -> Coefficients:
        return t, 1.0 - t, torch.ones_like(t), -torch.ones_like(t)

    def time_of(self, ratio: Tensor) -> Tensor:
        return 1.0 / (1.0 + ratio)


@dataclass(frozen=True)
class CosinePath(GaussianPath):
    """α = cos(y)/cos(y₀), σ = √(1 − α²) with y = π/2 · (1 − t + s)/(1 + s), y₀ = y(t = 1): squared-cosine ᾱ = α².

    Nichol and Dhariwal, arXiv 2102.09672. Computed in float64 whatever t is: near t = 0 the cosine has few digits.
    """

    offset: float = 0.008
    """s, which keeps the first noising steps from being too small. It makes σ̇ infinite at t = 1."""

    def coefficients(self, t: Tensor) -> Coefficients:
        first, slope = self._angle(0.0), math.pi / 2 / (1 + self.offset)
        angle = first + slope * (1.0 - t.double())
        # 1 − α² without the cancellation at t = 1: cos²y₀ − cos²y = sin(y − y₀) sin(y + y₀).
        sigma = (torch.sin(angle - first) * torch.sin(angle + first)).clamp(min=0.0).sqrt() / math.cos(first)
        # At t = 0 the cosine of the float64 nearest to π/2 is 6e-17: zero is meant.
        alpha = torch.where(t == 0.0, 0.0, angle.cos() / math.cos(first))
        d_alpha = slope * angle.sin() / math.cos(first)
        d_sigma = -alpha * d_alpha / sigma
        return alpha.to(t.dtype), sigma.to(t.dtype), d_alpha.to(t.dtype), d_sigma.to(t.dtype)

    def time_of(self, ratio: Tensor) -> Tensor:
        first = self._angle(0.0)
        angle = torch.acos(math.cos(first) * torch.cos(torch.atan(ratio.double())))
        return (1.0 - (angle - first) * (1 + self.offset) / (math.pi / 2)).to(ratio.dtype)

    def _angle(self, noising: float) -> float:
        return math.pi / 2 * (noising + self.offset) / (1 + self.offset)


class DiscretePath(GaussianPath):
    """The variance-preserving path of N noising steps: x after k + 1 of them is the point at t = 1 − (k + 1)/N.

    There α² = ᾱ_k = ∏ (1 − β_i) exactly. Between, the angle φ of α = cos φ, σ = sin φ is linear in t. N equal steps
    of a solver visit every noising step, N/m equal steps every m-th ("trailing" spacing, arXiv 2305.08891).
    """

    def __init__(self, betas: Float[Tensor, " steps"]) -> None:
        kept = torch.cumprod(1.0 - betas.double(), 0)
        angles = torch.atan2((1.0 - kept).sqrt(), kept.sqrt())
        self._angles = torch.cat([angles.new_zeros(1), angles])
        """φ after 0 … N noising steps."""

    @property
    def steps(self) -> int:
        return len(self._angles) - 1

    def coefficients(self, t: Tensor) -> Coefficients:
        angles = self._angles.to(t.device)
        position = (self.steps * (1.0 - t.double())).clamp(0.0, self.steps)
        below = position.long().clamp(max=self.steps - 1)
        rise = angles[below + 1] - angles[below]
        angle = angles[below] + (position - below) * rise
        alpha, sigma, speed = angle.cos(), angle.sin(), -self.steps * rise
        return alpha.to(t.dtype), sigma.to(t.dtype), (-sigma * speed).to(t.dtype), (alpha * speed).to(t.dtype)

    def time_of(self, ratio: Tensor) -> Tensor:
        """Ratios beyond the noisiest step give t = 0."""
        angles, angle = self._angles.to(ratio.device), torch.atan(ratio.double())
        above = torch.searchsorted(angles, angle).clamp(1, self.steps)
        position = above - 1 + (angle - angles[above - 1]) / (angles[above] - angles[above - 1])
        return (1.0 - position.clamp(max=self.steps) / self.steps).to(ratio.dtype)


def squared_cosine_betas(steps: int = 100, largest: float = 0.999, offset: float = 0.008) -> Float[Tensor, " steps"]:
    """β_k = min(1 − ᾱ((k+1)/N) / ᾱ(k/N), largest), ᾱ(s) = cos²(π/2 · (s + 0.008)/1.008), as in Diffusion Policy."""
    kept = torch.cos(math.pi / 2 * (torch.arange(steps + 1, dtype=torch.float64) / steps + offset) / (1 + offset)) ** 2
    return (1.0 - kept[1:] / kept[:-1]).clamp(max=largest)


@dataclass(frozen=True)
class EDMPath(GaussianPath):
    """α = 1, σ = σ_max (1 − t)^ρ: noise is added to data that keep their size (arXiv 2206.00364).

    ρ spends time where EDM's grid spends steps. Sampling starts from σ_max x₀.
    """

    largest_sigma: float = 80.0
    rho: float = 7.0

    def coefficients(self, t: Tensor) -> Coefficients:
        sigma = self.largest_sigma * (1.0 - t) ** self.rho
        d_sigma = -self.rho * self.largest_sigma * (1.0 - t) ** (self.rho - 1.0)
        return torch.ones_like(t), sigma, torch.zeros_like(t), d_sigma

    def time_of(self, ratio: Tensor) -> Tensor:
        return 1.0 - (ratio / self.largest_sigma) ** (1.0 / self.rho)

    def input_scale(self, t: Tensor) -> Tensor:
        """1 / √(1 + σ²): to unit variance, for data of unit variance (c_in of its Table 1)."""
        return (1.0 + self.coefficients(t)[1].square()).rsqrt()


PathName = Literal["linear", "cosine", "edm"]
PATHS: Mapping[PathName, type[GaussianPath]] = {"linear": LinearPath, "cosine": CosinePath, "edm": EDMPath}
"""Those that need nothing but their name."""
