"""Guidance: functions around a network that change where its flow leads, without training.

Each takes a `FlowModel` and gives another, so that any solver runs it and guidances compose. `optimise_noise` is the
other way: it leaves the flow as it is and looks for the noise that the flow carries to what is wanted.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robostack.core.flow.paths import Field
from robostack.core.flow.solvers import FlowModel

Objective = Callable[[Tensor, Tensor], Tensor]
"""(predicted data (batch, ...), t) ↦ what is to be made small, (batch,); each entry depends on its own row only."""


def classifier_free(conditional: Field, unconditional: Field, scale: float) -> Field:
    """(1 − s) f(x, t) + s f(x, t | c): s = 1 is the conditional field, s > 1 goes beyond it (arXiv 2207.12598).

    The same for velocity, noise and data predictions, since they are affine in each other at a given (x, t).
    """

    def guided(x: Tensor, t: Tensor) -> Tensor:
        without = unconditional(x, t)
        return without + scale * (conditional(x, t) - without)

    return guided


def clipped(model: FlowModel, lowest: float, highest: float) -> FlowModel:
    """The data prediction clipped, and with it the noise that belongs to it: for normalised actions [−1, 1]."""
    return _with_data(model, lambda x, t: model.data(x, t).clamp(lowest, highest))


def inpainted(model: FlowModel, known: Tensor, given: Bool[Tensor, "..."]) -> FlowModel:
    """Predicts `known` wherever `given`; both broadcast with x. Those entries go straight from their noise to it.

    Nothing tells the network that they are known but their own x_t. To give it clean entries, train it with a time
    for each token and hold theirs at 1.
    """
    return _with_data(model, lambda x, t: torch.where(given, known.to(x.dtype), model.data(x, t)))


def objective_guided(model: FlowModel, objective: Objective, largest: float, scale: float = 1.0) -> FlowModel:
    """x̂₁ − scale · σ²/α · ∇_x J(x̂₁(x, t), t): the score of exp(−J) on the predicted data, added to the flow's own.

    The gradient goes through the network (arXiv 2209.14687; as vector–Jacobian product of a quadratic J arXiv
    2302.07121 and real-time chunking, 2506.07339). `largest` bounds σ²/α, which is infinite at t = 0 on most paths.
    With J = −ln p(y | x₁) taken under the spread of x₁ given x_t, which J may compute from t, it is exact Bayes.
    Runs under torch.no_grad; not in inference_mode with tensors made there.
    """

    def data(x: Tensor, t: Tensor) -> Tensor:
        with torch.enable_grad():
            asked = x.detach().requires_grad_()
            predicted = model.data(asked, t)
            (gradient,) = torch.autograd.grad(objective(predicted, t).sum(), asked)
        alpha, sigma, _, _ = model.path.expanded(t, x)
        return predicted.detach() - scale * (sigma.square() / alpha).clamp(max=largest) * gradient

    return _with_data(model, data)


def optimise_noise(
    sample: Callable[[Tensor], Tensor],
    objective: Callable[[Tensor], Tensor],
    noise: Float[Tensor, "batch ..."],
    steps: int = 20,
    learning_rate: float = 0.1,
) -> Float[Tensor, "batch ..."]:
    """The noise, row by row, whose sample has the smallest objective seen: Adam through the whole solver.

    DITTO (arXiv 2401.12179). `sample` maps noise (batch, ...) to data by a deterministic solver; where its memory is
    too much, wrap its network in torch.utils.checkpoint. `objective` maps data to (batch,). The given noise is the
    first of `steps` + 1 candidates, so the result is never worse.
    """
    best, lowest = noise.detach().clone(), torch.full((noise.shape[0],), math.inf, device=noise.device)
    with torch.enable_grad():
        current = noise.detach().clone().requires_grad_()
        optimiser = torch.optim.Adam([current], lr=learning_rate)
        for step in range(steps + 1):
            values = objective(sample(current))
            better = values.detach() < lowest
            best[better], lowest = current.detach()[better], torch.where(better, values.detach(), lowest)
            if step < steps:
                (current.grad,) = torch.autograd.grad(values.sum(), current)
                optimiser.step()
    if not bool(lowest.isfinite().all()):
        raise ValueError("optimise_noise: the objective is not finite for some row, at any noise tried")
    return best


def _with_data(model: FlowModel, data: Field) -> FlowModel:
    return FlowModel(model.path, data, "data", model.smallest)
