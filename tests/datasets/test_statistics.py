"""Statistics in one pass are those of the whole, and a normaliser made from them undoes itself."""

import warnings
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
from robostack.datasets.normalize import Normalizer, smallest_scales, warn_of_floored
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


@pytest.mark.parametrize("order", ["any", "rising", "repeating"])
def test_quantiles_of_many_rows_are_within_the_error_that_is_told(monkeypatch: pytest.MonkeyPatch, order: str) -> None:
    monkeypatch.setattr(statistics, "QUANTILE_ROWS", 1 << 12)
    monkeypatch.setattr(statistics, "ROWS_AT_ONCE", 1001)
    rows = np.random.default_rng(1).random((30_000, 1))
    if order == "rising":
        rows.sort(0)
    if order == "repeating":  # every 8th row, which a sample of every 8th would be made of, is another
        rows[::8] += 10
    found = Statistics.of(rows)
    assert found.count == 30_000 and 0.4 * (1 << 12) < found.quantile_rows <= 1 << 12
    assert found.min[0] == rows.min() and found.max[0] == rows.max()
    for level, quantile in ((0.01, found.q01[0]), (0.99, found.q99[0])):
        rank = (rows <= quantile).mean()
        assert abs(rank - level) < 5 * np.sqrt(0.01 * 0.99 / found.quantile_rows)
    monkeypatch.setattr(statistics, "ROWS_AT_ONCE", 777)
    assert Statistics.of(rows).q99 == found.q99  # the same rows, however they come


def relative_one_by_one(episodes: list[tuple[np.ndarray, np.ndarray]], chunk_len: int) -> np.ndarray:
    return np.array(
        [
            action[t + k] - state[t]
            for state, action in episodes
            for t in range(len(state))
            for k in range(min(chunk_len, len(state) - t))
        ]
    )


