"""Energies whose distribution, minimum or loss is known in closed form."""

import math

import pytest
import torch
from torch import Tensor

from robostack.core.energy import (
    EnergyFunction,
    barrier,
    composed,
    derivative_free,
    gradient,
    gradient_penalty,
    info_nce,
    langevin,
)

F64 = torch.float64
MEAN = torch.tensor([0.5, -0.3], dtype=F64)
DEVIATION = torch.tensor([0.4, 0.2], dtype=F64)

MODES_ABOVE_ZERO = 0.25 * 0.0228 + 0.75 * 0.9772
"""Share of the mixture above 0, two deviations from either mean."""


def gaussian(mean: Tensor, deviation: Tensor) -> EnergyFunction:
    return lambda x: 0.5 * ((x - mean) / deviation).square().sum(-1)


def mixture(x: Tensor) -> Tensor:
    """0.25 N(−1, 0.5²) + 0.75 N(1, 0.5²), for points of one dimension."""
    parts = [math.log(share) - 0.5 * ((x[..., 0] - mean) / 0.5).square() for share, mean in ((0.25, -1), (0.75, 1))]
    return -torch.logsumexp(torch.stack(parts), dim=0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_langevin_samples_a_gaussian() -> None:
    start = torch.zeros(20_000, 2, dtype=F64)
    samples = langevin(gaussian(MEAN, DEVIATION), start, [0.004] * 400, seeded())
    torch.testing.assert_close(samples.mean(0), MEAN, rtol=0.0, atol=0.02)
    # A step ε makes the variance s² / (1 − ε / 4s²): 2.5 % at the smaller of the two deviations.
    torch.testing.assert_close(samples.std(0), DEVIATION, rtol=0.03, atol=0.0)
    correlation = torch.corrcoef(samples.T)[0, 1]
    assert abs(float(correlation)) < 0.03


def test_annealed_langevin_samples_a_mixture() -> None:
    """Decaying steps cross between the modes while they are large and settle in them when they are small."""
    start = 4 * torch.rand(10_000, 1, generator=seeded(1), dtype=F64) - 2
    steps = [0.01 + 0.19 * (1 - i / 399) ** 2 for i in range(400)]
    samples = langevin(mixture, start, steps, seeded())
    assert float((samples > 0).double().mean()) == pytest.approx(MODES_ABOVE_ZERO, abs=0.02)
    for power, moment in ((1, 0.5), (2, 0.25 + 1), (3, 0.5 * (1 + 3 * 0.25))):
        assert float((samples**power).mean()) == pytest.approx(moment, abs=0.06)


def test_without_noise_langevin_descends_within_step_and_bounds() -> None:
    energy, start = gaussian(MEAN, DEVIATION), torch.tensor([[3.0, -3.0]], dtype=F64)
    once = langevin(energy, start, [1.0], seeded(), noise=0.0, largest_step=0.25)
    torch.testing.assert_close(once, torch.tensor([[2.75, -2.75]], dtype=F64))
    arrived = langevin(energy, start, [0.02] * 300, seeded(), noise=0.0)
    torch.testing.assert_close(arrived, MEAN[None], rtol=0.0, atol=1e-6)
    low = torch.tensor([0.0, -0.1], dtype=F64)
    held = langevin(energy, start, [0.02] * 300, seeded(), noise=0.0, bounds=(low, 0.3))
    torch.testing.assert_close(held, torch.tensor([[0.3, -0.1]], dtype=F64))


def test_langevin_repeats_itself_from_the_same_generator() -> None:
    energy, start = gaussian(MEAN, DEVIATION), torch.zeros(3, 2, dtype=F64)
    first, again, other = (langevin(energy, start, [0.01] * 5, seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("weights", [None, [0.5, 2.0]])
def test_composed_gaussians_are_the_gaussian_of_their_product(weights: list[float] | None) -> None:
    means, deviations, w = (-0.5, 1.0), (0.6, 0.3), weights or [1.0, 1.0]
    precisions = [weight / deviation**2 for weight, deviation in zip(w, deviations, strict=True)]
    mean = sum(p * m for p, m in zip(precisions, means, strict=True)) / sum(precisions)
    one = torch.ones(1, dtype=F64)
    energy = composed([gaussian(m * one, d * one) for m, d in zip(means, deviations, strict=True)], weights)

    x = torch.linspace(-2, 2, 9, dtype=F64)[:, None]
    torch.testing.assert_close(gradient(energy, x), sum(precisions) * (x - mean))
    samples = langevin(energy, torch.zeros(20_000, 1, dtype=F64), [0.004] * 300, seeded())
    assert float(samples.mean()) == pytest.approx(mean, abs=0.01)
    assert float(samples.var()) == pytest.approx(1 / sum(precisions), rel=0.05)


def test_composition_asks_for_a_weight_each() -> None:
    with pytest.raises(ValueError, match="got 1 weights for 2 energies"):
        composed([mixture, mixture], [1.0])
    with pytest.raises(ValueError, match="one or more"):
        composed([])


def test_derivative_free_search_finds_the_lower_of_two_minima() -> None:
    """Two conditions at once, each with a minimum of its own and a worse one: E = (x² − c²)² + 0.2 x."""
    spots = torch.tensor([[0.5], [0.8]], dtype=F64)

    def energy(x: Tensor) -> Tensor:
        return 60 * ((x.square() - spots.square()[:, None]).square().sum(-1) + 0.2 * x.sum(-1))

    candidates = 2 * torch.rand(2, 512, 2, generator=seeded(1), dtype=F64) - 1
    found = derivative_free(energy, candidates, seeded(), iterations=6, bounds=(-1.0, 1.0))
    lowest = torch.tensor([[root(0.5)] * 2, [root(0.8)] * 2], dtype=F64)
    torch.testing.assert_close(found, lowest, rtol=0.0, atol=0.03)
    assert torch.equal(found, derivative_free(energy, candidates, seeded(), iterations=6, bounds=(-1.0, 1.0)))


def root(spot: float) -> float:
    """The minimum of (x² − c²)² + 0.2 x at negative x, by Newton's method."""
    x = -spot
    for _ in range(50):
        x -= (4 * x * (x * x - spot * spot) + 0.2) / (12 * x * x - 4 * spot * spot)
    return x


def test_derivative_free_search_stays_within_bounds() -> None:
    candidates = torch.zeros(1, 64, 3, dtype=F64)
    found = derivative_free(lambda x: x.sum(-1), candidates, seeded(), iterations=8, noise=1.0, bounds=(-0.5, 0.5))
    assert bool((found >= -0.5).all()) and bool((found < -0.3).all())


def test_info_nce_is_the_cross_entropy_of_picking_the_demonstration() -> None:
    positive, negatives = torch.tensor([1.0, 2.0], dtype=F64), torch.tensor([[2.0, 3.0], [0.0, 2.0]], dtype=F64)
    shares = [math.exp(-1) / (math.exp(-1) + math.exp(-2) + math.exp(-3)), math.exp(-2) / (2 * math.exp(-2) + 1)]
    assert float(info_nce(positive, negatives)) == pytest.approx(-sum(map(math.log, shares)) / 2)
    alike = torch.full((4, 7), 3.0, dtype=F64)
    assert float(info_nce(alike[:, 0], alike)) == pytest.approx(math.log(8))


def test_gradient_penalty_is_the_squared_excess_of_the_steepest_entry() -> None:
    """E = ½ k x²: the gradient is k x."""
    k = torch.tensor(2.0, dtype=F64, requires_grad=True)
    x = torch.tensor([[0.1, -0.2], [1.0, -3.0], [0.2, 0.9]], dtype=F64)
    penalty = gradient_penalty(lambda x: 0.5 * k * x.square().sum(-1), x, margin=1.0)
    assert penalty.item() == pytest.approx(((2 * 3.0 - 1) ** 2 + (2 * 0.9 - 1) ** 2) / 3)
    penalty.backward()
    assert k.grad is not None
    assert k.grad.item() == pytest.approx((2 * (2 * 3.0 - 1) * 3.0 + 2 * (2 * 0.9 - 1) * 0.9) / 3)


def test_a_barrier_is_a_spring_of_bounded_force() -> None:
    excess = torch.tensor([-1.0, 0.0, 0.05, 0.1, 0.4], dtype=F64)
    torch.testing.assert_close(barrier(excess, softness=0.1), torch.tensor([0.0, 0.0, 0.125, 0.5, 3.5], dtype=F64))
    force = gradient(lambda x: barrier(x, softness=0.1), excess)
    torch.testing.assert_close(force, torch.tensor([0.0, 0.0, 5.0, 10.0, 10.0], dtype=F64))


def test_gradients_are_taken_where_none_are_recorded() -> None:
    x = torch.tensor([[0.7, 0.1]], dtype=F64)
    with torch.no_grad():
        slope = gradient(gaussian(MEAN, DEVIATION), x)
    torch.testing.assert_close(slope, (x - MEAN) / DEVIATION.square())
    assert not slope.requires_grad and not x.requires_grad
