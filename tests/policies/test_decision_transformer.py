"""The decision transformer: causal, asked for a return, blind before the episode's start, and it learns."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from observations import Cameras, as_text, interface, make_observation, seeded

from robostack.policies.decision_transformer import (
    DecisionTransformer,
    DecisionTransformerConfig,
    Head,
    at_quantile,
    two_hot_cross_entropy,
)
from robostack.policies.protocol import Observation

SMALL = DecisionTransformerConfig(
    context=3, chunk_len=4, execute_len=2, bins=21, width=32, depth=2, heads=2, head_dim=8, head="l1", temperature=1.0
)
HEADS: tuple[Head, ...] = ("l1", "l2", "bins")


def make_policy(config: DecisionTransformerConfig = SMALL, cameras: Cameras | None = None):
    torch.manual_seed(0)
    return DecisionTransformer(config, interface(cameras))


@pytest.mark.parametrize("cameras", [{}, {"top": (32, 32), "left_wrist": (24, 32)}])
@pytest.mark.parametrize("head", HEADS)
def test_a_sample_can_be_repeated_exactly(head: Head, cameras: Cameras) -> None:
    config = dataclasses.replace(SMALL, head=head)
    policy, observation = make_policy(config, cameras), make_observation(2, cameras, config.history)
    one, two, other = (policy.sample(observation, seeded(seed)) for seed in (0, 0, 1))
    assert one.shape == (2, 4, 3) and torch.equal(one, two)
    assert torch.equal(one, other) == (head in ("l1", "l2"))
    cold = make_policy(dataclasses.replace(config, temperature=0.0), cameras)
    assert torch.equal(cold.sample(observation, seeded(0)), cold.sample(observation, seeded(1)))


@pytest.mark.parametrize("cameras", [{}, {"top": (32, 32)}])
@pytest.mark.parametrize("context", [1, 3])
def test_every_part_of_the_observation_matters(context: int, cameras: Cameras) -> None:
    config = dataclasses.replace(SMALL, context=context)
    policy, observation = make_policy(config, cameras), make_observation(2, cameras, config.history)
    assert observation.returns_to_go is not None
    changes = {
        "state": observation.state + 1.0,
        "text": as_text(torch.where(observation.text.ids == 1, 2, 1)),
        "returns_to_go": observation.returns_to_go + 0.5,
    }
    if context > 1:
        changes["past_actions"] = observation.past_actions + 1.0
    if cameras:
        changes["images"] = {"top": observation.images["top"].flip(2)}
    before = policy.sample(observation, seeded())
    for name, value in changes.items():
        after = policy.sample(dataclasses.replace(observation, **{name: value}), seeded())
        assert not torch.allclose(after, before), name


@pytest.mark.parametrize("cameras", [{}, {"top": (32, 32)}])
def test_a_decision_sees_nothing_that_comes_after_it(cameras: Cameras) -> None:
    policy, observation = make_policy(cameras=cameras), make_observation(2, cameras, SMALL.history)
    before = policy.predict(observation)
    assert observation.returns_to_go is not None
    later = dataclasses.replace(
        observation,
        state=torch.cat([observation.state[:, :2], observation.state[:, 2:] + 1], dim=1),
        returns_to_go=torch.cat([observation.returns_to_go[:, :2], observation.returns_to_go[:, 2:] + 1], dim=1),
        images={n: torch.cat([x[:, :2], x[:, 2:].flip(2)], dim=1) for n, x in observation.images.items()},
        # The actions after decision 1 are decision 1's own target.
        past_actions=torch.cat([observation.past_actions[:, :2], observation.past_actions[:, 2:] + 1], dim=1),
    )
    after = policy.predict(later)
    torch.testing.assert_close(after[:, :2], before[:, :2])
    assert not torch.allclose(after[:, 2], before[:, 2])


def test_what_lies_before_the_start_of_the_episode_changes_nothing() -> None:
    policy, observation = make_policy(), make_observation(2, history=SMALL.history)
    seen = torch.tensor([[False, True, True], [False, False, True]])
    observation = dataclasses.replace(observation, valid=seen)
    assert observation.returns_to_go is not None
    other = dataclasses.replace(
        observation,
        state=torch.where(seen[..., None], observation.state, 7.0),
        returns_to_go=torch.where(seen, observation.returns_to_go, 7.0),
        past_actions=torch.where(seen[:, :2].repeat_interleave(2, 1)[..., None], observation.past_actions, 7.0),
    )
    actions, valid = torch.randn(2, 4, 3), torch.ones(2, 4, 3, dtype=torch.bool)
    # The chunk after decision 0 reaches into that of decision 1, which counts for itself alone.
    assert policy.loss(observation, actions, valid, seeded()) == policy.loss(other, actions, valid, seeded())
    assert torch.equal(policy.sample(observation, seeded()), policy.sample(other, seeded()))


@pytest.mark.parametrize("head", HEADS)
def test_the_loss_is_that_of_every_decision_and_of_what_counts(head: Head) -> None:
    config = dataclasses.replace(SMALL, head=head)
    policy, observation = make_policy(config), make_observation(2, history=config.history)
    observation = dataclasses.replace(observation, valid=torch.tensor([[True, True, True], [False, True, True]]))
    actions, valid = torch.randn(2, 4, 3), torch.ones(2, 4, 3, dtype=torch.bool)
    valid[0, 1:] = False  # the episode ends
    valid[1, :, 1] = False  # a joint that this robot does not have
    steps = torch.cat([observation.past_actions, actions], dim=1)
    known = torch.cat([valid[:, :1].expand(-1, 4, -1), valid], dim=1)
    output, errors = policy.predict(observation), []
    for row in range(2):
        for k in range(row, 3):
            predicted, target = output[row, k], steps[row, 2 * k : 2 * k + 4]
            match head:
                case "l1":
                    error = (predicted[..., 0] - target).abs()
                case "l2":
                    error = (predicted[..., 0] - target).square()
                case "bins":
                    error = two_hot_cross_entropy(predicted, target, policy.centres)
            errors.append(error[known[row, 2 * k : 2 * k + 4]])
    loss = policy.loss(observation, actions, valid, seeded())
    torch.testing.assert_close(loss, torch.cat(errors).mean())


def test_with_one_action_at_a_time_it_is_the_papers() -> None:
    config = dataclasses.replace(SMALL, chunk_len=1, execute_len=1)
    policy, observation = make_policy(config), make_observation(2, history=config.history)
    tokens, valid, blocks = policy._tokens(observation)
    assert blocks.tolist() == list(range(9))  # the task, then return, state, action, and no action after the last state
    assert tokens.shape == (2, 9, 32) and valid.all()
    assert policy.sample(observation, seeded()).shape == (2, 1, 3)


def test_without_returns_it_is_behaviour_cloning() -> None:
    config = dataclasses.replace(SMALL, conditioned=False)
    assert not config.history.returns
    assert make_policy(config).sample(make_observation(2, history=config.history), seeded()).shape == (2, 4, 3)


@pytest.mark.parametrize("head", HEADS)
def test_it_does_what_earned_the_return_that_is_asked(head: Head) -> None:
    """Episodes that went left earned nothing, those that went right earned all."""
    config = dataclasses.replace(SMALL, context=1, chunk_len=2, head=head, temperature=0.0)
    policy, generator = make_policy(config), seeded()
    optimizer = torch.optim.AdamW(policy.parameters(), 3e-3)

    def asked(returns: torch.Tensor) -> Observation:
        batch = len(returns)
        return dataclasses.replace(
            make_observation(batch),
            state=torch.randn(batch, 1, 5, generator=generator),
            text=as_text(torch.ones(batch, 4, dtype=torch.long)),
            returns_to_go=returns[:, None],
        )

    for _ in range(150):
        returns = torch.randint(2, (64,), generator=generator).float()
        actions = (2 * returns - 1)[:, None, None].expand(64, 2, 3)
        policy.loss(asked(returns), actions, torch.ones_like(actions, dtype=torch.bool), generator).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.inference_mode():
        sampled = policy.sample(asked(torch.tensor([0.0, 1.0])), generator)
    assert (sampled - torch.tensor([-1.0, 1.0])[:, None, None]).abs().max() < 0.3


CENTRES = torch.linspace(-2.0, 2.0, 9)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=5))
def test_a_target_between_two_bins_is_their_mean(values: list[float]) -> None:
    targets = torch.tensor(values)
    logits = torch.zeros(len(values), 9, requires_grad=True)
    two_hot_cross_entropy(logits, targets, CENTRES).sum().backward()
    assert logits.grad is not None
    q = 1 / 9 - logits.grad  # the gradient of a cross-entropy is softmax − q
    torch.testing.assert_close(q @ CENTRES, targets.clamp(-2, 2), atol=1e-5, rtol=0)
    assert ((q > 1e-5).sum(-1) <= 2).all()


def test_draws_from_bins_are_spread_as_the_bins_are() -> None:
    generator = seeded()
    p = torch.tensor([0.0, 0.1, 0.0, 0.0, 0.3, 0.4, 0.2, 0.0, 0.0])
    logits = p.clamp(min=1e-9).log().expand(20_000, 9)
    drawn = at_quantile(logits, CENTRES, torch.rand(20_000, generator=generator))
    assert abs(drawn.mean() - p @ CENTRES) < 0.02
    near = ((drawn[:, None] - CENTRES).abs() < 0.25).float().mean(0)
    assert near[[1, 4, 5, 6]].sum() > 0.8  # half a bin of what lies between the two groups is drawn as well
    ends = at_quantile(logits[:2], CENTRES, torch.tensor([0.0, 1.0]))
    assert ((ends >= -2) & (ends <= 2)).all()
    assert (drawn.sort().values == at_quantile(logits, CENTRES, torch.rand(20_000, generator=seeded()).sort()[0])).all()


def test_a_draw_from_bins_is_shared_by_a_chunk() -> None:
    """The actions of a chunk leave the middle of their distributions together."""
    config = dataclasses.replace(SMALL, head="bins")
    policy, observation = make_policy(config), make_observation(64, history=config.history)
    with torch.no_grad():
        policy.action_out.weight.zero_()
        policy.action_out.bias.zero_()  # the same distribution for every action
    chunk = policy.sample(observation, seeded())
    assert torch.equal(chunk, chunk[:, :1].expand_as(chunk))
    assert chunk.std() > 0.3 and not torch.equal(chunk[..., 0], chunk[..., 1])


def test_hidden_actions_are_hidden_in_training_alone() -> None:
    hiding = make_policy(dataclasses.replace(SMALL, hide_actions=0.5))
    plain, observation = make_policy(), make_observation(4, history=SMALL.history)
    other = dataclasses.replace(observation, past_actions=observation.past_actions.flip(0))
    all_hidden = torch.zeros(4, dtype=torch.bool)
    torch.testing.assert_close(hiding.predict(observation, all_hidden), hiding.predict(other, all_hidden))
    assert not torch.allclose(hiding.predict(observation), hiding.predict(other))
    actions, valid = torch.randn(4, 4, 3), torch.ones(4, 4, 3, dtype=torch.bool)
    assert hiding.loss(observation, actions, valid, seeded()) != plain.loss(observation, actions, valid, seeded())
    assert torch.equal(hiding.sample(observation, seeded()), plain.sample(observation, seeded()))
    never = make_policy(dataclasses.replace(SMALL, hide_actions=1.0))
    torch.testing.assert_close(never.sample(observation, seeded()), never.sample(other, seeded()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context": 0}, "context"),
        ({"execute_len": 5}, r"1..chunk_len"),
        ({"bins": 1}, "number above 1"),
        ({"bin_range": 0.0}, "range above 0"),
        ({"hide_actions": 1.1}, "hide_actions"),
        ({"temperature": -1.0}, "temperature"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change)
