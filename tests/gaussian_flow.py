"""A flow known in closed form: data N(mean, deviation²), each entry by itself."""

from __future__ import annotations

import torch
from torch import Tensor

from robostack.core.flow.paths import (
    CosinePath,
    DiscretePath,
    EDMPath,
    GaussianPath,
    LinearPath,
    Prediction,
    squared_cosine_betas,
)
from robostack.core.flow.solvers import FlowModel

PATHS: dict[str, GaussianPath] = {
    "linear": LinearPath(),
    "cosine": CosinePath(),
    "discrete": DiscretePath(squared_cosine_betas(100)),
    "edm": EDMPath(),
}


def gaussian_model(
    path: GaussianPath, mean: float = 0.7, deviation: float = 0.5, kind: Prediction = "data"
) -> FlowModel:
    """The best prediction there is: E[x₁ | x_t], E[x₀ | x_t] or E[dx/dt | x_t]."""

    def predict(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma, d_alpha, d_sigma = path.expanded(t, x)
        variance = (alpha * deviation).square() + sigma.square()
        noise = sigma / variance * (x - alpha * mean)
        data = mean + alpha * deviation**2 / variance * (x - alpha * mean)
        return {"data": data, "noise": noise, "velocity": d_alpha * data + d_sigma * noise}[kind]

    return FlowModel(path, predict, kind)


def gaussian_flow(
    path: GaussianPath, x: Tensor, start: Tensor, end: Tensor, mean: float = 0.7, deviation: float = 0.5
) -> Tensor:
    """Where the exact flow carries x from `start` to `end`: (x_t − α m)/√(α² s² + σ²) does not change."""

    def marginal(t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma, _, _ = path.expanded(t, x)
        return alpha * mean, ((alpha * deviation).square() + sigma.square()).sqrt()

    (mean_start, spread_start), (mean_end, spread_end) = marginal(start), marginal(end)
    return mean_end + spread_end * (x - mean_start) / spread_start


def full(batch: int, value: float) -> Tensor:
    return torch.full((batch,), value, dtype=torch.float64)
