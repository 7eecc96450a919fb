"""Guidance: functions around a network that change where its flow leads, without training.

Each takes a `FlowModel` and gives another, so that any solver runs it and guidances compose.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from robostack.core.flow.paths import Field, GaussianPath
from robostack.core.flow.solvers import FlowModel

Objective = Callable[[Tensor, Tensor], Tensor]
"""(predicted data (batch, ...), t) ↦ what is to be made small, (batch,); each entry depends on its own row only."""


def clipped(model: FlowModel, lowest: float, highest: float) -> FlowModel:
    """The data prediction clipped, and with it the noise that belongs to it: for normalised actions [−1, 1]."""
    return _with_data(model, lambda x, t: model.data(x, t).clamp(lowest, highest))


def objective_guided(
    model: FlowModel, objective: Objective, largest: float, variance: Callable[[Tensor], Tensor] = torch.ones_like
) -> FlowModel:
    """x̂₁ − σ min(largest, σ / (α r²)) ∇_x J(x̂₁(x, t), t), r² = variance(t): the score of exp(−J/r²) on the predicted
    data, added to the flow's own.

    The gradient goes through the network (arXiv 2209.14687; as vector–Jacobian product of a quadratic J arXiv
    2302.07121). On the linear path σ / (α r²) weighs the gradient in the velocity, and is what real-time chunking
    bounds by β = 5 (arXiv 2506.07339, equation 2, with `posterior_variance`). With J = −ln p(y | x₁) taken under the
    spread of x₁ given x_t it is exact Bayes. Runs under torch.no_grad; not in inference_mode with tensors made there.
    """

    def data(x: Tensor, t: Tensor) -> Tensor:
        with torch.enable_grad():
            asked = x.detach().requires_grad_()
            predicted = model.data(asked, t)
            (gradient,) = torch.autograd.grad(objective(predicted, t).sum(), asked)
        alpha, sigma, _, _ = model.path.expanded(t, x)
        spread = variance(t).reshape(*t.shape, *(1,) * (x.ndim - t.ndim)).to(x.dtype)
        return predicted.detach() - sigma * (sigma / (alpha * spread)).clamp(max=largest) * gradient

    return _with_data(model, data)


def posterior_variance(path: GaussianPath) -> Callable[[Tensor], Tensor]:
    """t ↦ σ² / (α² + σ²): of each number of x₁ given x_t, where data have unit variance (arXiv 2302.07121)."""

    def variance(t: Tensor) -> Tensor:
        alpha, sigma, _, _ = path.coefficients(t)
        return sigma.square() / (alpha.square() + sigma.square())

    return variance


def _with_data(model: FlowModel, data: Field) -> FlowModel:
    return FlowModel(model.path, data, "data")
