"""Energies: sampling from exp(−E), finding its minimum, training E by contrast, and adding energies.

An energy maps points x (*batch, *point) to (*batch,), each entry depending on its own point only; what it is
conditioned on is closed over. Low energy is likely: p(x) ∝ exp(−E(x)). The product of distributions is then the sum of
energies, which is how a learned policy meets an obstacle it was never trained with (`composed`, arXiv 1903.08689).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

EnergyFunction = Callable[[Tensor], Tensor]
"""x (*batch, *point) ↦ (*batch,)."""
Bounds = tuple[Tensor | float, Tensor | float]
"""Lowest and highest value of the entries of a point; a tensor broadcasts with x."""

UNBOUNDED: Bounds = (-math.inf, math.inf)


def composed(energies: Sequence[EnergyFunction], weights: Sequence[float] | None = None) -> EnergyFunction:
    """Σ_i w_i E_i, the energy of ∏_i p_i^{w_i}. Weights are 1 when none are given; one for each energy."""
    weights = [1.0] * len(energies) if weights is None else list(weights)
    if not energies or len(weights) != len(energies):
        raise ValueError(f"composed: expected a weight for each of one or more energies, got {len(weights)} weights "
                         f"for {len(energies)} energies")  # fmt: skip

    def total(x: Tensor) -> Tensor:
        parts = [weight * energy(x) for weight, energy in zip(weights, energies, strict=True)]
        return torch.stack(parts).sum(0)

    return total


def barrier(excess: Float[Tensor, "*any"], softness: float) -> Float[Tensor, "*any"]:
    """0 while the excess e is below 0, then ½ (e/s)², and e/s − ½ from e = s on: a spring whose force is bounded.

    Over a limit x ≤ high the excess is x − high, in a ball its radius minus the distance from its centre. An unbounded
    force throws Langevin's noisiest points, which are far over any limit, where no energy has a say.
    """
    over = F.relu(excess) / softness
    return torch.where(over < 1.0, 0.5 * over.square(), over - 0.5)


def gradient(
    energy: EnergyFunction, x: Float[Tensor, "*point"], differentiable: bool = False
) -> Float[Tensor, "*point"]:
    """∇E at every point of x, of x's shape. `differentiable`: it can be differentiated in turn, by the weights of E.

    Works under torch.no_grad. Under inference_mode it does not: tensors made there have no gradients.
    """
    with torch.enable_grad():
        asked = x if differentiable and x.requires_grad else x.detach().requires_grad_()
        (result,) = torch.autograd.grad(energy(asked).sum(), asked, create_graph=differentiable)
    return result


def langevin(
    energy: EnergyFunction,
    x: Float[Tensor, "*point"],
    step_sizes: Iterable[float],
    generator: torch.Generator,
    noise: float = 1.0,
    largest_step: float = math.inf,
    bounds: Bounds = UNBOUNDED,
) -> Float[Tensor, "*point"]:
    """x ← clamp(x − clip(½ ε ∇E) + noise √ε ω), ω ~ N(0, 1), for each ε of `step_sizes`: samples of exp(−E).

    As in Implicit Behavioural Cloning (arXiv 2109.00137, appendix B.3) steps decay, every entry of the gradient's step
    is clipped to ± `largest_step`, and points stay within `bounds`. Unlike there the noise goes
    with √ε, so that with noise 1 and small ε the samples are those of exp(−E); noise² is the temperature, and 0 is
    gradient descent. The result carries no gradient.
    """
    for step_size in step_sizes:
        step = (0.5 * step_size * gradient(energy, x)).clamp(-largest_step, largest_step)
        x = x.detach() - step
        if noise:
            x = x + noise * math.sqrt(step_size) * _normal_like(x, generator)
        x = _within(x, bounds)
    return x


def derivative_free(
    energy: EnergyFunction,
    candidates: Float[Tensor, "batch samples *point"],
    generator: torch.Generator,
    iterations: int = 3,
    noise: float = 0.33,
    shrink: float = 0.5,
    bounds: Bounds = UNBOUNDED,
) -> Float[Tensor, "batch *point"]:
    """The candidate of least energy after `iterations` of resampling in proportion to exp(−E) and adding noise.

    IBC's search (arXiv 2109.00137, Algorithm 1), with its 3 iterations, deviation 0.33 and halving, for points in
    [−1, 1]. It needs no gradients, and a number of samples that grows fast with the dimension: for few dimensions.
    Ends, as there, with the best of the last generation, no noise added. Runs without gradients.
    """
    rows = torch.arange(len(candidates), device=candidates.device)[:, None]
    with torch.no_grad():
        for iteration in range(iterations):
            likely = torch.softmax(-energy(candidates), dim=1)
            kept = torch.multinomial(likely, candidates.shape[1], replacement=True, generator=generator)
            candidates = candidates[rows, kept]
            candidates = candidates + noise * shrink**iteration * _normal_like(candidates, generator)
            candidates = _within(candidates, bounds)
        return candidates[rows[:, 0], energy(candidates).argmin(dim=1)]


def info_nce(positive: Float[Tensor, " batch"], negatives: Float[Tensor, "batch negatives"]) -> Float[Tensor, ""]:
    """−ln (e^{−E⁺} / (e^{−E⁺} + Σ_j e^{−E_j})), averaged: to tell the demonstrated point from N counter-examples.

    arXiv 2109.00137, equation 2. With counter-examples drawn from the model it is ln(N + 1) once they cannot be told
    from the data.
    """
    return (positive + torch.logsumexp(-torch.cat([positive[:, None], negatives], dim=1), dim=1)).mean()


def gradient_penalty(
    energy: EnergyFunction, x: Float[Tensor, "*point"], margin: float = 1.0, batch_dims: int = 1
) -> Float[Tensor, ""]:
    """max(0, ‖∇E(x)‖_∞ − margin)², averaged over the points: bounds how steep E gets, and Langevin steps.

    arXiv 2109.00137, appendix B.3.1. The norm is taken over all but the first `batch_dims` dimensions.
    """
    slope = gradient(energy, x, differentiable=True).abs().flatten(batch_dims).amax(dim=-1)
    return F.relu(slope - margin).square().mean()


def _within(x: Tensor, bounds: Bounds) -> Tensor:
    low, high = (torch.as_tensor(bound, dtype=x.dtype, device=x.device) for bound in bounds)
    return torch.maximum(torch.minimum(x, high), low)


def _normal_like(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
