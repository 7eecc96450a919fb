"""What π0 promises: repeatable samples, one prefix for each task, no weight on padding, and that it learns."""

import dataclasses
from itertools import product

import pytest
import torch
from observations import Cameras, as_text, interface, make_observation, rows, seeded

from robostack.core.flow.guidance import objective_guided
from robostack.core.flow.solvers import solve
from robostack.policies.encoder import EncoderConfig
from robostack.policies.pi0 import Pi0, Pi0Config
from robostack.policies.protocol import Given

SMALL = Pi0Config(
    chunk_len=6,
    execute_len=3,
    actions_per_token=2,
    expert_width=32,
    prefix_width=16,
    depth=2,
    heads=2,
    head_dim=8,
)


def make_policy(config: Pi0Config = SMALL, cameras: Cameras | None = None, seed: int = 0) -> Pi0:
    torch.manual_seed(seed)
    policy = Pi0(config, dataclasses.replace(interface(cameras), told_state=config.state == "prompt"))
    with torch.no_grad():
        for parameter in policy.parameters():
            if not parameter.any():
                parameter.normal_(std=0.2)  # adaptive norms start at zero and would hide what passes through them
    return policy


@pytest.mark.parametrize("cameras", [{}, {"top": (32, 32), "left_wrist": (24, 32)}])
def test_a_sample_can_be_repeated_exactly(cameras: Cameras) -> None:
    policy, observation = make_policy(cameras=cameras), make_observation(3, cameras)
    one, two, other = (policy.sample(observation, seeded(seed)) for seed in (0, 0, 1))
    assert one.shape == (3, 6, 3) and torch.equal(one, two) and not torch.equal(one, other)


@pytest.mark.parametrize("cameras", [{}, {"top": (32, 32)}])
def test_every_part_of_the_observation_matters(cameras: Cameras) -> None:
    policy, observation = make_policy(cameras=cameras), make_observation(2, cameras)
    before = policy.sample(observation, seeded())
    changes = {"state": observation.state + 1.0, "text": as_text(observation.text.ids.flip(1))}
    if cameras:
        changes["images"] = {"top": observation.images["top"].flip(2)}
    for name, value in changes.items():
        assert not torch.allclose(policy.sample(dataclasses.replace(observation, **{name: value}), seeded()), before), (
            name
        )


@pytest.mark.parametrize("vision", ["keypoints", "vit"])
def test_a_camera_is_looked_at_in_its_middle_and_not_at_all_where_the_robot_has_none(vision: str) -> None:
    config = dataclasses.replace(SMALL, encoder=EncoderConfig(vision=vision, crop=(16, 24)))
    policy, observation = make_policy(config, {"top": (32, 32)}), make_observation(2, {"top": (32, 32)})
    observation = dataclasses.replace(observation, present={"top": torch.tensor([True, False])})
    before = policy.sample(observation, seeded())
    for rows_, columns, changes in ((slice(8), slice(32), False), (slice(8, 24), slice(4, 28), True)):
        frames = observation.images["top"].clone()
        frames[:, :, rows_, columns] ^= 255
        after = policy.sample(dataclasses.replace(observation, images={"top": frames}), seeded())
        assert torch.equal(after[1], before[1])
        assert torch.allclose(after[0], before[0], atol=1e-6) != changes


@pytest.mark.parametrize("cameras", [{}, {"top": (32, 32)}])
def test_rows_of_a_batch_do_not_touch_each_other(cameras: Cameras) -> None:
    policy, observation = make_policy(cameras=cameras).double(), make_observation(4, cameras)
    observation = dataclasses.replace(observation, state=observation.state.double())
    x_t, t = torch.randn(4, 6, 3, dtype=torch.float64), torch.rand(4, dtype=torch.float64)
    together = policy.predict(policy.encode(observation), x_t, t)
    for i in range(4):
        alone = policy.predict(policy.encode(rows(observation, slice(i, i + 1))), x_t[i : i + 1], t[i : i + 1])
        torch.testing.assert_close(alone[0], together[i])


