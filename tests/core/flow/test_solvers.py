"""Solvers against exact integrals in float64, against their order, and against diffusers step by step."""

import math

import numpy as np
import pytest
import torch
from gaussian_flow import PATHS, full, gaussian_flow, gaussian_model
from torch import Tensor

from robostack.core.flow.guidance import clipped
from robostack.core.flow.paths import DiscretePath, EDMPath, LinearPath, Prediction, squared_cosine_betas
from robostack.core.flow.solvers import (
    FlowModel,
    Method,
    Solver,
    ancestral,
    ddim,
    integrate,
    shifted,
    solve,
    stochastic_heun,
)

F64 = torch.float64
SMOOTH = ["linear", "cosine", "edm"]  # the discrete path has kinks, on which no order can be measured


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def even(steps: int, start: float = 0.0, end: float = 1.0) -> Tensor:
    return torch.linspace(start, end, steps + 1, dtype=F64)


def run(solver: Solver, model: FlowModel, x: Tensor, times: Tensor) -> Tensor:
    if solver == "edm":
        return stochastic_heun(model, x, times, seeded(), churn=0.0)
    return solve(model, x, times, solver)


# ---- exact integrals


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2)])
def test_methods_converge_with_their_order(method: Method, order: int) -> None:
    """dx/dt = cos(t) x has the solution x₀ exp(sin t)."""
    x_0 = torch.tensor([[1.0]], dtype=F64)
    exact = math.exp(math.sin(1.0))

    def error(steps: int) -> float:
        return abs(float(integrate(lambda x, t: t.cos()[:, None] * x, x_0, even(steps), method)) - exact)

    assert math.log2(error(64) / error(128)) == pytest.approx(order, abs=0.15)


ORDERS: dict[Solver, int] = {"euler": 1, "heun": 2, "ddim": 1, "dpm": 2, "edm": 2}


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("solver", ORDERS)
def test_solvers_converge_with_their_order_on_every_path(solver: Solver, name: str) -> None:
    path, model = PATHS[name], gaussian_model(PATHS[name])
    x = path.sample(torch.tensor([[-1.5], [0.3], [2.0]], dtype=F64), torch.zeros(3, 1, dtype=F64), full(3, 0.2)).x_t
    exact = gaussian_flow(path, x, full(3, 0.2), full(3, 0.8))

    def error(steps: int) -> float:
        return float((run(solver, model, x, even(steps, 0.2, 0.8)) - exact).abs().max())

    assert error(100) < 0.2  # of 0.5; EDM's path comes down from 17
    assert math.log2(error(100) / error(200)) == pytest.approx(ORDERS[solver], abs=0.15)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("solver", ORDERS)
def test_noise_arrives_as_data(solver: Solver, name: str) -> None:
    """From the start of the path to t = 1, for every pair of path and solver."""
    path = PATHS[name]
    begin = 0.01 if solver == "edm" else 0.0
    x = path.start(torch.linspace(-2, 2, 9, dtype=F64)[:, None])
    exact = gaussian_flow(path, x, full(9, begin), full(9, 1.0))
    arrived = run(solver, gaussian_model(path), x, even(400, begin))
    tolerance = 0.1 if (solver, name) == ("euler", "edm") else 0.02  # Euler in t comes down from σ = 80
    torch.testing.assert_close(arrived, exact, rtol=0.0, atol=tolerance)


@pytest.mark.parametrize("kind", ["velocity", "noise", "data"])
@pytest.mark.parametrize("solver", ORDERS)
def test_any_prediction_gives_the_same_sample(solver: Solver, kind: Prediction) -> None:
    path, x = PATHS["cosine"], torch.randn(5, 2, dtype=F64)
    times = even(7, 0.05, 0.95)
    expected = run(solver, gaussian_model(path), x, times)
    torch.testing.assert_close(run(solver, gaussian_model(path, kind=kind), x, times), expected)


def test_euler_is_ddim_on_straight_lines() -> None:
    model, x = gaussian_model(LinearPath()), torch.randn(4, 3, dtype=F64)
    torch.testing.assert_close(solve(model, x, even(9), "euler"), solve(model, x, even(9), "ddim"))


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_second_order_pays_at_ten_steps(name: str) -> None:
    """What dpm is for: at the same number of network calls it is far nearer than ddim."""
    path, x = PATHS[name], torch.linspace(-2, 2, 9, dtype=F64)[:, None]
    exact = gaussian_flow(path, x, full(9, 0.0), full(9, 1.0))
    errors = {s: float((solve(gaussian_model(path), x, even(10), s) - exact).abs().max()) for s in ("ddim", "dpm")}
    assert errors["dpm"] < 0.5 * errors["ddim"]


# ---- samplers that add noise


