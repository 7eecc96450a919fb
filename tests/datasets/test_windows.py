"""A gathered batch is what slicing sample by sample gives."""

from pathlib import Path

import numpy as np
import pytest
from support import FEATURES, make_episode, write

from robostack.datasets.episodes import DataError, Feature
from robostack.datasets.moments import History
from robostack.datasets.store import EpisodeStore, EpisodeWriter
from robostack.datasets.windows import WindowSampler

KEYS = ("observation.state", "observation.images.top")


def test_a_batch_is_what_slicing_one_by_one_gives(tmp_path: Path) -> None:
    episodes = write(tmp_path / "data", [9, 4, 7])
    sampler = WindowSampler(EpisodeStore(tmp_path / "data"), KEYS, chunk_len=5)
    windows = sampler.gather(np.arange(len(sampler)))
    row = 0
    for number, episode in enumerate(episodes):
        for t in range(len(episode["action"])):
            chunk = episode["action"][t : t + 5]
            real = len(chunk)
            assert np.array_equal(windows.action[row, :real], chunk)
            assert (windows.action[row, real:] == chunk[-1]).all()
            assert windows.is_pad[row].tolist() == [False] * real + [True] * (5 - real)
            assert windows.task[row] == number % 2
            assert all(np.array_equal(windows.observation[key][row, 0], episode[key][t]) for key in KEYS)
            row += 1
    assert row == len(sampler)


def test_a_stride_keeps_every_nth_frame_with_its_whole_chunk(tmp_path: Path) -> None:
    write(tmp_path / "data", [9, 8])
    store = EpisodeStore(tmp_path / "data")
    every = WindowSampler(store, KEYS, chunk_len=5).gather(np.arange(0, 17, 3))
    strided = WindowSampler(store, KEYS, chunk_len=5, frame_stride=3)
    assert len(strided) == 6
    some = strided.gather(np.arange(6))
    assert np.array_equal(some.action, every.action) and np.array_equal(some.is_pad, every.is_pad)
    assert all(np.array_equal(some.observation[key], every.observation[key]) for key in KEYS)


def test_the_same_generator_draws_the_same_batch(tmp_path: Path) -> None:
    write(tmp_path / "data", [9])
    sampler = WindowSampler(EpisodeStore(tmp_path / "data"), KEYS, chunk_len=5)
    one, two, other = (sampler.draw(16, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one.action, two.action) and not np.array_equal(one.action, other.action)


def test_too_few_frames_for_a_chunk_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "data", [4, 3])
    with pytest.raises(
        DataError, match=r"too few frames for a chunk of 5 actions, which takes 5: its longest episode has 4"
    ):
        WindowSampler(EpisodeStore(tmp_path / "data"), KEYS, chunk_len=5)


def test_a_value_that_is_not_finite_is_found_with_its_episode(tmp_path: Path) -> None:
    """A store that another program wrote may hold what our writer refuses."""
    import zarr

    writer = EpisodeWriter(tmp_path / "data", FEATURES, fps=50)
    for seed in range(2):
        writer.append(make_episode(6, seed), "task")
    array = zarr.open_group(str(tmp_path / "data"), mode="r+")["action"]
    assert isinstance(array, zarr.Array)
    array[8, 1] = np.nan
    with pytest.raises(DataError, match="action is not finite in episode 1 at frame 2"):
        WindowSampler(EpisodeStore(tmp_path / "data"), KEYS, chunk_len=5).gather(np.arange(12))


def test_actions_come_at_the_rate_that_is_asked_for(tmp_path: Path) -> None:
    """A ramp stays a ramp: a chunk at another rate has the values that the ramp has at its times."""
    features = {"observation.state": Feature((1,), "float32"), "action": Feature((1,), "float32")}
    writer = EpisodeWriter(tmp_path / "data", features, fps=30)
    for length in (20, 40):
        ramp = np.arange(length, dtype=np.float32)[:, None] / 30  # the time itself, in seconds
        writer.append({"observation.state": ramp, "action": ramp}, "task")
    store = EpisodeStore(tmp_path / "data")
    for rate in (10.0, 25.0, 30.0, 50.0):
        sampler = WindowSampler(store, ("observation.state",), chunk_len=8, rate=rate)
        windows = sampler.gather(np.arange(60))
        begun = windows.observation["observation.state"][:, 0]
        times = begun + np.arange(8) / rate
        end = np.repeat([19 / 30, 39 / 30], [20, 40])[:, None]
        np.testing.assert_allclose(windows.action[..., 0], np.minimum(times, end), atol=1e-5)
        assert np.array_equal(windows.is_pad, times > end + 1e-6)


