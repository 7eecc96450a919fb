"""Paths and the conversions between predictions, in float64."""

import numpy as np
import pytest
import torch
from gaussian_flow import PATHS, full
from hypothesis import given
from hypothesis import strategies as st

from robostack.core.flow.paths import CosinePath, DiscretePath, EDMPath, LinearPath, Prediction, squared_cosine_betas

F64 = torch.float64
KINDS: tuple[Prediction, ...] = ("velocity", "noise", "data")
every_path = pytest.mark.parametrize("name", PATHS)


@every_path
def test_path_ends_in_the_data_and_starts_from_noise(name: str) -> None:
    path, x_0, x_1 = PATHS[name], torch.randn(4, 3, 2, dtype=F64), torch.randn(4, 3, 2, dtype=F64)
    torch.testing.assert_close(path.sample(x_0, x_1, full(4, 1.0)).x_t, x_1)
    alpha, sigma, _, _ = path.coefficients(torch.zeros(1, dtype=F64))
    # EDM keeps the data and drowns them; the cap on the last β leaves a trace of them.
    assert float(alpha / sigma) == pytest.approx(
        {"linear": 0, "cosine": 0, "discrete": 4.9e-4, "edm": 1 / 80}[name], abs=1e-5
    )
    torch.testing.assert_close(path.start(x_0), sigma * x_0)


@every_path
def test_velocity_is_the_derivative_of_the_path(name: str) -> None:
    path, x_0, x_1 = PATHS[name], torch.randn(50, 3, dtype=F64), torch.randn(50, 3, dtype=F64)
    t = 0.005 + 0.01 * torch.randint(1, 98, (50,)).double()  # between the kinks of the discrete path
    before, after = (path.sample(x_0, x_1, t + step).x_t for step in (-1e-6, 1e-6))
    torch.testing.assert_close((after - before) / 2e-6, path.sample(x_0, x_1, t).velocity, rtol=1e-5, atol=1e-5)


@given(
    name=st.sampled_from(sorted(PATHS)),
    kind=st.sampled_from(KINDS),
    into=st.sampled_from(KINDS),
    t=st.floats(0.02, 0.98),
    x_0=st.floats(-5, 5),
    x_1=st.floats(-5, 5),
)
def test_predictions_convert_into_each_other(
    name: str, kind: Prediction, into: Prediction, t: float, x_0: float, x_1: float
) -> None:
    path = PATHS[name]
    time = full(1, 0.7 * t if name == "edm" else t)  # beyond, EDM's σ is so small that x_t holds no digit of the noise
    point = path.sample(full(1, x_0), full(1, x_1), time)
    exact = {"velocity": point.velocity, "noise": point.x_0, "data": point.x_1}
    there = path.convert(exact[kind], kind, into, point.x_t, time)
    torch.testing.assert_close(there, exact[into], rtol=1e-9, atol=1e-9)
    back = path.convert(there, into, kind, point.x_t, time)
    torch.testing.assert_close(back, exact[kind], rtol=1e-9, atol=1e-8)


@every_path
@pytest.mark.parametrize("kind", KINDS)
def test_each_token_may_have_its_own_time(name: str, kind: Prediction) -> None:
    path, t = PATHS[name], 0.1 + 0.8 * torch.rand(4, 3, dtype=F64)
    x_0, x_1 = torch.randn(4, 3, 2, dtype=F64), torch.randn(4, 3, 2, dtype=F64)
    together = path.sample(x_0, x_1, t)
    for token in range(3):
        alone = path.sample(x_0[:, token], x_1[:, token], t[:, token])
        torch.testing.assert_close(together.x_t[:, token], alone.x_t)
        torch.testing.assert_close(together.velocity[:, token], alone.velocity)
        converted = path.convert(x_1, kind, "velocity", together.x_t, t)[:, token]
        torch.testing.assert_close(converted, path.convert(x_1[:, token], kind, "velocity", alone.x_t, t[:, token]))


@given(name=st.sampled_from(sorted(PATHS)), t=st.floats(0.01, 0.99))
def test_time_of_inverts_the_noise_ratio(name: str, t: float) -> None:
    path = PATHS[name]
    assert float(path.time_of(path.ratio(full(1, t)))) == pytest.approx(t, abs=1e-9)


def test_ratios_beyond_the_noisiest_step_give_the_start() -> None:
    assert float(PATHS["discrete"].time_of(full(1, 1e6))) == 0.0
    assert float(PATHS["discrete"].time_of(full(1, 0.0))) == 1.0


@pytest.mark.parametrize("steps", [10, 100, 1000])
def test_discrete_path_is_the_ddpm_of_diffusers(steps: int) -> None:
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    scheduler = DDPMScheduler(steps, beta_schedule="squaredcos_cap_v2")
    betas = squared_cosine_betas(steps)
    torch.testing.assert_close(betas.float(), scheduler.betas, rtol=1e-6, atol=1e-7)
    t = 1.0 - (torch.arange(steps, dtype=F64) + 1) / steps
    alpha, sigma, _, _ = DiscretePath(betas).coefficients(t)
    # Their table is a float32 product of `steps` factors.
    torch.testing.assert_close(alpha.square().float(), scheduler.alphas_cumprod, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(alpha.square() + sigma.square(), torch.ones_like(t))
    x_0, x_1, step = torch.randn(steps, 5), torch.randn(steps, 5), torch.arange(steps)
    noised = DiscretePath(betas).sample(x_0, x_1, t.float()).x_t
    torch.testing.assert_close(noised, scheduler.add_noise(x_1, x_0, step), rtol=1e-5, atol=2e-5)


def test_cosine_path_is_the_discrete_one_without_its_cap() -> None:
    t = 1.0 - torch.arange(0, 100, dtype=F64) / 100  # all but t = 0, where the cap on β acts
    for ours, theirs in zip(CosinePath().coefficients(t)[:2], PATHS["discrete"].coefficients(t)[:2], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_float32_times_keep_the_digits_of_a_small_alpha() -> None:
    for path in (CosinePath(), PATHS["discrete"]):
        t = torch.tensor([0.0, 0.01, 0.02])
        exact = path.coefficients(t.double())[0]
        torch.testing.assert_close(path.coefficients(t)[0].double(), exact, rtol=1e-6, atol=0.0)


def test_edm_path_spends_time_as_the_published_grid() -> None:
    """With σ_min = 0 the grid of 2206.00364, equation 5, is σ_max (1 − i/(n − 1))^7."""
    sigma = EDMPath().coefficients(torch.linspace(0, 1, 5, dtype=F64))[1]
    np.testing.assert_allclose(sigma, 80.0 * np.array([1, 0.75, 0.5, 0.25, 0]) ** 7, rtol=1e-12)


def test_inputs_keep_their_size_where_noise_drowns_the_data() -> None:
    path, t = EDMPath(), torch.linspace(0, 1, 5, dtype=F64)
    _, sigma, _, _ = path.coefficients(t)
    torch.testing.assert_close(path.input_scale(t).square() * (1.0 + sigma.square()), torch.ones_like(t))
    assert bool((LinearPath().input_scale(t) == 1.0).all())
