"""Guidance against Gaussians, where the guided flow is known."""

import math

import torch
from gaussian_flow import PATHS, full, gaussian_flow, gaussian_model
from torch import Tensor

from robostack.core.flow.guidance import clipped, objective_guided, posterior_variance
from robostack.core.flow.paths import LinearPath
from robostack.core.flow.solvers import solve

F64 = torch.float64


def even(steps: int, start: float = 0.0) -> Tensor:
    return torch.linspace(start, 1.0, steps + 1, dtype=F64)


def test_an_objective_on_the_data_gives_the_exact_posterior() -> None:
    """Prior N(m, s²), J = −ln p(y | x₁) seen through x₁ | x_t: the flow must carry noise to p(x₁ | y)."""
    path, mean, deviation, seen, error = LinearPath(), 0.7, 0.5, 1.6, 0.4

    def objective(data: Tensor, t: Tensor) -> Tensor:
        alpha, sigma, _, _ = path.coefficients(t)
        spread = (deviation * sigma).square() / ((alpha * deviation).square() + sigma.square())
        return ((data - seen).square() / (2 * (error**2 + spread))[:, None]).sum(1)

    precision = 1 / deviation**2 + 1 / error**2
    posterior = (mean / deviation**2 + seen / error**2) / precision
    noise = torch.linspace(-2, 2, 9, dtype=F64)[:, None]
    start = path.sample(noise, torch.zeros_like(noise), full(9, 1e-3)).x_t
    with torch.no_grad():
        guided = objective_guided(gaussian_model(path, mean, deviation), objective, largest=1e4)
        arrived = solve(guided, start, even(500, 1e-3), "heun")
    exact = gaussian_flow(path, start, full(9, 1e-3), full(9, 1.0), posterior, 1 / math.sqrt(precision))
    torch.testing.assert_close(arrived, exact, rtol=1e-3, atol=1e-3)


def test_guidance_begins_at_pure_noise_when_bounded() -> None:
    guided = objective_guided(gaussian_model(LinearPath()), lambda data, t: data.square().sum(1), largest=10.0)
    x = torch.randn(4, 3, dtype=F64)
    assert bool(solve(guided, x, even(5), "ddim").isfinite().all())


def test_clipped_predictions_keep_their_noise_consistent() -> None:
    path, x, t = PATHS["cosine"], 3 * torch.randn(6, 4, dtype=F64), full(6, 0.7)
    data, noise = clipped(gaussian_model(path, 2.0), -1.0, 1.0).data_and_noise(x, t)
    alpha, sigma, _, _ = path.expanded(t, x)
    assert float(data.abs().max()) <= 1.0
    torch.testing.assert_close(alpha * data + sigma * noise, x)


def test_the_bound_is_on_the_weight_of_real_time_chunking() -> None:
    """Equation 2 of arXiv 2506.07339: v + min(β, (1 − τ)/τ · (τ² + (1 − τ)²)/(1 − τ)²) · W(Y − x̂₁) ∂x̂₁/∂x."""
    path, beta, wanted = LinearPath(), 5.0, torch.tensor([1.0, 0.5], dtype=F64)
    target, x = torch.randn(4, 2, dtype=F64), torch.randn(4, 2, dtype=F64)
    model = gaussian_model(path, 0.3)

    def objective(data: Tensor, t: Tensor) -> Tensor:
        return 0.5 * (wanted * (target - data).square()).sum(1)

    guided = objective_guided(model, objective, beta, posterior_variance(path))
    for time in (0.05, 0.2, 0.5, 0.9):
        t, asked = full(4, time), x.clone().requires_grad_()
        data = model.data(asked, t)
        (product,) = torch.autograd.grad(data, asked, wanted * (target - data).detach())
        weight = min(beta, (1 - time) / time * (time**2 + (1 - time) ** 2) / (1 - time) ** 2)
        torch.testing.assert_close(guided.velocity(x, t), model.velocity(x, t) + weight * product)