@pytest.mark.parametrize("chunk", [1, 2, 5, 6, 40])
def test_relative_actions_are_those_of_every_window(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    rng = np.random.default_rng(0)
    episodes = [(rng.normal(1e4, 1, (n, 2)), rng.normal(1e4, 1, (n, 2))) for n in (9, 1, 14)]
    data_sets = [(lambda i: episodes[i], [9, 1], chunk), (lambda _: episodes[2], [14], chunk)]
    found, rows = of_relative_actions(data_sets), relative_one_by_one(episodes, chunk)
    np.testing.assert_allclose(found.mean, rows.mean(0), atol=1e-10)
    np.testing.assert_allclose(found.std, rows.std(0), rtol=1e-10)
    assert found.min == tuple(rows.min(0)) and found.max == tuple(rows.max(0))
    np.testing.assert_allclose(found.q99, np.quantile(rows, 0.99, axis=0), atol=1e-10)
    assert found.count == found.quantile_rows == len(rows)

    # Of many, only the quantiles are a sample's; and it says so.
    monkeypatch.setattr(statistics, "RELATIVE_ROWS", len(rows) // 2)
    sampled = of_relative_actions(data_sets)
    assert 0 < sampled.quantile_rows < len(rows)
    quantiles = {name: getattr(found, name) for name in ("q01", "q99", "quantile_rows")}
    assert replace(sampled, **quantiles) == found


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


NORMALIZATIONS = ("mean_std", "min_max", "quantiles")


def normalized(rows: np.ndarray, normalization, units: tuple[str, ...] = ()) -> tuple[Normalizer, np.ndarray]:
    """Rows as the normaliser made from them brings them to unit scale."""
    found = Statistics.of(rows)
    normalizer = Normalizer.of(found, normalization, smallest_scales(found, normalization, units))
    return normalizer, normalizer.forward(rows)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("share", [0.001, 0.005, 0.01, 0.03])
@pytest.mark.parametrize(
    ("unit", "size"), [("", 1.0), ("", 0.8), ("", 100.0), ("0 closed .. 1 open", 1.0), ("m", 1e-3)]
)
def test_what_moves_in_few_frames_is_not_blown_up(normalization, share: float, unit: str, size: float) -> None:
    rng = np.random.default_rng(0)
    rows = np.stack([rng.normal(size=4000), np.where(rng.random(4000) < share, size, 0.0)], 1)
    rows[5, 1] = size
    _, unit_rows = normalized(rows, normalization, ("rad", unit) if unit else ())
    assert np.ptp(unit_rows[:, 1]) > 0.9 and np.abs(unit_rows).max() <= 8.001


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("factor", [1e-2, 1.0, 1e3])
@pytest.mark.parametrize("units", [(), ("m", "m", "m", "rad")])
def test_a_small_step_is_scaled_by_itself_in_whatever_unit(normalization, factor: float, units) -> None:
    """A deviation of 5 mm, in metres, millimetres or large units, beside a gripper of -1 or 1."""
    rng = np.random.default_rng(0)
    steps = rng.normal(0.0, 0.005 * factor, (2000, 3))
    rows = np.concatenate([steps, rng.choice([-1.0, 1.0], (2000, 1)) * max(1.0, factor)], 1)
    normalizer, _ = normalized(rows, normalization, units)
    found = Statistics.of(rows)
    plain = {"mean_std": found.std, "min_max": np.subtract(found.max, found.min) / 2}
    plain["quantiles"] = np.subtract(found.q99, found.q01) / 2
    np.testing.assert_allclose(normalizer.scale, plain[normalization], rtol=1e-6)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("constant", [0.0, 1.5696, -0.3, 300.0])
def test_noise_on_a_constant_stays_small_and_so_does_a_little_more_of_it(normalization, constant: float) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(0.0, 0.3, (1000, 4))
    rows[:, 3] = constant + 1e-6 * rng.normal(size=1000)
    normalizer, unit_rows = normalized(rows, normalization)
    assert np.abs(unit_rows[:, 3]).max() < 0.05
    assert np.abs(normalizer.forward(rows + 1e-3)[:, 3]).max() < 2.0


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize(("unit", "still"), [("rad", 0.01), ("deg", 0.573), ("1", 0.01)])
def test_a_joint_that_hardly_moves_is_divided_by_a_hundredth_of_its_range(normalization, unit: str, still) -> None:
    """As ALOHA's unused joints and the quaternion of a cube that is not turned."""
    size = still / 0.01
    rows = np.random.default_rng(0).normal(0.0, [size, 5e-4 * size], (500, 2)).astype(np.float32)
    normalizer, _ = normalized(rows, normalization, (unit, unit))
    assert normalizer.scale[1] == pytest.approx(still, rel=1e-3)
    assert normalizer.scale[0] == pytest.approx(Normalizer.of(Statistics.of(rows), normalization).scale[0])


def test_what_never_changes_says_nothing_of_its_scale() -> None:
    rows = np.stack([np.zeros(9), np.full(9, 0.5), np.arange(9.0)], 1)
    assert smallest_scales(Statistics.of(rows))[:2] == (SMALLEST_SCALE, SMALLEST_SCALE)
    assert smallest_scales(Statistics.of(rows), still=0.1)[:2] == (0.1, 0.1)
    assert smallest_scales(Statistics.of(np.zeros((3, 1)))) == (SMALLEST_SCALE,)


def test_what_hardly_varies_is_told_in_one_line() -> None:
    rows = np.random.default_rng(0).normal(0.0, [1.0, 1e-5], (500, 2))
    few, many = Statistics.of(rows), Statistics.of(np.arange(20.0)[:, None] * np.eye(1, 41))
    features = {
        "action": (few, ("elbow", "wrist"), smallest_scales(few)),
        "observation.state": (many, (), smallest_scales(many)),
    }
    with pytest.warns(UserWarning) as told:
        warn_of_floored(features)
    assert [str(one.message) for one in told] == [
        "action (wrist), observation.state (40 of 41 entries): hardly vary and are scaled as if they varied more, so "
        "that noise stays small"
    ]


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_what_moves_rarely_is_no_noise_to_be_warned_of(normalization) -> None:
    rows = np.zeros((1000, 1))
    rows[::200] = 1.0
    found = Statistics.of(rows)
    with warnings.catch_warnings(action="error"):
        warn_of_floored({"action": (found, (), smallest_scales(found, normalization))}, normalization)


def test_statistics_are_exact() -> None:
    rows = np.arange(12, dtype=np.float32).reshape(6, 2)
    found = of_columns([(lambda a, b: rows[a:b], 2), (lambda a, b: rows[2:][a:b], 4)])
    assert found.mean == (5.0, 6.0) and found.min == (0.0, 1.0) and found.max == (10.0, 11.0)
    assert found.std == pytest.approx((np.sqrt(35 / 3),) * 2)
    assert replace(found, count=0) != found
