"""Solvers that carry a sample from noise to data along any Gaussian path, from any prediction.

A solver walks over `times`, rising to 1: shape (points,), or (points, tokens) or (points, batch, tokens) where every
token has its own time. A token whose time stands still between two points is held as it is: what is given clean from
the start (its time is 1 throughout) conditions the rest. The last step to t = 1 puts the data prediction out.

Which one: `euler` and `heun` step in t; `ddim` is Euler in (α, σ), and the same as `euler` on the linear path. `dpm` is
second order at one network call a step: DPM-Solver++(2M) (arXiv 2211.01095), and on the linear path with `shifted`
times Flow-DPM (SANA, arXiv 2410.10629). `ddpm` and `edm` add noise on the way, for many steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, assert_never

import torch
from torch import Tensor

from robostack.core.flow.paths import Field, GaussianPath, Prediction

Method = Literal["euler", "heun"]
Solver = Literal["euler", "heun", "ddim", "dpm", "ddpm", "edm"]


@dataclass(frozen=True)
class FlowModel:
    """A network on its path: `predict` (x_t, t) ↦ what `kind` says."""

    path: GaussianPath
    predict: Field
    kind: Prediction

    def velocity(self, x_t: Tensor, t: Tensor) -> Tensor:
        """dx/dt of the probability flow."""
        return self.path.convert(self.predict(x_t, t), self.kind, "velocity", x_t, t)

    def data_and_noise(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(x̂₁, x̂₀) at x_t."""
        return self.path.data_and_noise(self.predict(x_t, t), self.kind, x_t, t)

    def data(self, x_t: Tensor, t: Tensor) -> Tensor:
        """x̂₁ at x_t."""
        return self.data_and_noise(x_t, t)[0]


def solve(
    model: FlowModel, x: Tensor, times: Tensor, solver: Solver, generator: torch.Generator | None = None
) -> Tensor:
    """Carries x (batch, ...) from times[0] to times[-1]. `ddpm` and `edm` draw their noise from `generator`."""
    if solver == "euler" or solver == "heun":
        return integrate(model.velocity, x, times, solver)
    if solver == "ddim":
        return ddim(model, x, times)
    if solver == "dpm":
        return dpm_solver(model, x, times)
    if generator is None:
        raise ValueError(f"solver '{solver}' adds noise: pass a generator")
    if solver == "ddpm":
        return ancestral(model, x, times, generator)
    if solver == "edm":
        return stochastic_heun(model, x, times, generator)
    assert_never(solver)


def integrate(field: Field, x: Tensor, times: Tensor, method: Method = "euler") -> Tensor:
    """Carries x (batch, ...) from times[0] to times[-1] along dx/dt = field(x, t), one step between neighbours.

    `euler` asks the field once a step. `heun` (second order) asks twice, but takes a last step that ends at t = 1 as
    Euler, where a velocity made from a data prediction has no value (as in EDM, arXiv 2206.00364, algorithm 1).
    """
    for start, end in _steps(times, x):
        step = _like(end - start, x)
        velocity = field(x, start)
        arrived = x + step * velocity
        if method == "heun" and bool((end < 1.0).any()):
            slope = 0.5 * (velocity + field(arrived, end))
            arrived = torch.where(_like(end < 1.0, x), x + step * slope, arrived)
        x = _held(arrived, x, start, end)
    return x


def ddim(model: FlowModel, x: Tensor, times: Tensor) -> Tensor:
    """x_u = α_u x̂₁ + σ_u x̂₀ from t to the next time u (arXiv 2010.02502, equation 12 with η = 0). First order."""
    for start, end in _steps(times, x):
        data, noise = model.data_and_noise(x, start)
        alpha, sigma, _, _ = model.path.expanded(end, x)
        x = _held(alpha * data + sigma * noise, x, start, end)
    return x


def ancestral(
    model: FlowModel, x: Tensor, times: Tensor, generator: torch.Generator, stochasticity: float = 1.0
) -> Tensor:
    """DDPM's sampler: x_u drawn from the posterior N(x_u | x_t, x̂₁), its noise times `stochasticity` (DDIM's η).

    Its variance is σ_u² (1 − (α_t σ_u / (α_u σ_t))²) (arXiv 2010.02502, equation 16, written for any path).
    """
    for start, end in _steps(times, x):
        data, noise = model.data_and_noise(x, start)
        alpha, sigma, _, _ = model.path.expanded(end, x)
        alpha_before, sigma_before, _, _ = model.path.expanded(start, x)
        kept = (alpha_before * sigma) / (alpha * sigma_before)
        variance = (stochasticity * sigma).square() * (1.0 - kept.square()).clamp(min=0.0)
        fresh = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        mean = alpha * data + (sigma.square() - variance).clamp(min=0.0).sqrt() * noise
        x = _held(mean + variance.sqrt() * fresh, x, start, end)
    return x


