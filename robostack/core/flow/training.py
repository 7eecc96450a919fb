"""Training on a Gaussian path: which times are drawn, and how errors are weighed.

At a fixed x_t the errors of a data, a noise and a velocity prediction are proportional to each other, with factors
that depend on t alone. So a loss "on the velocity" of a network that predicts data is a weight on its squared error:
no prediction is converted in training, and nothing is divided by a small σ.
"""

from __future__ import annotations

import math
from typing import Literal, assert_never

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robostack.core.flow.paths import GaussianPath, PathSample, Prediction
from robostack.core.losses import masked_mean

TimeSampling = Literal["uniform", "beta", "logit_normal", "log_normal"]
Weighting = Literal["velocity", "noise", "data", "edm", "min_snr"]


def sample_time(
    sampling: TimeSampling,
    path: GaussianPath,
    shape: int | tuple[int, ...],
    generator: torch.Generator,
    device: torch.device | str = "cpu",
) -> Float[Tensor, "..."]:
    """Training times in [0, 1), of shape (batch,) or (batch, tokens).

    `beta`: 1 − (0.001 + 0.999 · Beta(1.5, 1)), π0's choice, which favours noisy times (arXiv 2410.24164, appendix B).
    Beta(1.5, 1) has the distribution function x^1.5, so that u^(2/3) draws from it.
    `logit_normal`: 1 / (1 + e^−z), z ~ N(0, 1), which favours the middle (arXiv 2403.03206, section 3.1).
    `log_normal`: ln(σ_t/α_t) ~ N(−1.2, 1.2²) on `path`, EDM's choice (arXiv 2206.00364, Table 1).
    """
    shape = (shape,) if isinstance(shape, int) else shape
    if sampling == "logit_normal":
        return torch.sigmoid(torch.randn(shape, generator=generator, device=device))
    if sampling == "log_normal":
        return path.time_of(torch.exp(1.2 * torch.randn(shape, generator=generator, device=device) - 1.2))
    uniform = torch.rand(shape, generator=generator, device=device)
    if sampling == "uniform":
        return uniform
    if sampling == "beta":
        return 0.999 * (1.0 - uniform ** (2.0 / 3.0))
    assert_never(sampling)


def loss_weight(
    path: GaussianPath, t: Tensor, kind: Prediction, weighting: Weighting, data_deviation: float = 0.5
) -> Tensor:
    """w(t), of t's shape, such that w ‖error of the prediction‖² is the squared error that `weighting` names.

    `velocity`, `noise`, `data`: what the prediction would be converted into. In units of (x̂₁ error)/σ these errors
    are D = σα̇ − σ̇α, α and σ. `edm`: (r² + s²)/(r s)² on the data error, r = σ/α, s the deviation of the data
    (arXiv 2206.00364). `min_snr`: min(α²/σ², 5) on the data error (arXiv 2303.09556).
    """
    if kind == weighting:
        return torch.ones_like(t)
    alpha, sigma, d_alpha, d_sigma = path.coefficients(t)
    own = {"velocity": sigma * d_alpha - d_sigma * alpha, "noise": alpha, "data": sigma}
    if weighting == "edm":
        wanted = (sigma.square() + (data_deviation * alpha).square()) / data_deviation**2
    elif weighting == "min_snr":
        wanted = torch.minimum(alpha.square(), 5.0 * sigma.square())
    else:
        wanted = own[weighting].square()
    return wanted / own[kind].square()


def flow_loss(
    path: GaussianPath,
    predicted: Tensor,
    kind: Prediction,
    point: PathSample,
    weighting: Weighting,
    valid: Bool[Tensor, "..."] | None = None,
    largest_weight: float = math.inf,
) -> Float[Tensor, ""]:
    """Mean over the valid entries of w(t) (prediction − target)². `largest_weight` bounds w.

    Entries that are not valid may hold anything: tokens given clean (t = 1), padding.
    """
    weight = loss_weight(path, point.t, kind, weighting).clamp(max=largest_weight)
    weight = weight.reshape(*weight.shape, *(1,) * (predicted.ndim - weight.ndim))
    target = {"velocity": point.velocity, "noise": point.x_0, "data": point.x_1}[kind]
    error = (predicted - target).square()
    if valid is None:
        return (weight * error).mean()
    # Factor by factor: a clean token's weight may be infinite, and its gradient must still be zero.
    return masked_mean(torch.where(valid, weight, 0.0) * error.masked_fill(~valid, 0.0), valid)
