"""What a loss on a path promises: its times have the published distributions, its weights are conversions."""

import pytest
import torch
from gaussian_flow import PATHS

from robostack.core.flow.paths import LinearPath, Prediction
from robostack.core.flow.training import (
    flow_loss,
    loss_weight,
    sample_time,
)

F64 = torch.float64
KINDS: tuple[Prediction, ...] = ("velocity", "noise", "data")


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_beta_times_have_the_published_distribution() -> None:
    t = sample_time("beta", LinearPath(), 200_000, seeded()).double()
    noise_time = 1.0 - t  # π0's own direction: 0.001 + 0.999 Beta(1.5, 1)
    assert float(t.min()) >= 0.0 and float(t.max()) < 1.0
    assert float(noise_time.mean()) == pytest.approx(0.001 + 0.999 * 0.6, abs=2e-3)
    for x in (0.2, 0.5, 0.8):
        assert float(((noise_time - 0.001) / 0.999 < x).double().mean()) == pytest.approx(x**1.5, abs=4e-3)


def test_logit_normal_times_favour_the_middle() -> None:
    t = sample_time("logit_normal", LinearPath(), 200_000, seeded()).double()
    logit = (t / (1 - t)).log()
    assert float(logit.mean()) == pytest.approx(0.0, abs=0.01) and float(logit.std()) == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("name", ["linear", "cosine", "edm"])
def test_times_by_noise_are_log_normal_in_sigma(name: str) -> None:
    path = PATHS[name]
    logarithm = path.ratio(sample_time("log_normal", path, (1000, 100), seeded()).double()).log()
    assert float(logarithm.mean()) == pytest.approx(-1.2, abs=0.02)
    assert float(logarithm.std()) == pytest.approx(1.2, abs=0.02)


@pytest.mark.parametrize("sampling", ["uniform", "beta", "logit_normal", "log_normal"])
def test_times_may_be_drawn_for_each_token(sampling: str) -> None:
    t = sample_time(sampling, LinearPath(), (64, 3), seeded())
    assert t.shape == (64, 3) and len(t.unique()) > 180


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weighting", KINDS)
@pytest.mark.parametrize("shape", [(6,), (6, 4)])
def test_weighted_loss_is_the_loss_on_the_converted_prediction(
    name: str, kind: Prediction, weighting: Prediction, shape: tuple[int, ...]
) -> None:
    path, t = PATHS[name], 0.1 + 0.8 * torch.rand(shape, dtype=F64)
    point = path.sample(torch.randn(6, 4, 2, dtype=F64), torch.randn(6, 4, 2, dtype=F64), t)
    predicted = torch.randn(6, 4, 2, dtype=F64)
    target = {"velocity": point.velocity, "noise": point.x_0, "data": point.x_1}[weighting]
    converted = path.convert(predicted, kind, weighting, point.x_t, t)
    torch.testing.assert_close(flow_loss(path, predicted, kind, point, weighting), (converted - target).square().mean())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PATHS)
def test_named_weights_are_the_published_ones(name: str, kind: Prediction) -> None:
    path, t = PATHS[name], 0.1 + 0.8 * torch.rand(20, dtype=F64)
    ratio = path.ratio(t)
    into_data = loss_weight(path, t, kind, "data")
    edm = (ratio.square() + 0.25) / (0.5 * ratio).square()
    torch.testing.assert_close(loss_weight(path, t, kind, "edm"), edm * into_data)
    torch.testing.assert_close(loss_weight(path, t, kind, "min_snr"), (1 / ratio.square()).clamp(max=5.0) * into_data)


def test_entries_that_do_not_count_give_no_loss_and_no_gradient() -> None:
    """A token given clean has t = 1, where a loss on the velocity weighs an error of the data infinitely."""
    path, t = LinearPath(), torch.tensor([[1.0, 0.5]])
    point = path.sample(torch.randn(1, 2, 3), torch.randn(1, 2, 3), t)
    predicted = torch.randn(1, 2, 3, requires_grad=True)
    valid = torch.tensor([False, True])[None, :, None].expand(1, 2, 3)
    loss = flow_loss(path, predicted, "data", point, "velocity", valid)
    loss.backward()
    expected = (2 * (predicted - point.x_1)[:, 1]).square().mean()
    torch.testing.assert_close(loss, expected)
    assert predicted.grad is not None
    assert bool((predicted.grad[:, 0] == 0).all()) and bool((predicted.grad[:, 1] != 0).all())


def test_the_bound_on_the_weight_bounds_it() -> None:
    path, t = LinearPath(), torch.tensor([0.999])
    point = path.sample(torch.zeros(1, 1), torch.zeros(1, 1), t)
    assert float(flow_loss(path, torch.ones(1, 1), "data", point, "velocity", largest_weight=400.0)) == 400.0


def test_edm_weight_undoes_the_preconditioning() -> None:
    """EDM's λ(σ) · c_out² = 1: every noise level has the same loss on F."""
    path = PATHS["edm"]
    t = torch.linspace(0.05, 0.95, 9, dtype=F64)
    sigma = path.ratio(t)
    out = 0.5 * sigma / (sigma.square() + 0.25).sqrt()  # c_out of its table 1
    torch.testing.assert_close(loss_weight(path, t, "data", "edm") * out.square(), torch.ones_like(t))