def test_flags_are_not_brought_to_another_rate(tmp_path: Path) -> None:
    writer = EpisodeWriter(tmp_path / "data", {"action": Feature((1,), "int64")}, fps=30)
    writer.append({"action": np.zeros((9, 1), np.int64)}, "task")
    with pytest.raises(DataError, match="actions of int64 cannot be brought to 10"):
        WindowSampler(EpisodeStore(tmp_path / "data"), (), chunk_len=2, rate=10.0)


def test_a_history_is_what_looking_back_one_by_one_gives(tmp_path: Path) -> None:
    """Before the start of its episode a window holds the first look and the first action, and says so."""
    episodes = write(tmp_path / "data", [9, 4, 7])
    sampler = WindowSampler(EpisodeStore(tmp_path / "data"), KEYS, chunk_len=5, history=History(length=3, stride=2))
    windows = sampler.gather(np.arange(len(sampler)))
    assert windows.past_action.shape == (20, 4, 2) and windows.valid.shape == (20, 3)
    row = 0
    for episode in episodes:
        for t in range(len(episode["action"])):
            looks, past = np.array([t - 4, t - 2, t]), np.arange(t - 4, t)
            assert np.array_equal(windows.valid[row], looks >= 0) and np.array_equal(windows.acted[row], past >= 0)
            for key in KEYS:
                assert np.array_equal(windows.observation[key][row], episode[key][np.maximum(looks, 0)])
            assert np.array_equal(windows.past_action[row], episode["action"][np.maximum(past, 0)])
            assert np.array_equal(windows.action[row, 0], episode["action"][t])
            row += 1


@pytest.mark.parametrize("rate", [10.0, 25.0, 30.0, 50.0])
def test_the_past_comes_at_the_rate_that_is_asked_for(tmp_path: Path, rate: float) -> None:
    features = {"observation.state": Feature((1,), "float32"), "action": Feature((1,), "float32")}
    writer = EpisodeWriter(tmp_path / "data", features, fps=30)
    for length in (20, 40):
        ramp = np.arange(length, dtype=np.float32)[:, None] / 30
        writer.append({"observation.state": ramp, "action": ramp}, "task")
    sampler = WindowSampler(
        EpisodeStore(tmp_path / "data"), ("observation.state",), 4, rate=rate, history=History(length=3, stride=2)
    )
    windows = sampler.gather(np.arange(60))
    now = windows.observation["observation.state"][:, -1]
    wanted = now + np.arange(-4, 0) / rate
    np.testing.assert_allclose(windows.past_action[..., 0], np.maximum(wanted, 0.0), atol=1e-5)
    assert np.array_equal(windows.acted, wanted > -1e-6)
    # A look is always at a frame: the nearest one.
    looks = np.maximum(now + np.array([-4, -2, 0]) / rate, 0.0)
    assert np.abs(windows.observation["observation.state"][..., 0] - looks).max() <= 0.5 / 30 + 1e-5


@pytest.mark.parametrize("rate", [50.0, 25.0])
def test_what_is_ahead_is_what_looking_on_one_by_one_gives(tmp_path: Path, rate: float) -> None:
    """Past the end of its episode a window holds the last frame, and says so; what was seen before is as without."""
    episodes = write(tmp_path / "data", [9, 4, 7])
    store, frames = EpisodeStore(tmp_path / "data"), np.arange(20)
    history = History(length=2, stride=2, ahead=3)
    windows = WindowSampler(store, KEYS, 2, rate=rate, history=history).gather(frames)
    without = WindowSampler(store, KEYS, 2, rate=rate, history=History(length=2, stride=2)).gather(frames)
    row, step = 0, int(2 * store.fps / rate)
    for episode in episodes:
        last = len(episode["action"]) - 1
        for t in range(last + 1):
            later = t + step * np.arange(1, 4)
            assert np.array_equal(windows.ahead_valid[row], later <= last)
            for key in KEYS:
                assert np.array_equal(windows.ahead[key][row], episode[key][np.minimum(later, last)])
            row += 1
    for key in KEYS:
        assert np.array_equal(windows.observation[key], without.observation[key])
        assert without.ahead[key].shape[:2] == without.ahead_valid.shape == (20, 0)
    assert np.array_equal(windows.valid, without.valid) and np.array_equal(windows.action, without.action)