FORMS = {
    "ours": SMALL,
    "pi0": dataclasses.replace(SMALL, time="token", actions_per_token=1, scale_words=True),
    "pi0.5": dataclasses.replace(SMALL, state="prompt", actions_per_token=1, scale_words=True),
    "given": dataclasses.replace(SMALL, given=4),
}


@pytest.mark.parametrize("form", FORMS)
def test_training_sees_what_a_flow_step_sees(form: str) -> None:
    """One joint call in training, and a step against the encoded prefix, are the same function, gradients included."""
    cameras = {"top": (32, 32)}
    policy, observation = make_policy(FORMS[form], cameras).double(), make_observation(4, cameras)
    observation = dataclasses.replace(
        observation,
        state=observation.state.double(),
        present={"top": torch.tensor([True, False, True, False])},  # of those without, one has a short text too
    )
    x_t = torch.randn(4, 6, 3, dtype=torch.float64, requires_grad=True)
    t = torch.rand((4, 6) if form == "given" else (4,), dtype=torch.float64)
    jointly, step = policy._jointly(observation, x_t, t), policy.predict(policy.encode(observation), x_t, t)
    torch.testing.assert_close(step, jointly)
    parameters = [x_t, *policy.parameters()]
    both = [torch.autograd.grad(output.square().sum(), parameters) for output in (jointly, step)]
    assert all(bool(gradient.any()) for gradient in both[0])
    torch.testing.assert_close(*both)


@pytest.mark.parametrize("cameras", [{}, {"top": (32, 32)}])
def test_the_room_behind_a_text_changes_no_chunk(cameras: Cameras) -> None:
    policy, observation = make_policy(cameras=cameras), make_observation(2, cameras)
    longer = dataclasses.replace(observation, text=as_text(torch.nn.functional.pad(observation.text.ids, (0, 3))))
    torch.testing.assert_close(policy.sample(longer, seeded()), policy.sample(observation, seeded()))


def test_a_chunk_begins_with_what_is_given_and_goes_on_from_there() -> None:
    policy, observation = make_policy(FORMS["given"]), make_observation(3)
    actions, length = torch.randn(3, 6, 3), torch.tensor([0, 2, 4])
    chunk = policy.sample(observation, seeded(), Given(actions, length))
    for row, count in enumerate(length):
        assert torch.equal(chunk[row, :count], actions[row, :count])
    torch.testing.assert_close(chunk[0], policy.sample(observation, seeded())[0])
    other = policy.sample(observation, seeded(), Given(actions + 1.0, length))
    assert torch.equal(other[0], chunk[0]) and not torch.allclose(other[1, 2:], chunk[1, 2:])
    # What lies behind the length given is nobody's.
    behind = torch.where(torch.arange(6)[:, None] < length[:, None, None], actions, torch.nan)
    assert torch.equal(policy.sample(observation, seeded(), Given(behind, length)), chunk)
    for taker, most in ((policy, 4), (make_policy(), 0)):
        with pytest.raises(ValueError, match=f"takes up to {most} actions of a chunk as given, got 5"):
            taker.sample(observation, seeded(), Given(actions, torch.tensor([0, 5, 1])))


def test_given_actions_have_no_loss() -> None:
    policy, observation = make_policy(dataclasses.replace(SMALL, given=5)), make_observation(64)
    actions, valid = torch.zeros(64, 6, 3), torch.ones(64, 6, 3, dtype=torch.bool)
    policy.predict = lambda context, x_t, t: (t[..., None] < 1.0).float().expand_as(x_t)  # type: ignore[method-assign]
    assert policy.loss(observation, actions, valid, seeded()) == 1.0


@pytest.mark.parametrize(
    ("path", "solver"),
    # Steps in time along a curve leave an error of their order.
    [("linear", "euler"), ("linear", "heun"), *product(("linear", "cosine", "edm"), ("ddim", "dpm", "ddpm"))],
)
@pytest.mark.parametrize("steps", [3, 40])
def test_every_solver_puts_a_sure_prediction_out(path: str, solver: str, steps: int) -> None:
    """However many steps: no noise is left in a chunk that the network knows."""
    config = dataclasses.replace(SMALL, path=path, solver=solver, sample_steps=steps, shift=2.0)
    policy, known = make_policy(config), torch.linspace(-1, 1, 6)[None, :, None].expand(2, 6, 3)
    policy.predict = lambda context, x_t, t: known  # type: ignore[method-assign]
    torch.testing.assert_close(policy.sample(make_observation(2), seeded()), known, rtol=1e-4, atol=1e-4)


