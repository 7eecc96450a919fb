"""Many ALOHA environments at once."""

from typing import ClassVar

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from robostack import envs
from robostack.envs.aloha.cameras import parse_camera
from robostack.envs.aloha.vector import AlohaVectorEnv
from robostack.envs.gl import choose_gl
from robostack.evaluation.rollout import run_together

NAME = "aloha-transfer-cube"
START = np.array([0.0, -0.96, 1.16, 0.0, -0.3, 0.0, 0.1] * 2)


def make_vector(count: int, **kwargs) -> AlohaVectorEnv:
    vector = envs.make_vector(NAME, count, **kwargs)
    assert isinstance(vector, AlohaVectorEnv)
    return vector


def actions_of(seed: int, steps: int) -> np.ndarray:
    return START + np.cumsum(np.random.default_rng(seed).normal(0, 0.03, (steps, 14)), axis=0)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_an_episode_does_not_depend_on_the_batch(threads):
    seeds = [11, 4, 7, 11]
    together = make_vector(len(seeds), threads=threads)
    first, _ = together.reset(seed=seeds)
    actions = np.stack([actions_of(seed, 60) for seed in seeds])
    seen = [first, *(together.step(actions[:, step])[0] for step in range(60))]
    alone = envs.make(NAME)
    for i, seed in enumerate(seeds):
        expected = [alone.reset(seed=seed)[0], *(alone.step(action)[0] for action in actions[i])]
        for batch, one in zip(seen, expected, strict=True):
            for key, value in one.items():
                np.testing.assert_array_equal(batch[key][i], value)
    together.close()


def test_one_environment_can_be_reset_without_disturbing_the_others():
    vector = make_vector(2)
    vector.reset(seed=0)
    for _ in range(5):
        before, *_ = vector.step(np.tile(START, (2, 1)))
    after, _ = vector.reset(seed=[9, None], options={"reset_mask": np.array([True, False])})
    fresh, _ = envs.make(NAME).reset(seed=9)
    np.testing.assert_array_equal(after["observation.state"][1], before["observation.state"][1])
    np.testing.assert_array_equal(after["observation.environment_state"][0], fresh["observation.environment_state"])


def test_an_episode_that_is_truncated_is_followed_by_another_as_gymnasium_does_it():
    vector = make_vector(2, max_episode_steps=3)
    other = gym.vector.SyncVectorEnv([lambda: envs.make(NAME, max_episode_steps=3)] * 2)
    actions = np.tile(START + 0.02, (2, 1))
    with pytest.raises(RuntimeError, match=r"environments \[0, 1\] have no episode yet: reset them first"):
        vector.step(actions)
    np.testing.assert_equal(vector.reset(seed=0)[0], dict(other.reset(seed=0)[0]))
    for step in range(9):  # over at steps 3 and 7, reset by 4 and 8
        one, two = vector.step(actions), other.step(actions)
        assert one[3].tolist() == two[3].tolist() == [step in (2, 6)] * 2
        for mine, gymnasiums in zip(one[:4], two[:4], strict=True):
            np.testing.assert_equal(mine, gymnasiums)


def test_a_row_that_diverges_takes_no_other_down(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    vector, alone = make_vector(3), envs.make(NAME)
    vector.reset(seed=[1, 2, 3])
    expected, _ = alone.reset(seed=3)
    for step in range(6):
        if step == 2:
            vector.envs[1].data.qvel[0] = np.inf
        action = START + 0.01 * step
        observation, rewards, terminated, truncated, info = vector.step(np.tile(action, (3, 1)))
        expected, *_ = alone.step(action)
        assert terminated.tolist() == info["diverged"].tolist() == [False, step == 2, False]
        assert not truncated.any() and rewards[1] == 0 and not info["success"].any()
        for key, value in expected.items():
            np.testing.assert_array_equal(observation[key][2], value)


def test_seeds_may_be_any_integers():
    seen = []
    for seed in (5, np.int64(5), np.array([5, 6]), [np.int32(5), 6], (5, 6)):
        seen.append(make_vector(2).reset(seed=seed)[0]["observation.environment_state"])
        np.testing.assert_array_equal(seen[-1], seen[0])
    with pytest.raises(ValueError, match="expected 2 seeds, got 3"):
        make_vector(2).reset(seed=[1, 2, 3])


def test_a_bad_action_is_named_before_anything_moves():
    vector = make_vector(2)
    before, _ = vector.reset(seed=0)
    actions = np.tile(START, (2, 1))
    actions[1, 6] = np.nan
    with pytest.raises(ValueError, match=r"\[\[1, 6\]\]"):
        vector.step(actions)
    np.testing.assert_array_equal(vector.envs[0].observe()["observation.state"], before["observation.state"][0])
    with pytest.raises(ValueError, match=r"shape \(2, 14\), got \(3, 14\)"):
        vector.step(np.zeros((3, 14)))


def test_interface_is_declared():
    vector = gym.make_vec("robostack/AlohaInsertion-v0", 3, vectorization_mode="vector_entry_point")
    assert vector.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    observation, info = vector.reset(seed=1)
    assert vector.observation_space.contains(observation)
    assert info["task"] == ["Insert the peg into the socket."] * 3
    _, rewards, terminated, truncated, info = vector.step(np.tile(START, (3, 1)))
    assert rewards.shape == terminated.shape == truncated.shape == info["stage"].shape == info["success"].shape == (3,)


@pytest.mark.skipif(choose_gl() is None, reason="no OpenGL backend here")
def test_cameras_are_rendered_for_every_environment():
    camera = parse_camera("top_zoom:32x32")
    vector = make_vector(2, cameras=(camera,))
    observation, _ = vector.reset(seed=0)
    assert vector.observation_space.contains(observation)
    assert observation["observation.images.top_zoom"].shape == (2, 32, 32, 3)
    np.testing.assert_array_equal(observation["observation.images.top_zoom"][1], vector.envs[1].render_camera(camera))
    vector.close()


def test_an_evaluation_of_many_rows_outlives_one_that_diverges():
    class Wild:
        """Jumps from limit to limit in row 1; the others keep still."""

        latencies_ms: ClassVar[list[float]] = []

        def begin(self, worlds, seeds):
            self.high = worlds.single_action_space.high
            self.sign = 1

        def act(self, look, rewards):
            self.sign = -self.sign
            return np.stack([START, self.sign * self.high, START])

    one, wild, other = run_together(make_vector(3, max_episode_steps=40), Wild(), [0, 1, 2])
    assert wild.diverged_step is not None and not wild.final and wild.stage_final == 0
    assert one.diverged_step is None and other.diverged_step is None
    alone = envs.make(NAME, max_episode_steps=40)
    alone.reset(seed=0)
    assert one.total_reward == sum(alone.step(START)[1] for _ in range(40))


def test_gymnasiums_statistics_of_episodes_go_over_their_ends():
    vector = gym.wrappers.vector.RecordEpisodeStatistics(make_vector(2, max_episode_steps=3))
    vector.reset(seed=0)
    lengths = [vector.step(np.tile(START, (2, 1)))[4].get("episode", {}).get("l") for _ in range(7)]
    assert [None if one is None else one.tolist() for one in lengths] == [None, None, [3, 3], None, None, None, [3, 3]]