def test_data_without_actions_have_windows_for_who_asks_for_none(tmp_path: Path) -> None:
    features = {"observation.state": Feature((1,), "float32")}
    writer = EpisodeWriter(tmp_path / "data", features, fps=30)
    for length in (6, 1):
        writer.append({"observation.state": np.arange(length, dtype=np.float32)[:, None]}, "task")
    store, history = EpisodeStore(tmp_path / "data"), History(length=2, stride=3, ahead=1)
    with pytest.raises(DataError, match="lacks action"):
        WindowSampler(store, tuple(features), chunk_len=2, history=history)
    for rate in (30.0, 15.0):
        sampler = WindowSampler(store, tuple(features), chunk_len=0, rate=rate, history=history)
        windows = sampler.gather(np.arange(len(sampler)))
        assert windows.action.shape == windows.past_action.shape == (7, 0, 0)
        assert windows.is_pad.shape == windows.acted.shape == (7, 0)
        behind = 3 * int(30 / rate)
        state = windows.observation["observation.state"][..., 0]
        assert state.tolist() == [[max(0, t - behind), t] for t in range(6)] + [[0, 0]]
        assert windows.ahead["observation.state"][:, 0, 0].tolist() == [min(5, t + behind) for t in range(6)] + [0]
        assert windows.ahead_valid[:, 0].tolist() == [t + behind <= 5 for t in range(6)] + [False]


@pytest.mark.parametrize(("history", "window"), [(History(ahead=2), 6), (History(length=4, ahead=1), 11)])
@pytest.mark.parametrize("chunk_len", [0, 1])
def test_what_is_not_finite_ahead_or_behind_is_found_too(
    tmp_path: Path, history: History, window: int, chunk_len: int
) -> None:
    import zarr

    writer = EpisodeWriter(tmp_path / "data", FEATURES, fps=50)
    for seed in range(2):
        writer.append(make_episode(6, seed), "task")
    array = zarr.open_group(str(tmp_path / "data"), mode="r+")["observation.state"]
    assert isinstance(array, zarr.Array)
    array[8, 1] = np.nan
    sampler = WindowSampler(EpisodeStore(tmp_path / "data"), KEYS, chunk_len, history=history)
    with pytest.raises(DataError, match=r"observation\.state is not finite in episode 1 at frame 2"):
        sampler.gather(np.array([window]))


def test_the_return_to_go_is_what_is_still_to_come_of_the_episode(tmp_path: Path) -> None:
    features = {"action": Feature((1,), "float32"), "next.reward": Feature((), "float32")}
    writer = EpisodeWriter(tmp_path / "data", features, fps=30)
    rewards = [np.array(r, np.float32) for r in ([1, 0, 2, 3], [0.5, 0.25, 4])]
    for reward in rewards:
        writer.append({"action": np.zeros((len(reward), 1), np.float32), "next.reward": reward}, "task")
    store, history = EpisodeStore(tmp_path / "data"), History(length=2, stride=1, returns=True)
    returns = WindowSampler(store, (), chunk_len=2, history=history).gather(np.arange(7)).returns_to_go
    assert returns is not None and returns[:, 1].tolist() == [6, 5, 5, 3, 4.75, 4.25, 4]
    assert returns[:, 0].tolist() == [6, 6, 5, 5, 4.75, 4.75, 4.25]
    EpisodeWriter(tmp_path / "bare", {"action": features["action"]}, fps=30).append(
        {"action": np.zeros((4, 1), np.float32)}, "task"
    )
    with pytest.raises(DataError, match=r"lacks next\.reward"):
        WindowSampler(EpisodeStore(tmp_path / "bare"), (), chunk_len=2, history=history)
