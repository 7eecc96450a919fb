"""Statistics in one pass are those of the whole, and a normaliser made from them undoes itself."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from robostack.datasets import statistics
from robostack.datasets.episodes import DataError, Feature
from robostack.datasets.normalize import Normalizer
from robostack.datasets.statistics import SMALLEST_SCALE, Statistics, of_columns, of_relative_actions
from robostack.datasets.store import CHUNK_LEN, EpisodeStore, EpisodeWriter


@given(arrays(np.float32, (st.integers(1, 60)).map(lambda n: (n, 2)), elements=st.floats(-1e6, 1e6, width=32)))
def test_one_pass_in_blocks_gives_the_statistics_of_the_whole(rows: np.ndarray) -> None:
    size, statistics.ROWS_AT_ONCE = statistics.ROWS_AT_ONCE, 7
    try:
        found = Statistics.of(rows)
    finally:
        statistics.ROWS_AT_ONCE = size
    values = rows.astype(np.float64)
    np.testing.assert_allclose(found.mean, values.mean(0), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.std, values.std(0), rtol=1e-6, atol=1e-3 * 1e-3)
    assert found.min == tuple(values.min(0)) and found.max == tuple(values.max(0))
    np.testing.assert_allclose([found.q01, found.q99], np.quantile(values, (0.01, 0.99), axis=0), rtol=1e-6, atol=1e-6)
    assert found.count == found.quantile_rows == len(rows)


def test_a_large_offset_does_not_cancel_the_deviation() -> None:
    rows = 1e6 + np.random.default_rng(0).normal(0.0, 1e-2, (5000, 1))
    assert Statistics.of(rows).std[0] == pytest.approx(rows.std(), rel=1e-6)


def test_quantiles_of_many_rows_come_from_every_nth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "QUANTILE_ROWS", 1 << 12)
    monkeypatch.setattr(statistics, "ROWS_AT_ONCE", 1001)
    rows = np.random.default_rng(0).random((30_000, 1))
    found = Statistics.of(rows)
    assert found.quantile_rows == len(rows[::8]) and found.count == 30_000
    assert found.q01[0] == np.quantile(rows[::8], 0.01)
    assert abs(found.q01[0] - 0.01) < 5 * np.sqrt(0.01 * 0.99 / found.quantile_rows)


def relative_one_by_one(episodes: list[tuple[np.ndarray, np.ndarray]], chunk_len: int) -> np.ndarray:
    return np.array(
        [
            action[t + k] - state[t]
            for state, action in episodes
            for t in range(len(state))
            for k in range(min(chunk_len, len(state) - t))
        ]
    )


def test_relative_actions_are_those_of_every_window(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    episodes = [(rng.normal(size=(n, 2)), rng.normal(size=(n, 2))) for n in (9, 3, 14)]
    found = of_relative_actions([(lambda i: episodes[i], [9, 3]), (lambda i: episodes[2], [14])], chunk_len=5)
    rows = relative_one_by_one(episodes, 5)
    np.testing.assert_allclose(found.mean, rows.mean(0), atol=1e-12)
    np.testing.assert_allclose(found.std, rows.std(0), atol=1e-12)
    np.testing.assert_allclose(found.q99, np.quantile(rows, 0.99, axis=0), atol=1e-12)
    assert found.count == len(rows)

    monkeypatch.setattr(statistics, "RELATIVE_ROWS", 40)
    sampled = of_relative_actions([(lambda i: episodes[i], [9, 3]), (lambda i: episodes[2], [14])], chunk_len=5)
    assert sampled.count == sampled.quantile_rows < 60  # and it says so


def write(path: Path, state_names: tuple[str, ...], finish: bool) -> EpisodeStore:
    features = {
        "observation.state": Feature((2,), "float32", state_names),
        "action": Feature((2,), "float32", ("a", "b")),
        "next.reward": Feature((), "float32"),
        "next.success": Feature((), "bool"),
        "observation.images.top": Feature((4, 4, 3), "uint8"),
    }
    writer, rng = EpisodeWriter(path, features, fps=10), np.random.default_rng(0)
    for length in (6, 4):
        columns = {key: rng.random((length, *feature.shape)).astype(feature.dtype) for key, feature in features.items()}
        writer.append(columns, "task")
    if finish:
        writer.finish()
    return EpisodeStore(path)


def test_a_finished_store_brings_its_statistics_and_an_unfinished_one_measures_them(tmp_path: Path) -> None:
    stored = write(tmp_path / "finished", ("a", "b"), finish=True)
    measured = write(tmp_path / "killed", ("a", "b"), finish=False)
    assert set(stored.statistics()) == {"observation.state", "action", "next.reward"}
    assert stored.statistics() == measured.statistics()
    assert stored.relative_statistics(CHUNK_LEN) == measured.relative_statistics(CHUNK_LEN)
    assert stored.relative_statistics(2).count == 2 * 10 - 2

    # What is stored is used as it is, and no longer counts when an episode is added.
    EpisodeWriter.resume(stored.path).append(stored.episode(0), "task")
    assert EpisodeStore(stored.path).statistics()["action"].count == 16


def test_actions_of_other_entries_than_the_state_are_not_relative_to_it(tmp_path: Path) -> None:
    store = write(tmp_path / "data", ("a", "c"), finish=True)
    with pytest.raises(DataError, match="relative actions need the same entries"):
        store.relative_statistics(CHUNK_LEN)


def test_missing_and_mismatched_statistics_are_errors() -> None:
    values = asdict(Statistics.of(np.arange(6.0).reshape(3, 2)))
    assert Statistics.from_json(values) == Statistics.of(np.arange(6.0).reshape(3, 2))
    with pytest.raises(DataError, match="expected the statistics mean, std"):
        Statistics.from_json({key: value for key, value in values.items() if key != "q99"})
    with pytest.raises(DataError, match="differ in length"):
        Statistics.from_json({**values, "std": (1.0,)})
    with pytest.raises(DataError, match="there are no frames"):
        Statistics.of(np.zeros((0, 2)))
    with pytest.raises(DataError, match="expected 2 entries, as the statistics have, got 3"):
        Normalizer.of(Statistics.from_json(values)).forward(np.zeros((4, 3)))


@pytest.mark.parametrize("normalization", ["mean_std", "min_max", "quantiles"])
def test_every_normaliser_undoes_itself_on_arrays_and_tensors(normalization) -> None:
    rows = np.random.default_rng(0).normal(3.0, 2.0, (500, 4)).astype(np.float32)
    found = Statistics.of(rows)
    normalizer = Normalizer.of(found, normalization)
    np.testing.assert_allclose(normalizer.inverse(normalizer.forward(rows)), rows, atol=1e-5)
    tensor = torch.from_numpy(rows)
    torch.testing.assert_close(normalizer.inverse(normalizer.forward(tensor)), tensor)


def test_what_each_normaliser_brings_to_where() -> None:
    rows = np.random.default_rng(0).normal(3.0, 2.0, (500, 4)).astype(np.float32)
    found = Statistics.of(rows)
    unit = Normalizer.of(found).forward(rows)
    np.testing.assert_allclose(unit.mean(0), 0.0, atol=1e-4)
    np.testing.assert_allclose(unit.std(0), 1.0, atol=1e-4)
    ends = Normalizer.of(found, "min_max").forward(rows)
    np.testing.assert_allclose([ends.min(0), ends.max(0)], [[-1] * 4, [1] * 4], atol=1e-5)
    quantiles = Normalizer.of(found, "quantiles").forward(np.array([found.q01, found.q99]))
    np.testing.assert_allclose(quantiles, [[-1] * 4, [1] * 4], atol=1e-9)


@pytest.mark.parametrize("normalization", ["mean_std", "min_max", "quantiles"])
def test_a_joint_that_hardly_moves_is_named_and_not_blown_up(normalization) -> None:
    rows = np.random.default_rng(0).normal(0.0, [1.0, 1e-5], (500, 2)).astype(np.float32)
    with pytest.warns(UserWarning, match="action: wrist hardly vary"):
        Statistics.of(rows).warn_of_still_entries("action", ("elbow", "wrist"))
    normalizer = Normalizer.of(Statistics.of(rows), normalization)
    assert normalizer.scale[1] == SMALLEST_SCALE
    assert np.abs(normalizer.forward(rows + np.array([0, 1e-3], np.float32))[:, 1]).max() < 1.0


def test_statistics_are_exact() -> None:
    rows = np.arange(12, dtype=np.float32).reshape(6, 2)
    found = of_columns([(lambda a, b: rows[a:b], 2), (lambda a, b: rows[2:][a:b], 4)])
    assert found.mean == (5.0, 6.0) and found.min == (0.0, 1.0) and found.max == (10.0, 11.0)
    assert found.std == pytest.approx((np.sqrt(35 / 3),) * 2)
    assert replace(found, count=0) != found
