"""What a feature can be, under which names features are read, and the beat of timestamps."""

from pathlib import Path

import numpy as np
import pytest

from robostack.datasets.episodes import DataError, Feature, Frames, unique_names
from robostack.datasets.formats import Selection, open_reader
from robostack.datasets.store import EpisodeWriter
from robostack.datasets.timing import check_times, deviation, resolves


@pytest.mark.parametrize(
    ("shape", "dtype", "names", "units", "told"),
    [
        ((3,), "float32", ("a", "b"), (), "expected 3 names for shape"),
        ((2, 2), "float32", ("a", "b"), (), "expected 4 names"),
        ((3,), "float32", (), ("rad",), "expected 3 units"),
        ((0,), "float32", (), (), "positive sizes"),
        ((-1,), "float32", (), (), "positive sizes"),
        ((True,), "float32", (), (), "positive sizes"),
        ((1,) * 9, "float32", (), (), "up to 8 positive sizes"),
        ((1 << 40,), "uint8", (), (), "more than"),
        ((3,), "object", (), (), "type of numbers"),
        ((3,), "f4", (), (), "type of numbers"),
        ((3,), "U5", (), (), "type of numbers"),
        ((3,), "float32, int8", (), (), "type of numbers"),
    ],
)
def test_a_feature_that_cannot_be_is_refused(shape, dtype, names, units, told) -> None:
    with pytest.raises(DataError, match=told):
        Feature(shape, dtype, names, units)


def test_entries_have_names_in_every_shape() -> None:
    assert Feature((2,), "float32", ("a", "b")).entry_names == ("a", "b")
    assert Feature((2, 2), "float32").entry_names == ("0,0", "0,1", "1,0", "1,1")
    assert Feature((), "float32").entry_names == ("",)
    assert Feature((4, 5, 1), "uint16", units=("mm",)).is_depth
    assert unique_names(("j", "g", "j")) == ("j#1", "g", "j#2")


def _others_names(path: Path) -> Path:
    features = {
        "image": Feature((4, 4, 3), "uint8"),
        "observation.wrist": Feature((4, 4, 3), "uint8"),
        "state": Feature((2,), "float32"),
        "action": Feature((2,), "float32"),
        "forces": Feature((2,), "float32"),
    }
    writer = EpisodeWriter(path, features, 10.0)
    columns = {key: np.full((5, *f.shape), i).astype(f.dtype) for i, (key, f) in enumerate(features.items())}
    writer.append(columns, "go")
    return path


def test_the_names_of_others_are_read_as_lerobots(tmp_path: Path) -> None:
    reader = open_reader(_others_names(tmp_path / "data"), Selection(rename=("forces=observation.effort",)))
    read = reader.read_episode(0).columns
    assert {key: int(np.asarray(next(iter(column))).flat[0]) for key, column in read.items()} == {
        "observation.images.image": 0,
        "observation.images.wrist": 1,
        "observation.state": 2,
        "action": 3,
        "observation.effort": 4,
    }
    assert reader.features.keys() == read.keys()


def test_features_are_kept_and_dropped_by_their_new_names(tmp_path: Path) -> None:
    path = _others_names(tmp_path / "data")
    assert [*open_reader(path, Selection(keep=("action", "observation.state"))).features] == [
        "observation.state",
        "action",
    ]
    assert "forces" not in open_reader(path, Selection(drop=("forces",))).features
    for wrong in (Selection(keep=("typo",)), Selection(drop=("typo",)), Selection(rename=("typo=x",))):
        with pytest.raises(DataError, match="has no typo to"):
            open_reader(path, wrong)
    with pytest.raises(DataError, match="would have the name of another feature"):
        open_reader(path, Selection(rename=("forces=action",)))
    with pytest.raises(ValueError, match="expected old=new"):
        Selection(rename=("forces",))


@pytest.mark.parametrize(
    "times",
    [
        np.arange(100) / 30,
        np.arange(100) / 30 + 17.3,  # late start
        np.arange(100) / 30 + np.random.default_rng(0).uniform(-0.4, 0.4, 100) / 30,
        np.arange(100) / 29.9,
        np.zeros(1),
        np.zeros(0),
    ],
)
def test_frames_within_half_a_period_keep_the_beat(times: np.ndarray) -> None:
    check_times(times, 30.0)


@pytest.mark.parametrize(
    "times",
    [
        np.arange(100) / 50,
        np.arange(1000) / 29.9,
        np.delete(np.arange(100), 40) / 30,  # a dropped frame
        np.r_[0, np.arange(99)] / 30,
        np.full(100, np.nan),
        -np.arange(100) / 30,
    ],
)
def test_frames_that_leave_the_beat_are_told(times: np.ndarray) -> None:
    with pytest.raises(DataError, match="do not keep 30 frames a second"):
        check_times(times, 30.0)


def test_the_worst_frame_is_named() -> None:
    times = np.arange(50) / 10
    times[7] += 0.04
    found = deviation(times, 10.0)
    assert found.frame == 7 and found.periods == pytest.approx(0.2)


def test_single_precision_does_not_resolve_seconds_since_1970() -> None:
    times = 1.75e9 + np.arange(10) / 30
    assert resolves(times, 30) and not resolves(times.astype(np.float32), 30)


def test_frames_of_another_size_are_named_with_what_to_do_and_can_be_had_as_they_are() -> None:
    frames = [np.zeros((6, 5, 3), np.uint8), np.zeros((8, 5, 3), np.uint8)]
    camera = Frames((2, 6, 5, 3), lambda: iter(frames), where="data, episode 4: top")
    with pytest.raises(
        DataError, match=r"data, episode 4: top, frame 1: expected a picture of 6×5×3, got 8×5×3.*--resize"
    ):
        list(camera)
    assert [frame.shape for frame in camera.read()] == [(6, 5, 3), (8, 5, 3)]
