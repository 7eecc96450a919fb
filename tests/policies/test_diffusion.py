"""What the diffusion policy promises of both networks: repeatable samples, no weight on padding, and that it learns."""

import dataclasses
from typing import Any

import pytest
import torch
from observations import Cameras, as_text, interface, make_observation, rows, seeded

from robostack.core.unet import UNetConfig
from robostack.datasets.moments import History
from robostack.policies.diffusion import Diffusion, DiffusionConfig, DiTConfig

SMALL = DiffusionConfig(
    chunk_len=8,
    execute_len=4,
    unet=UNetConfig(widths=(16, 32), groups=4, time_width=16),
    dit=DiTConfig(width=32, hidden=32, depth=2, heads=2, actions_per_token=4),
)
DIT, UNET = dataclasses.replace(SMALL, network="dit"), dataclasses.replace(SMALL, network="unet")
BOTH = pytest.mark.parametrize("config", [DIT, UNET], ids=["dit", "unet"])


def make_policy(config: DiffusionConfig, cameras: Cameras | None = None) -> Diffusion:
    torch.manual_seed(0)
    policy = Diffusion(config, interface(cameras))
    with torch.no_grad():
        for parameter in policy.parameters():
            if not parameter.any():
                parameter.normal_(std=0.2)  # adaptive norms start at zero and would hide what passes through them
    return policy


@BOTH
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"solver": "dpm", "sample_steps": 5},
        {"solver": "ddpm", "sample_steps": 100, "prediction": "velocity"},
        {"prediction": "noise", "clip": 2.0, "observe_len": 3},
        {"condition": "state", "spacing": "leading"},
    ],
)
def test_a_sample_can_be_repeated_exactly(config: DiffusionConfig, change: dict[str, Any]) -> None:
    policy = make_policy(dataclasses.replace(config, **change))
    observation = make_observation(3, history=policy.config.history)
    with torch.no_grad():
        one, two, other = (policy.sample(observation, seeded(seed)) for seed in (0, 0, 1))
    assert one.shape == (3, 8, 3) and torch.equal(one, two) and not torch.equal(one, other)
    assert one.isfinite().all()


@BOTH
@pytest.mark.parametrize("cameras", [{}, {"top": (32, 32)}])
def test_every_part_of_the_observation_matters(config: DiffusionConfig, cameras: Cameras) -> None:
    policy = make_policy(dataclasses.replace(config, observe_len=2), cameras)
    observation = make_observation(2, cameras, History(2))
    first_look, last_look = observation.state.clone(), observation.state.clone()
    first_look[:, 0] += 1.0
    last_look[:, 1] += 1.0
    changes = [{"state": first_look}, {"state": last_look}, {"text": as_text(observation.text.ids % 8 + 1)}]
    if cameras:
        changes.append({"images": {"top": observation.images["top"].flip(2)}})
    with torch.no_grad():
        before = policy.sample(observation, seeded())
        for change in changes:
            after = policy.sample(dataclasses.replace(observation, **change), seeded())
            assert not torch.allclose(after, before), change.keys()


@BOTH
def test_padded_actions_do_not_count(config: DiffusionConfig) -> None:
    policy, observation = make_policy(config), make_observation(4)
    actions, valid = torch.randn(4, 8, 3), torch.ones(4, 8, 3, dtype=torch.bool)
    valid[1, 4:] = False
    valid[2, :, 1] = False  # a joint that this robot does not have
    loss = policy.loss(observation, actions, valid, seeded())
    noise = torch.randn(actions.shape, generator=(g := seeded()))
    t = torch.randint(100, (4,), generator=g) / 100
    predicted = policy.network(policy.path.sample(noise, actions, t).x_t, t, policy.encode(observation))
    torch.testing.assert_close(loss, (predicted - actions)[valid].square().mean())


@BOTH
def test_past_actions_are_predicted_where_there_were_any(config: DiffusionConfig) -> None:
    config = dataclasses.replace(config, chunk_len=6, observe_len=3, predict_past=2)
    policy, observation = make_policy(config), make_observation(3, history=History(3))
    observation.valid[0, 0] = False  # one look and one action of the first row lie before the start of its episode
    actions, valid = torch.randn(3, 6, 3), torch.ones(3, 6, 3, dtype=torch.bool)
    valid[1, :, 2] = False
    loss = policy.loss(observation, actions, valid, seeded())
    whole = torch.cat([observation.past_actions, actions], dim=1)
    counted = torch.ones(3, 8, 3, dtype=torch.bool)
    counted[0, 0] = False
    counted[1, :, 2] = False
    noise = torch.randn(whole.shape, generator=(g := seeded()))
    t = torch.randint(100, (3,), generator=g) / 100
    predicted = policy.network(policy.path.sample(noise, whole, t).x_t, t, policy.encode(observation))
    torch.testing.assert_close(loss, (predicted - whole)[counted].square().mean())
    with torch.no_grad():
        assert policy.sample(observation, seeded()).shape == (3, 6, 3)


@pytest.mark.parametrize(("network", "prediction"), [("dit", "data"), ("dit", "velocity"), ("unet", "data")])
def test_it_learns_two_modes_that_the_state_selects(network: str, prediction: str) -> None:
    config = dataclasses.replace(SMALL, network=network, prediction=prediction, weighting=prediction)
    torch.manual_seed(0)
    policy = Diffusion(config, interface())
    optimizer = torch.optim.AdamW(policy.parameters(), 3e-3)
    generator, observation = seeded(), make_observation(64)
    shape = torch.linspace(0.5, 1.0, 8)[None, :, None]
    for _ in range(200):
        state = torch.randn(64, 1, 5, generator=generator)
        actions = state[..., :1].sign() * shape.expand(64, 8, 3)
        seen = dataclasses.replace(observation, state=state)
        policy.loss(seen, actions, torch.ones_like(actions, dtype=torch.bool), generator).backward()
        optimizer.step()
        optimizer.zero_grad()
    state = torch.tensor([[[1.0, 0, 0, 0, 0]], [[-1.0, 0, 0, 0, 0]]])
    seen = dataclasses.replace(rows(observation, slice(2)), state=state)
    with torch.inference_mode():
        sampled = policy.sample(seen, generator)
    assert (sampled - torch.tensor([1.0, -1.0])[:, None, None] * shape).abs().mean() < 0.2


def test_the_solver_visits_the_noising_steps_that_the_spacing_names() -> None:
    def noising_steps(spacing: Any) -> list[int]:
        config = dataclasses.replace(SMALL, sample_steps=4, spacing=spacing)
        return (100 * (1.0 - make_policy(config).times(torch.zeros(1))) - 1.0).round().int().tolist()

    assert noising_steps("trailing") == [99, 74, 49, 24, -1]
    assert noising_steps("leading") == [75, 50, 25, 0, -1]  # -1: the data


@BOTH
@pytest.mark.parametrize("clip_noise", ["along", "apart"])
def test_a_bound_holds(config: DiffusionConfig, clip_noise: str) -> None:
    policy = make_policy(dataclasses.replace(config, clip=0.1, clip_noise=clip_noise))
    with torch.no_grad():
        assert policy.sample(make_observation(2), seeded()).abs().max() <= 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"execute_len": 9}, r"1..chunk_len"),
        ({"chunk_len": 6}, "multiple of dit.actions_per_token 4"),
        ({"chunk_len": 7, "network": "unet"}, "U-Net"),
        ({"predict_past": 1}, "observe_len"),
        ({"sample_steps": 30}, "divide"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change)
