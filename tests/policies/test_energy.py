"""What the energy policy promises: one energy that is trained, sampled and added to; modes are kept, not averaged."""

import dataclasses
import math

import pytest
import torch
from observations import Cameras, as_text, interface, make_observation, seeded
from torch import Tensor

from robostack.policies.energy import ChunkCode, Energy, EnergyConfig, held
from robostack.policies.protocol import Observation

SMALL = EnergyConfig(
    chunk_len=6, execute_len=3, coefficients=2, width=64, depth=1, encoder_width=16, contrast_rows=4, smallest_sigma=0.1
)


def make_policy(config: EnergyConfig = SMALL, cameras: Cameras | None = None) -> Energy:
    torch.manual_seed(0)
    policy = Energy(config, interface(cameras))
    for norm in policy.network.norms:
        torch.nn.init.normal_(norm.dense.weight, std=0.05)  # as after training: a fresh block is the identity
    return policy


def everything(batch: int) -> Tensor:
    return torch.ones(batch, 6, 3, dtype=torch.bool)


def test_a_code_keeps_what_is_slow_and_its_squared_length_is_the_mean_square() -> None:
    code = ChunkCode(40, 8).double()
    time = (torch.arange(40, dtype=torch.float64) + 0.5) / 40
    slow = torch.stack([0.3 + torch.cos(3 * math.pi * time), torch.cos(7 * math.pi * time)], dim=-1)[None]
    encoded = code.encode(slow)
    torch.testing.assert_close(code.decode(encoded), slow)
    torch.testing.assert_close(encoded.square().sum(), slow.square().mean(1).sum())
    fast = torch.cos(8 * math.pi * time)[None, :, None]
    torch.testing.assert_close(code.encode(fast), torch.zeros(1, 8, dtype=torch.float64))


def test_the_same_generator_gives_the_same_chunk_in_inference_mode_too() -> None:
    policy, observation = make_policy(), make_observation(3)
    first, other = (policy.sample(observation, seeded(seed)) for seed in (0, 1))
    with torch.inference_mode():
        inferred = dataclasses.replace(observation, state=observation.state.clone())
        again = policy.sample(inferred, seeded())
    assert first.shape == (3, 6, 3) and torch.equal(first, again) and not torch.allclose(first, other)


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


def test_energies_of_a_batch_and_of_samples_do_not_touch_each_other() -> None:
    policy, observation = make_policy().double(), make_observation(3)
    context = policy.encode(dataclasses.replace(observation, state=observation.state.double()))
    sigma, x = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64), torch.randn(3, 4, 6, dtype=torch.float64)
    together = policy.energy(context, sigma)(x)
    assert together.shape == (3, 4)
    for i in range(3):
        alone = policy.energy(context[i : i + 1], sigma[i : i + 1])
        for j in range(4):
            torch.testing.assert_close(alone(x[i : i + 1, j])[0], together[i, j])


def test_numbers_that_do_not_count_are_not_seen() -> None:
    policy, observation = make_policy(), make_observation(4)
    actions, valid = torch.randn(4, 6, 3), everything(4)
    valid[:2, 4:] = False
    valid[2, :, 1] = False  # a joint that this robot does not have
    other = torch.where(valid, actions, actions + 1.0)
    losses = [policy.loss(observation, given, valid, seeded()) for given in (actions, other)]
    torch.testing.assert_close(*losses)
    kept = held(other, valid)
    assert torch.equal(kept[0, 4:], actions[0, 3:4].expand(2, 3)) and not kept[2, :, 1].any()
    assert torch.equal(kept[3], actions[3])


def train(policy: Energy, steps: int, modes: bool) -> None:
    optimizer, generator = torch.optim.AdamW(policy.parameters(), 1e-2), seeded()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1.0 - step / steps)
        observation, actions = draw(64, modes, generator)
        policy.loss(observation, actions, everything(64), generator).backward()
        optimizer.step()
        optimizer.zero_grad()


def draw(batch: int, modes: bool, generator: torch.Generator) -> tuple[Observation, Tensor]:
    """All joints follow the sign of the state's first number; with `modes` the second joint goes either way."""
    state = torch.randn(batch, 1, 5, generator=generator)
    state[..., 0] += state[..., 0].sign()
    sign = state[:, 0, 0].sign()
    either = torch.randn(batch, generator=generator).sign() if modes else sign
    actions = torch.stack([sign, either, sign], dim=-1)[:, None] * torch.linspace(0.7, 1.0, 6)[:, None]
    return dataclasses.replace(make_observation(batch), state=state), actions