def dpm_solver(model: FlowModel, x: Tensor, times: Tensor) -> Tensor:
    """DPM-Solver++(2M), arXiv 2211.01095, algorithm 2: exact in the linear part, x̂₁ extrapolated in λ = ln(α/σ).

    x_u = (σ_u/σ_t) x_t + (α_u − α_t σ_u/σ_t) x̃₁,  x̃₁ = x̂₁ + h/(2 h′) (x̂₁ − x̂₁′), h and h′ this and the last step
    in λ. The first step, the one after α = 0 and the one that ends at σ = 0 take x̃₁ = x̂₁.
    """
    before: tuple[Tensor, Tensor] | None = None
    for start, end in _steps(times, x):
        data = model.data(x, start)
        alpha, sigma, _, _ = model.path.expanded(start, x)
        alpha_after, sigma_after, _, _ = model.path.expanded(end, x)
        h = (alpha_after / sigma_after).log() - (alpha / sigma).log()
        ahead = data
        if before is not None:
            data_before, h_before = before
            weight = h / (2.0 * h_before)
            # Not finite: this step ends at σ = 0, or the token stood still in the last one.
            ahead = data + torch.where(weight.isfinite(), weight, 0.0) * (data - data_before)
        shrink = sigma_after / sigma
        before = data, h
        x = _held(shrink * x + (alpha_after - alpha * shrink) * ahead, x, start, end)
    return x


def stochastic_heun(
    model: FlowModel,
    x: Tensor,
    times: Tensor,
    generator: torch.Generator,
    churn: float = 40.0,
    lowest: float = 0.05,
    highest: float = 50.0,
    inflation: float = 1.003,
) -> Tensor:
    """EDM's sampler (arXiv 2206.00364, algorithm 2): raise the noise a little, then a Heun step in r = σ/α.

    On x/α with d(x/α)/dr = x̂₀, so that it runs on any path from a time with α > 0. Noise is raised by the factor
    1 + min(churn/steps, √2 − 1) where lowest ≤ r ≤ highest; the fresh noise has deviation `inflation`. The defaults
    are the paper's S_churn, S_tmin, S_tmax, S_noise for ImageNet. churn = 0 is the deterministic algorithm 1.
    """
    if not bool((model.path.coefficients(times[0])[0] > 0).all()):
        raise ValueError("EDM's sampler divides by α, which is 0 at times[0]: start later, or take ddim or dpm")
    raise_by = min(churn / (len(times) - 1), math.sqrt(2.0) - 1.0)
    for start, end in _steps(times, x):
        ratio = model.path.ratio(start)
        churned = (ratio >= lowest) & (ratio <= highest)
        raised = torch.where(churned, model.path.time_of(ratio * (1.0 + raise_by)), start)
        # What the path has there: a path with a noisiest step cannot be raised beyond it.
        ratio_raised = model.path.ratio(raised)
        added = (ratio_raised.square() - ratio.square()).clamp(min=0.0).sqrt()
        alpha, alpha_raised, alpha_end = (_like(model.path.coefficients(t)[0], x) for t in (start, raised, end))
        fresh = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        scaled = x / alpha + _like(added, x) * inflation * fresh
        step = _like(model.path.ratio(end) - ratio_raised, x)
        _, noise = model.data_and_noise(alpha_raised * scaled, raised)
        arrived = scaled + step * noise
        if bool((end < 1.0).any()):
            _, ahead = model.data_and_noise(alpha_end * arrived, end)
            arrived = torch.where(_like(end < 1.0, x), scaled + step * 0.5 * (noise + ahead), arrived)
        x = _held(alpha_end * arrived, x, start, end)
    return x


def shifted(times: Tensor, shift: float) -> Tensor:
    """Times moved towards noise: σ ↦ shift σ / (1 + (shift − 1) σ), σ = 1 − t (arXiv 2403.03206, equation 23)."""
    sigma = 1.0 - times
    return 1.0 - shift * sigma / (1.0 + (shift - 1.0) * sigma)


def _steps(times: Tensor, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Neighbouring times as (batch,) or (batch, tokens)."""
    shape = (x.shape[0], *times.shape[-1:]) if times.ndim > 1 else (x.shape[0],)
    for start, end in pairwise(times):
        yield start.expand(shape), end.expand(shape)


def _held(arrived: Tensor, x: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """x where a token's time stands still: there a solver may divide zero by zero."""
    return arrived if start.ndim == 1 else torch.where(_like(end > start, x), arrived, x)


def _like(values: Tensor, x: Tensor) -> Tensor:
    """`values` of a time's shape with ones appended, to multiply x."""
    values = values if values.dtype == torch.bool else values.to(x.dtype)
    return values.reshape(*values.shape, *(1,) * (x.ndim - values.ndim))
