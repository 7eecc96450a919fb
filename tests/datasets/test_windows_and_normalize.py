"""A gathered batch is what slicing sample by sample gives; normalising undoes itself."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support import FEATURES, make_episode, write

from robostack.datasets.episodes import DataError
from robostack.datasets.normalize import SMALLEST_SCALE, Normalizer, Statistics
from robostack.datasets.store import EpisodeStore, EpisodeWriter
from robostack.datasets.windows import WindowSampler

KEYS = ("observation.state", "observation.images.top")


@pytest.mark.parametrize("image_memory", [1 << 20, 0])
def test_a_batch_is_what_slicing_one_by_one_gives(tmp_path: Path, image_memory: int) -> None:
    episodes = write(tmp_path / "data", [9, 4, 7])
    sampler = WindowSampler(EpisodeStore(tmp_path / "data"), KEYS, chunk_len=5, image_memory=image_memory)
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
            assert all(np.array_equal(windows.observation[key][row], episode[key][t]) for key in KEYS)
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
    with pytest.raises(DataError, match=r"too few frames for a chunk of 5 actions: its longest episode has 4"):
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
        WindowSampler(EpisodeStore(tmp_path / "data"), KEYS, chunk_len=5)


def test_normalising_undoes_itself_on_arrays_and_tensors() -> None:
    rows = np.random.default_rng(0).normal(3.0, 2.0, (500, 4)).astype(np.float32)
    normalizer = Normalizer.of(Statistics.of(rows))
    unit = normalizer.forward(rows)
    np.testing.assert_allclose(unit.mean(0), 0.0, atol=1e-4)
    np.testing.assert_allclose(unit.std(0), 1.0, atol=1e-4)
    np.testing.assert_allclose(normalizer.inverse(unit), rows, atol=1e-5)
    tensor = torch.from_numpy(rows)
    torch.testing.assert_close(normalizer.inverse(normalizer.forward(tensor)), tensor)


def test_a_joint_that_hardly_moves_is_named_and_not_blown_up() -> None:
    rows = np.random.default_rng(0).normal(0.0, [1.0, 1e-5], (500, 2)).astype(np.float32)
    with pytest.warns(UserWarning, match="action: wrist hardly vary"):
        Statistics.of(rows).warn_of_still_entries("action", ("elbow", "wrist"))
    normalizer = Normalizer.of(Statistics.of(rows))
    assert normalizer.scale[1] == SMALLEST_SCALE
    assert np.abs(normalizer.forward(rows + np.array([0, 1e-3], np.float32))[:, 1]).max() < 1.0


def test_statistics_are_exact() -> None:
    rows = np.arange(12, dtype=np.float32).reshape(6, 2)
    statistics = Statistics.of(rows)
    assert statistics.mean == (5.0, 6.0) and statistics.min == (0.0, 1.0) and statistics.max == (10.0, 11.0)
    assert statistics.std == pytest.approx((np.sqrt(35 / 3),) * 2)
