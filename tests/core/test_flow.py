"""Paths and solvers against closed forms, in float64."""

import math

import pytest
import torch

from robostack.core.flow import LinearPath, Method, integrate, sample_time

F64 = torch.float64


def test_path_runs_from_noise_to_data_along_its_velocity() -> None:
    path, x_0, x_1 = LinearPath(), torch.randn(4, 3, 2, dtype=F64), torch.randn(4, 3, 2, dtype=F64)
    torch.testing.assert_close(path.sample(x_0, x_1, torch.zeros(4, dtype=F64)).x_t, x_0)
    torch.testing.assert_close(path.sample(x_0, x_1, torch.ones(4, dtype=F64)).x_t, x_1)
    t = torch.rand(4, dtype=F64)
    before, after = (path.sample(x_0, x_1, t + step).x_t for step in (-1e-6, 1e-6))
    torch.testing.assert_close((after - before) / 2e-6, path.sample(x_0, x_1, t).velocity, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("times", [(4,), (4, 3)])
def test_predictions_convert_into_each_other(times: tuple[int, ...]) -> None:
    path, t = LinearPath(), 0.9 * torch.rand(times, dtype=F64)
    x_0, x_1 = torch.randn(4, 3, 2, dtype=F64), torch.randn(4, 3, 2, dtype=F64)
    point = path.sample(x_0, x_1, t)
    torch.testing.assert_close(path.velocity_from_data(point.x_t, x_1, t), point.velocity)
    torch.testing.assert_close(path.data_from_velocity(point.x_t, point.velocity, t), x_1)


def test_small_sigma_is_bounded_in_the_division() -> None:
    path, t = LinearPath(), torch.tensor([0.99], dtype=F64)
    x_t, data = torch.zeros(1, 2, dtype=F64), torch.ones(1, 2, dtype=F64)
    bounded = path.velocity_from_data(x_t, data, t, smallest_sigma=0.05)
    torch.testing.assert_close(bounded, 1.0 + 0.99 * data / 0.05)


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2)])
def test_solvers_converge_with_their_order(method: Method, order: int) -> None:
    """dx/dt = cos(t) x has the solution x₀ exp(sin t)."""
    x_0 = torch.tensor([[1.0]], dtype=F64)
    exact = math.exp(math.sin(1.0))

    def error(steps: int) -> float:
        times = torch.linspace(0, 1, steps + 1, dtype=F64)
        return abs(float(integrate(lambda x, t: t.cos()[:, None] * x, x_0, times, method)) - exact)

    assert math.log2(error(64) / error(128)) == pytest.approx(order, abs=0.15)


def test_flow_of_a_gaussian_is_exact() -> None:
    """For data N(m, s²) the marginal velocity of the linear path is known; noise must arrive as m + s · noise."""
    mean, deviation = 2.0, 0.5
    noise = torch.linspace(-2, 2, 9, dtype=F64)[:, None]

    def field(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        t = t[:, None]
        variance = (t * deviation) ** 2 + (1 - t) ** 2
        return mean + (t * deviation**2 - (1 - t)) / variance * (x - t * mean)

    arrived = integrate(field, noise, torch.linspace(0, 1, 2001, dtype=F64), "heun")
    torch.testing.assert_close(arrived, mean + deviation * noise, rtol=1e-5, atol=1e-5)


def test_data_prediction_arrives_at_the_prediction() -> None:
    path, data = LinearPath(), torch.randn(3, 2)
    times = torch.linspace(0, 1, 11)
    arrived = integrate(lambda x, t: path.velocity_from_data(x, data, t, 0.05), torch.randn(3, 2), times)
    torch.testing.assert_close(arrived, data, rtol=1e-4, atol=1e-5)


def test_euler_agrees_with_diffusers() -> None:
    """diffusers runs σ from 1 (noise) to 0 and its model output is noise − data."""
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000)
    scheduler.set_timesteps(sigmas=[1.0 - i / 8 for i in range(8)])
    noise = torch.randn(2, 3, 4)
    theirs = noise
    for sigma, timestep in zip(scheduler.sigmas[:-1], scheduler.timesteps, strict=True):
        theirs = scheduler.step(-torch.sin(theirs + (1 - sigma)), timestep, theirs).prev_sample
    ours = integrate(lambda x, t: torch.sin(x + t[:, None, None]), noise, torch.linspace(0, 1, 9))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_beta_times_have_the_published_distribution() -> None:
    t = sample_time("beta", 200_000, torch.Generator().manual_seed(0)).double()
    noise_time = 1.0 - t  # π0's own direction: 0.001 + 0.999 Beta(1.5, 1)
    assert float(t.min()) >= 0.0 and float(t.max()) < 1.0
    assert float(noise_time.mean()) == pytest.approx(0.001 + 0.999 * 0.6, abs=2e-3)
    for x in (0.2, 0.5, 0.8):
        assert float(((noise_time - 0.001) / 0.999 < x).double().mean()) == pytest.approx(x**1.5, abs=4e-3)