def test_guidance_is_open_to_it() -> None:
    policy, observation = make_policy(), make_observation(2)
    with torch.no_grad():
        guided = objective_guided(policy.flow(observation), lambda data, t: data.square().sum((1, 2)), largest=5.0)
        noise, times = torch.randn(2, 6, 3, generator=seeded()), torch.linspace(0, 1, 11)
        chunk = solve(guided, noise, times, "ddim")
    assert chunk.square().sum() < policy.sample(observation, seeded()).square().sum()


def test_padded_actions_do_not_count() -> None:
    policy, observation = make_policy(), make_observation(4)
    actions, valid = torch.randn(4, 6, 3), torch.ones(4, 6, 3, dtype=torch.bool)
    valid[1, 4:] = False
    valid[2, :, 1] = False  # a joint that this robot does not have
    # Two actions share a token and tokens see each other, so padding is input; only its error must not count.
    point = policy.loss(observation, actions, valid, seeded())
    noise = torch.randn(actions.shape, generator=(g := seeded()))
    t = torch.rand(4, generator=g)
    sample = policy.path.sample(noise, actions, t)
    predicted = policy.predict(policy.encode(observation), sample.x_t, t)
    torch.testing.assert_close(point, (predicted - actions)[valid].square().mean())


def test_velocity_loss_weighs_the_data_error() -> None:
    """‖v̂ − v‖² = ‖x̂₁ − x₁‖² / (1 − t)² wherever that is below its bound."""
    config = dataclasses.replace(SMALL, weighting="velocity", largest_weight=1e6)
    policy, observation = make_policy(config), make_observation(4)
    actions = torch.randn(4, 6, 3)
    loss = policy.loss(observation, actions, torch.ones(4, 6, 3, dtype=torch.bool), seeded())
    noise, t = torch.randn(actions.shape, generator=(g := seeded())), torch.rand(4, generator=g)
    sample = policy.path.sample(noise, actions, t)
    error = policy.predict(policy.encode(observation), sample.x_t, t) - actions
    torch.testing.assert_close(loss, (error / (1 - t)[:, None, None]).square().mean())


@pytest.mark.parametrize("prediction", ["data", "velocity"])
def test_it_learns_two_modes_that_the_state_selects(prediction: str) -> None:
    config = dataclasses.replace(SMALL, prediction=prediction, weighting=prediction)
    torch.manual_seed(0)
    policy = Pi0(config, interface())
    optimizer = torch.optim.AdamW(policy.parameters(), 3e-3)
    generator = seeded()
    observation = dataclasses.replace(make_observation(64), text=as_text(torch.ones(64, 4, dtype=torch.long)))
    for _ in range(200):
        state = torch.randn(64, 5, generator=generator)
        actions = state[:, None, :1].sign() * torch.linspace(0.5, 1.0, 6)[None, :, None].expand(64, 6, 3)
        valid = torch.ones_like(actions, dtype=torch.bool)
        seen = dataclasses.replace(observation, state=state[:, None])
        loss = policy.loss(seen, actions, valid, generator)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    state = torch.tensor([[[1.0, 0, 0, 0, 0]], [[-1.0, 0, 0, 0, 0]]])
    seen = dataclasses.replace(rows(observation, slice(2)), state=state)
    with torch.inference_mode():
        sampled = policy.sample(seen, generator)
    expected = torch.tensor([1.0, -1.0])[:, None, None] * torch.linspace(0.5, 1.0, 6)[None, :, None]
    assert (sampled - expected).abs().mean() < 0.2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"actions_per_token": 4}, "multiple"),
        ({"execute_len": 7}, r"1..chunk_len"),
        ({"given": 6}, "given must be at most 5"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change)


def test_a_state_that_nobody_would_see_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a prompt that tells the state"):
        Pi0(dataclasses.replace(SMALL, state="prompt"), interface())
