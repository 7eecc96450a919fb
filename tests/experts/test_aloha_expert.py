"""The scripted ALOHA experts: they succeed, and what they show can be learned."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robostack import envs
from robostack.envs.aloha.cameras import parse_camera
from robostack.envs.aloha.env import START_QPOS
from robostack.envs.aloha.kinematics import ArmKinematics, Pose
from robostack.envs.aloha.tasks import TASKS, load_model
from robostack.envs.gl import choose_gl
from robostack.experts import Asked, Expert, make_expert
from robostack.experts.aloha import monotone_cubic, smooth_disturbance
from robostack.experts.record import record_episodes

OBJECTS = {"aloha-transfer-cube": 1, "aloha-insertion": 2}
SEEDS = (0, 1, 2, 3, 1015)  # at 1015 an earlier insertion expert knocked the socket over
MODEL = load_model(TASKS["transfer_cube"])


@pytest.fixture(scope="module", params=OBJECTS)
def demonstrations(request) -> tuple[str, list[dict[str, np.ndarray]]]:
    worlds, expert = envs.make_vector(request.param, 1), make_expert(request.param)
    return request.param, [episode for seed in SEEDS for episode in record_episodes(worlds, expert, [seed])]


def demonstrate(name: str, seed: int, **asked: Any) -> dict[str, np.ndarray]:
    (episode,) = record_episodes(envs.make_vector(name, 1), make_expert(name, Asked(**asked)), [seed])
    return episode


def test_every_demonstration_succeeds_and_stays_so(demonstrations):
    _, episodes = demonstrations
    assert [episode["next.success"].any() for episode in episodes] == [True] * len(SEEDS)
    assert [episode["next.success"][-1] for episode in episodes] == [True] * len(SEEDS)
    for episode in episodes:
        assert episode["next.success"][-100:].mean() > 0.9  # pressed parts slide, and part for single steps


def test_the_hand_over_is_complete(demonstrations):
    name, episodes = demonstrations
    if name == "aloha-transfer-cube":
        for episode in episodes:
            assert episode["observation.state"][-1, 13] > 0.9  # the right hand is open
            assert 0.3 < episode["observation.state"][-1, 6] < 0.7  # the left one holds something


def test_an_episode_is_what_policies_are_trained_on(demonstrations):
    name, episodes = demonstrations
    shapes = {key: (value.shape, value.dtype) for key, value in episodes[0].items()}
    assert shapes == {
        "observation.state": ((400, 14), np.float32),
        "observation.environment_state": ((400, 7 * OBJECTS[name]), np.float32),
        "action": ((400, 14), np.float32),
        "next.reward": ((400,), np.float32),
        "next.success": ((400,), np.bool_),
    }
    env = envs.make(name)
    first, _ = env.reset(seed=SEEDS[0])
    np.testing.assert_array_equal(episodes[0]["observation.state"][0], first["observation.state"])
    second, *_ = env.step(episodes[0]["action"][0])
    np.testing.assert_array_equal(episodes[0]["observation.state"][1], second["observation.state"])
    assert all(env.action_space.contains(action) for action in episodes[0]["action"])


def test_no_joint_takes_different_branches(demonstrations):
    _, episodes = demonstrations
    actions = np.stack([episode["action"] for episode in episodes])
    joints = [i for i in range(14) if i not in (6, 13)]
    # A flipped forearm or wrist differs by about pi, and spreads by 1 rad or more.
    assert actions.std(axis=0)[:, joints].max() < 0.5
    assert np.abs(actions.max(0) - actions.min(0))[:, joints].max() < 1.2


def test_motion_is_smooth(demonstrations):
    _, episodes = demonstrations
    steps = np.abs(np.diff(np.stack([episode["action"] for episode in episodes]), axis=1))
    arms = [i for i in range(14) if i not in (6, 13)]
    assert steps[..., arms].max() < 0.06  # radians in 20 ms
    assert steps[..., [6, 13]].max() < 0.15  # of the gripper's travel


def test_demonstrations_vary(demonstrations):
    _, episodes = demonstrations
    firsts = [int(np.argmax(episode["next.success"])) for episode in episodes]
    assert len(set(firsts)) > 1


@pytest.mark.parametrize("name", OBJECTS)
def test_a_demonstration_depends_on_its_seed_alone(name):
    worlds, expert = envs.make_vector(name, 1), make_expert(name)
    (once,), (_,), (again,) = (record_episodes(worlds, expert, [seed]) for seed in (5, 6, 5))
    _, other = record_episodes(envs.make_vector(name, 2), make_expert(name), [6, 5])
    for key, value in once.items():
        np.testing.assert_array_equal(again[key], value)
        np.testing.assert_array_equal(other[key], value)


def test_a_disturbance_is_smooth_and_repeatable_and_of_the_deviation_that_was_asked():
    paths = [smooth_disturbance(400, 12, np.random.default_rng([seed, 2])) for seed in range(20)]
    np.testing.assert_array_equal(paths[3], smooth_disturbance(400, 12, np.random.default_rng([3, 2])))
    drift = np.stack(paths)
    assert not drift[:, 0].any()  # an episode starts without a jump
    assert 0.9 < drift[:, 50:].std() < 1.1
    assert np.abs(np.diff(drift, axis=1)).max() < 0.1


def test_noise_disturbs_the_arms_alone_and_costs_reward():
    env = envs.make("aloha-transfer-cube")
    clean, little, much = (demonstrate("aloha-transfer-cube", 5, noise=noise) for noise in ((), (0.001,), (0.15,)))
    grippers, arms = [6, 13], [i for i in range(14) if i not in (6, 13)]
    np.testing.assert_array_equal(much["action"][:, grippers], clean["action"][:, grippers])
    assert 0 < np.abs(little["action"] - clean["action"])[:, arms].max() < 0.005
    assert np.abs(much["action"] - clean["action"])[:, arms].max() > 0.15
    assert much["action"].dtype == np.float32 and all(env.action_space.contains(action) for action in much["action"])
    assert little["next.success"][-1]
    assert much["next.reward"].sum() < 0.5 * clean["next.reward"].sum()


@pytest.mark.skipif(choose_gl() is None, reason="no OpenGL backend here")
def test_pictures_are_of_the_state_before_the_action():
    camera = parse_camera("top_zoom:16x16")
    env = envs.make("aloha-transfer-cube", cameras=(camera,))
    first, _ = env.reset(seed=2)
    episode = demonstrate("aloha-transfer-cube", 2, cameras=("top_zoom:16x16",))
    pictures = episode["observation.images.top_zoom"]
    assert pictures.shape == (400, 16, 16, 3) and pictures.dtype == np.uint8
    np.testing.assert_array_equal(pictures[0], first["observation.images.top_zoom"])


def test_experts_meet_the_protocol_and_unknown_ones_are_refused():
    assert isinstance(make_expert("robostack/AlohaInsertion-v0"), Expert)
    with pytest.raises(ValueError, match="known are"):
        make_expert("aloha-juggling")
    with pytest.raises(ValueError, match=r"observe goes with --expert"):
        make_expert("aloha-insertion", Asked(observe=("observation.entities",)))


def test_levels_of_noise_take_turns_from_the_first_seed_on():
    name = "aloha-transfer-cube"
    turns = [demonstrate(name, 5, noise=(0.0, 0.1, 3.0), first=first)["action"] for first in (5, 4, 3)]
    alone = [demonstrate(name, 5, noise=(level,))["action"] for level in (0.0, 0.1, 3.0)]
    for turn, one in zip(turns, alone, strict=True):
        np.testing.assert_array_equal(turn, one)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(side=st.sampled_from(["left", "right"]), change=st.lists(st.floats(-0.25, 0.25), min_size=6, max_size=6))
def test_inverse_kinematics_reaches_what_the_arm_reaches(side, change):
    arm = ArmKinematics(MODEL, side)
    bent = np.array([0.0, -0.7, 0.9, 0.0, 0.7, 0.0])  # off the singular straight wrist
    target = arm.forward(bent + change)
    joints = arm.inverse(target, start=bent)
    np.testing.assert_allclose(arm.forward(joints).position, target.position, atol=2e-4)
    np.testing.assert_allclose(arm.forward(joints).rotation, target.rotation, atol=3e-4)
    np.testing.assert_allclose(joints, bent + change, atol=5e-3)  # the same branch


def test_an_unreachable_pose_is_an_error():
    arm = ArmKinematics(MODEL, "left")
    with pytest.raises(ValueError, match=r"reachable fingertip pose, got \[2.0, 0.0, 0.0\] m"):
        arm.inverse(Pose(np.array([2.0, 0.0, 0.0]), np.eye(3)), start=START_QPOS[:6])


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.floats(-2, 2), min_size=3, max_size=8))
def test_curves_pass_their_knots_and_never_overshoot(values):
    times, knots = np.arange(len(values)) * 10, np.array(values)[:, None]
    at = np.linspace(-5, times[-1] + 5, 301)
    curve = monotone_cubic(times, knots, at)[:, 0]
    np.testing.assert_allclose(monotone_cubic(times, knots, times)[:, 0], values, atol=1e-12)
    i = np.clip(np.searchsorted(times, at, side="right") - 1, 0, len(values) - 2)
    low, high = np.minimum(knots[i, 0], knots[i + 1, 0]), np.maximum(knots[i, 0], knots[i + 1, 0])
    assert ((curve >= low - 1e-9) & (curve <= high + 1e-9)).all()
    assert curve[0] == values[0] and curve[-1] == values[-1]
