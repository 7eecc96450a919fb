"""What ACT promises: one observation gives one chunk, the latent tells what the observation cannot, padding is neither
seen nor counted, and that it learns."""

import dataclasses

import pytest
import torch
from observations import Cameras, as_text, interface, make_observation, rows, seeded
from torch.distributions import Normal, kl_divergence

from robostack.policies.act import Act, ActConfig
from robostack.policies.protocol import Observation

SMALL = ActConfig(
    chunk_len=6,
    execute_len=3,
    width=32,
    hidden=48,
    heads=2,
    posterior_depth=2,
    encoder_depth=1,
    decoder_depth=2,
    latent=4,
)
PARTS = dataclasses.replace(SMALL, state_parts=(3, 2))


def make_policy(config: ActConfig = SMALL, cameras: Cameras | None = None, seed: int = 0) -> Act:
    torch.manual_seed(seed)
    return Act(config, interface(cameras))


def everything(batch: int) -> torch.Tensor:
    return torch.ones(batch, 6, 3, dtype=torch.bool)


@pytest.mark.parametrize("config", [SMALL, PARTS, dataclasses.replace(SMALL, order="post_norm")])
def test_one_observation_gives_one_chunk_whatever_the_generator(config: ActConfig) -> None:
    policy, observation = make_policy(config), make_observation(3)
    one, other = (policy.sample(observation, seeded(seed)) for seed in (0, 1))
    assert one.shape == (3, 6, 3) and torch.equal(one, other)
    zero = policy.decode(observation, torch.zeros(3, 4))
    torch.testing.assert_close(one, zero)
    assert (one[:, 0] - one[:, 1]).abs().min() > 0  # each query reads an action of its own


@pytest.mark.parametrize("cameras", [{}, {"top": (32, 32)}])
def test_every_part_of_the_observation_matters(cameras: Cameras) -> None:
    policy, observation = make_policy(cameras=cameras), make_observation(2, cameras)
    before = policy.sample(observation, seeded())
    changes = {"state": observation.state + 1.0, "text": as_text(observation.text.ids.flip(1) % 8 + 1)}
    if cameras:
        changes["images"] = {"top": observation.images["top"].flip(2)}
    for name, value in changes.items():
        changed = policy.sample(dataclasses.replace(observation, **{name: value}), seeded())
        assert not torch.allclose(changed, before), name


@pytest.mark.parametrize("config", [SMALL, PARTS])
def test_rows_of_a_batch_do_not_touch_each_other(config: ActConfig) -> None:
    policy, observation = make_policy(config).double(), make_observation(4)
    observation = dataclasses.replace(observation, state=observation.state.double())
    latent = torch.randn(4, 4, dtype=torch.float64)
    together = policy.decode(observation, latent)
    for i in range(4):
        torch.testing.assert_close(policy.decode(rows(observation, slice(i, i + 1)), latent[i : i + 1])[0], together[i])


def test_the_loss_is_the_mean_error_and_the_weighed_divergence() -> None:
    policy, observation = make_policy(), make_observation(4)
    actions, valid = torch.randn(4, 6, 3), everything(4)
    valid[1, 4:] = False
    valid[2, :, 1] = False  # a joint that this robot does not have
    mean, log_variance = policy.posterior(observation.state[:, 0], actions, valid.any(-1))
    deviation = (log_variance / 2).exp()
    latent = mean + deviation * torch.randn(4, 4, generator=seeded())
    error = (policy.decode(observation, latent) - actions)[valid].abs().mean()
    divergence = kl_divergence(Normal(mean, deviation), Normal(0.0, 1.0)).sum(-1).mean()
    torch.testing.assert_close(policy.loss(observation, actions, valid, seeded()), error + 10.0 * divergence)


def test_actions_past_the_end_are_not_seen() -> None:
    policy, observation = make_policy(), make_observation(2)
    actions, valid = torch.randn(2, 6, 3), everything(2)
    valid[:, 4:] = False
    other = actions.clone()
    other[:, 4:] += 1.0
    torch.testing.assert_close(
        policy.loss(observation, other, valid, seeded()), policy.loss(observation, actions, valid, seeded())
    )


def test_without_a_posterior_it_regresses() -> None:
    policy, observation = make_policy(dataclasses.replace(SMALL, posterior_depth=0)), make_observation(4)
    actions = torch.randn(4, 6, 3)
    expected = (policy.sample(observation, seeded()) - actions).abs().mean()
    torch.testing.assert_close(policy.loss(observation, actions, everything(4), seeded()), expected)


@pytest.mark.parametrize("order", ["pre_norm", "post_norm"])
def test_it_learns_what_the_state_selects_and_tells_the_rest_by_the_latent(order: str) -> None:
    """The first joint follows the state; the second goes either way, which the posterior alone can know."""
    policy = make_policy(dataclasses.replace(SMALL, kl_weight=0.01, order=order))
    optimizer = torch.optim.AdamW(policy.parameters(), 3e-3)
    generator, observation = seeded(), make_observation(64)
    ramp = torch.linspace(0.5, 1.0, 6)

    def draw(batch: int) -> tuple[Observation, torch.Tensor]:
        state = torch.randn(batch, 1, 5, generator=generator)
        signs = torch.stack([state[:, 0, 0], torch.randn(batch, generator=generator), state[:, 0, 0]], dim=-1).sign()
        return dataclasses.replace(rows(observation, slice(batch)), state=state), signs[:, None] * ramp[:, None]

    for _ in range(150):
        seen, actions = draw(64)
        policy.loss(seen, actions, everything(64), generator).backward()
        optimizer.step()
        optimizer.zero_grad()
    seen, actions = draw(64)
    with torch.inference_mode():
        mean, _ = policy.posterior(seen.state[:, 0], actions, everything(64).any(-1))
        told = (policy.decode(seen, mean) - actions).abs().mean(dim=(0, 1))
        untold = (policy.sample(seen, generator) - actions).abs().mean(dim=(0, 1))
    assert told.max() < 0.25, told
    assert untold[[0, 2]].max() < 0.25 and untold[1] > 0.5, untold


@pytest.mark.parametrize(
    ("change", "cameras", "message"),
    [
        ({"execute_len": 7}, {}, r"1..chunk_len"),
        ({"width": 34}, {}, "multiple of 2 heads"),
        ({"state_parts": (3, 3)}, {}, "make up the state"),
        ({"state_parts": (3, 2)}, {"top": (32, 32)}, "see no cameras"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(change: dict, cameras: Cameras, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_policy(dataclasses.replace(SMALL, **change), cameras)