@pytest.mark.parametrize("name", PATHS)
def test_ancestral_samples_have_the_moments_of_the_data(name: str) -> None:
    path = PATHS[name]
    x = path.start(torch.randn(20_000, 1, generator=seeded(1), dtype=F64))
    samples = ancestral(gaussian_model(path), x, even(200), seeded())
    assert float(samples.mean()) == pytest.approx(0.7, abs=0.02)
    assert float(samples.std()) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(("name", "begin"), [("linear", 0.02), ("cosine", 0.02), ("discrete", 0.0), ("edm", 0.0)])
def test_stochastic_heun_samples_have_the_moments_of_the_data(name: str, begin: float) -> None:
    path = PATHS[name]
    noise = torch.randn(20_000, 1, generator=seeded(1), dtype=F64)
    x = path.sample(noise, torch.full_like(noise, 0.7), full(20_000, begin)).x_t
    samples = stochastic_heun(gaussian_model(path), x, even(60, begin), seeded(), inflation=1.0)
    assert float(samples.mean()) == pytest.approx(0.7, abs=0.02)
    assert float(samples.std()) == pytest.approx(0.5, abs=0.02)


def test_churn_forgets_where_it_came_from() -> None:
    """Noise added on the way: the same start arrives at different places, as many as the data have."""
    model, x = gaussian_model(EDMPath()), EDMPath().start(torch.ones(2000, 1, dtype=F64))
    assert float(stochastic_heun(model, x, even(40), seeded(), churn=0.0).std()) < 1e-12
    assert float(stochastic_heun(model, x, even(40), seeded(), inflation=1.0).std()) > 0.3


def test_ancestral_without_noise_is_ddim() -> None:
    model, x = gaussian_model(PATHS["discrete"]), torch.randn(4, 3, dtype=F64)
    torch.testing.assert_close(ancestral(model, x, even(10), seeded(), stochasticity=0.0), ddim(model, x, even(10)))


def test_solvers_say_what_they_need() -> None:
    model, x = gaussian_model(LinearPath()), torch.randn(4, 3, dtype=F64)
    with pytest.raises(ValueError, match="pass a generator"):
        solve(model, x, even(4), "ddpm")
    with pytest.raises(ValueError, match="start later"):
        solve(model, x, even(4), "edm", seeded())


# ---- a time for each token


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("solver", ORDERS)
def test_tokens_with_their_own_times_run_as_if_alone(solver: Solver, name: str) -> None:
    path, x = PATHS[name], torch.randn(4, 3, 2, dtype=F64)
    times = torch.stack([even(6, 0.1, 1.0), even(6, 0.3, 0.9), even(6, 0.5, 1.0)], dim=1)
    together = run(solver, gaussian_model(path), x, times)
    for token in range(3):
        alone = run(solver, gaussian_model(path), x[:, token], times[:, token])
        torch.testing.assert_close(together[:, token], alone)
    by_row = run(solver, gaussian_model(path), x, times[:, None].expand(-1, 4, -1))
    torch.testing.assert_close(by_row, together)


@pytest.mark.parametrize("kind", ["velocity", "noise", "data"])
@pytest.mark.parametrize("solver", [*ORDERS, "ddpm"])
def test_tokens_given_clean_stay_and_late_ones_start_late(solver: Solver, kind: Prediction) -> None:
    """Token 0 is given (t = 1 throughout), token 1 waits at its noise for two steps, token 2 runs."""
    path, x = LinearPath(), torch.randn(4, 3, 2, dtype=F64)
    run_late = torch.cat([torch.full((2,), 0.1, dtype=F64), even(4, 0.1, 1.0)])
    times = torch.stack([torch.ones(7, dtype=F64), run_late, even(6, 0.1, 1.0)], dim=1)
    model = gaussian_model(path, kind=kind)
    arrived = solve(model, x, times, solver, seeded()) if solver == "ddpm" else run(solver, model, x, times)
    assert torch.equal(arrived[:, 0], x[:, 0]) and bool(arrived.isfinite().all())
    if solver != "ddpm":
        torch.testing.assert_close(arrived[:, 1], run(solver, model, x[:, 1], even(4, 0.1, 1.0)))


# ---- agreement with diffusers


def network(x: Tensor) -> Tensor:
    return torch.sin(1.3 * x + 0.2)


def step_time(step: Tensor, steps: int) -> float:
    return 1.0 - (float(step) + 1) / steps