def test_it_keeps_both_ways_of_doing_a_thing() -> None:
    policy = make_policy()
    train(policy, 300, modes=True)
    observation, actions = draw(200, True, seeded(5))
    chunk = policy.sample(observation, seeded())
    assert ((chunk - actions)[..., [0, 2]].abs().mean()) < 0.2
    second = chunk[..., 1].mean(-1)
    assert (second.abs() - 0.85).abs().mean() < 0.25, second
    assert 0.25 < (second > 0).float().mean() < 0.75


def test_contrast_alone_makes_the_demonstration_less_than_its_opposite() -> None:
    policy = make_policy(dataclasses.replace(SMALL, score=0.0, contrast=1.0, contrast_rows=64))
    train(policy, 120, modes=False)
    observation, actions = draw(100, False, seeded(5))
    energy = policy.energy(policy.encode(observation), torch.full((100,), 0.3))
    assert (energy(policy.code.encode(actions)) < energy(policy.code.encode(-actions))).float().mean() > 0.95


def test_search_finds_the_chunk_too() -> None:
    policy = make_policy()
    train(policy, 150, modes=False)
    policy.config = dataclasses.replace(SMALL, sampler="search", candidates=256)
    observation, actions = draw(20, False, seeded(5))
    assert (policy.sample(observation, seeded()) - actions).abs().mean() < 0.2


def test_an_added_energy_shifts_the_chunk_as_far_as_both_agree() -> None:
    """At the sharpest level the learned energy is a bowl of σ²; one of the same width pulls half way."""
    policy = make_policy()
    train(policy, 150, modes=False)
    policy.config = dataclasses.replace(SMALL, temperature=0.0, level_steps=20, step=0.2)
    observation, _ = draw(20, False, seeded(5))
    free = policy.sample(observation, seeded())

    def pull(chunk: Tensor) -> Tensor:
        return 0.5 * (chunk - 0.1).square().mean(-2).sum(-1) / SMALL.smallest_sigma**2

    assert torch.equal(policy.sample(observation, seeded(), lambda chunk: 0.0 * chunk.sum((-1, -2))), free)
    pulled = policy.sample(observation, seeded(), pull)
    halfway = 0.5 * (free + 0.1)
    assert (pulled - halfway).abs().mean() < 0.3 * (free - halfway).abs().mean()


def test_a_refactor_keeps_the_energy() -> None:
    """From numbers that are the same on every processor: whole ones, divided by a power of two."""

    def spread(shape: tuple[int, ...], first: int) -> Tensor:
        count = math.prod(shape)
        return ((torch.arange(count) * 37 + first) % 101 - 50).double().view(shape) / 128.0

    policy = make_policy().double()
    with torch.no_grad():
        for index, parameter in enumerate(policy.network.parameters(), 6):
            parameter.copy_(spread(tuple(parameter.shape), 11 * index))
    context, x = spread((2, 32), 3), spread((2, 6), 5)
    values = policy.energy(context, torch.tensor([0.1, 0.9], dtype=torch.float64))(x)
    assert values.tolist() == pytest.approx([168.4557716109569, 27.92119228100289], rel=1e-9)


def test_one_chunk_alone_cannot_be_contrasted() -> None:
    actions, valid = torch.zeros(1, 6, 3), everything(1)
    for config in (SMALL, dataclasses.replace(SMALL, contrast=0.0)):
        with pytest.raises(ValueError, match="expected a batch of at least 2, got 1"):
            make_policy(config).loss(make_observation(1), actions, valid, seeded())
    alone = make_policy(dataclasses.replace(SMALL, contrast=0.0, penalty=0.0))
    assert alone.loss(make_observation(1), actions, valid, seeded()).isfinite()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"execute_len": 7}, "1..chunk_len"),
        ({"coefficients": 7}, "coefficients must lie in 1..chunk_len"),
        ({"smallest_sigma": 2.0}, "smallest_sigma < largest_sigma"),
        ({"negatives": 3}, "even"),
        ({"score": 0.0, "contrast": 0.0}, "score or contrast"),
        ({"levels": 1}, "levels"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change)