def test_euler_agrees_with_diffusers() -> None:
    """diffusers runs σ from 1 (noise) to 0 and its model output is noise − data."""
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0)
    scheduler.set_timesteps(sigmas=[1.0 - i / 8 for i in range(8)])
    times = shifted(torch.linspace(0, 1, 9), 3.0)
    theirs = ours = torch.randn(2, 3, 4)
    model = FlowModel(LinearPath(), lambda x, t: torch.sin(x + t[:, None, None]), "velocity")
    for i, sigma in enumerate(scheduler.sigmas[:-1]):
        theirs = scheduler.step(-torch.sin(theirs + (1 - sigma)), scheduler.timesteps[i], theirs).prev_sample
        ours = solve(model, ours, times[i : i + 2], "euler")
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "theirs_kind"), [("noise", "epsilon"), ("data", "sample")])
@pytest.mark.parametrize("steps", [100, 10])
def test_ddim_agrees_with_diffusers(kind: Prediction, theirs_kind: str, steps: int) -> None:
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    scheduler = DDIMScheduler(
        100, beta_schedule="squaredcos_cap_v2", prediction_type=theirs_kind, timestep_spacing="trailing"
    )
    scheduler.set_timesteps(steps)
    # The noise that belongs to the clipped data is their use_clipped_model_output.
    model = clipped(FlowModel(PATHS["discrete"], lambda x, t: network(x), kind), -1.0, 1.0)
    theirs = ours = torch.randn(2, 3, 4)
    for i, step in enumerate(scheduler.timesteps):
        theirs = scheduler.step(network(theirs), step, theirs, use_clipped_model_output=True).prev_sample
        ours = solve(model, ours, torch.linspace(0, 1, steps + 1)[i : i + 2], "ddim")
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "theirs_kind"), [("noise", "epsilon"), ("data", "sample")])
def test_ddpm_agrees_with_diffusers(kind: Prediction, theirs_kind: str) -> None:
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    scheduler = DDPMScheduler(
        100, beta_schedule="squaredcos_cap_v2", prediction_type=theirs_kind, variance_type="fixed_small"
    )
    scheduler.set_timesteps(100)
    model = clipped(FlowModel(PATHS["discrete"], lambda x, t: network(x), kind), -1.0, 1.0)
    theirs = ours = torch.randn(2, 3, 4)
    draws, same_draws = seeded(), seeded()
    times = 1.0 - torch.arange(100, -1, -1) / 100
    for i, step in enumerate(scheduler.timesteps):
        theirs = scheduler.step(network(theirs), step, theirs, generator=draws).prev_sample
        ours = solve(model, ours, times[i : i + 2], "ddpm", same_draws)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("steps", [5, 10, 20])
def test_dpm_solver_agrees_with_diffusers(steps: int) -> None:
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(
        100, beta_schedule="squaredcos_cap_v2", prediction_type="sample", timestep_spacing="trailing"
    )
    scheduler.set_timesteps(steps)
    model = FlowModel(DiscretePath(squared_cosine_betas()), lambda x, t: network(x), "data")
    noise = torch.randn(2, 3, 4)
    theirs, times = noise, torch.linspace(0, 1, steps + 1)
    for i, step in enumerate(scheduler.timesteps):
        theirs = scheduler.step(network(theirs), step, theirs).prev_sample
        # The solver remembers the last step: run it anew up to this one.
        torch.testing.assert_close(solve(model, noise, times[: i + 2], "dpm"), theirs, rtol=1e-5, atol=1e-5)


def test_flow_dpm_agrees_with_diffusers() -> None:
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(
        1000, prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    scheduler.set_timesteps(12)
    model = FlowModel(LinearPath(), lambda x, t: network(x), "velocity")
    # Their grid begins just short of pure noise: 12 equal steps of σ from 0.999, shifted.
    times = 1.0 - scheduler.sigmas.double()
    even_sigmas = np.linspace(0.999, 0.0, 13)
    torch.testing.assert_close(times, shifted(1.0 - torch.from_numpy(even_sigmas), 3.0), rtol=1e-5, atol=1e-6)
    noise = torch.randn(2, 3, 4, dtype=F64)
    theirs = noise.float()
    for i, step in enumerate(scheduler.timesteps):
        theirs = scheduler.step(-network(theirs), step, theirs).prev_sample
        ours = solve(model, noise, times[: i + 2], "dpm")
        torch.testing.assert_close(ours.float(), theirs, rtol=1e-5, atol=1e-5)


def test_ddim_on_edms_path_is_its_euler_in_diffusers() -> None:
    from diffusers.schedulers.scheduling_edm_euler import EDMEulerScheduler

    scheduler = EDMEulerScheduler()
    scheduler.set_timesteps(18)
    path, x = EDMPath(), torch.randn(2, 3, 4, dtype=F64)
    times = path.time_of(scheduler.sigmas.double())

    def denoiser(x: Tensor, t: Tensor) -> Tensor:
        """EDM's D of a network (arXiv 2206.00364, table 1), for data of deviation 0.5."""
        sigma = path.ratio(t)[:, None, None]
        total = (sigma.square() + 0.25).sqrt()
        return 0.25 / total.square() * x + 0.5 * sigma / total * network(x / total + sigma.log() / 4.0)

    ours = theirs = path.start(x)
    for i, noise_level in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(theirs, noise_level)
        theirs = scheduler.step(network(scaled + noise_level), noise_level, theirs).prev_sample
        ours = solve(FlowModel(path, denoiser, "data"), ours, times[i : i + 2], "ddim")
        torch.testing.assert_close(ours, theirs.double(), rtol=1e-5, atol=1e-5)
