"""A LeRobot data set in the making: what is killed goes on, what does not fit is refused, files keep their size."""

import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import ARM_FEATURES, arm_tasks, make_arm_episode

from robostack.datasets.episodes import Appender, DataError, EpisodeReader, Feature, Frames
from robostack.datasets.formats.lerobot import assembly as lerobot_assembly
from robostack.datasets.formats.lerobot import settings as lerobot_settings
from robostack.datasets.formats.lerobot import writer as lerobot_writer
from robostack.datasets.formats.lerobot.features import NUMBERS
from robostack.datasets.formats.lerobot.reader import LeRobotReader
from robostack.datasets.formats.lerobot.statistics import of_numbers
from robostack.datasets.formats.lerobot.writer import LeRobotWriter

LENGTHS = (9, 12, 7)
TOP = "observation.images.top"


def begin(path: Path, **options) -> LeRobotWriter:
    return LeRobotWriter(path, ARM_FEATURES, fps=25, robot="arm", **{"codec": "libx264rgb", **options})


def append(writer: LeRobotWriter, *seeds: int) -> None:
    for seed in seeds:
        writer.append(make_arm_episode(LENGTHS[seed], seed), arm_tasks(LENGTHS[seed], seed))


def write(path: Path, **options) -> Path:
    writer = begin(path, **options)
    append(writer, 0, 1, 2)
    writer.finish()
    return path


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def assert_reads_back(path: Path, episodes: int = 3) -> None:
    reader = LeRobotReader(path)
    assert reader.episodes == episodes
    for seed in range(episodes):
        read, written = reader.read_episode(seed), make_arm_episode(LENGTHS[seed], seed)
        assert read.task == arm_tasks(LENGTHS[seed], seed)
        for key, rows in written.items():
            column = np.stack(list(read.columns[key]))
            assert column.dtype == rows.dtype and np.array_equal(column, rows), key


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("whole") / "data")


def test_writer_and_reader_meet_the_contract(whole, tmp_path):
    assert isinstance(begin(tmp_path / "data"), Appender)
    reader = LeRobotReader(whole)
    assert isinstance(reader, EpisodeReader)
    assert (reader.format, reader.fps, reader.robot, reader.length(1)) == ("LeRobot v3.0", 25, "arm", 12)
    assert reader.features == ARM_FEATURES
    assert reader.provenance == {"source": {"format": "LeRobot v3.0", "path": "data"}}


def test_lossless_video_reads_back_exactly(whole):
    assert_reads_back(whole)


def test_what_is_iterated_twice_is_the_same(whole):
    column = LeRobotReader(whole).read_episode(1).columns[TOP]
    assert isinstance(column, Frames)
    first, second = list(column), list(column)
    assert all(map(np.array_equal, first, second))


numbers = st.tuples(st.lists(st.integers(1, 3), max_size=3).map(tuple), st.sampled_from(NUMBERS)).filter(
    lambda kind: kind[1] not in ("uint8", "uint16") or len(kind[0]) != 3  # that is a picture
)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(numbers, min_size=1, max_size=4), st.lists(st.integers(1, 6), min_size=1, max_size=3), st.integers(0, 999)
)
def test_numbers_of_any_type_and_shape_read_back_exactly(tmp_path, kinds, lengths, seed):
    shutil.rmtree(tmp_path / "data", ignore_errors=True)
    features = {f"key.{i}": Feature(shape, dtype) for i, (shape, dtype) in enumerate(kinds)}
    rng = np.random.default_rng(seed)
    writer = LeRobotWriter(tmp_path / "data", features, fps=10)
    episodes = []
    for length in lengths:
        raw = {key: rng.integers(0, 256, (length, 8 * int(np.prod(f.shape))), np.uint8) for key, f in features.items()}
        episode = {}
        for key, feature in features.items():
            kind = np.dtype("u1") if feature.dtype == "bool" else np.dtype(feature.dtype)
            rows = raw[key].view(kind)[:, : int(np.prod(feature.shape))].reshape(length, *feature.shape)
            episode[key] = np.nan_to_num(rows % 2 if feature.dtype == "bool" else rows).astype(feature.dtype)
            if rows.dtype.kind == "f":
                episode[key] = episode[key].clip(-1e30, 1e30)
        episodes.append(episode)
        writer.append(episode, "any")
    writer.finish()
    reader = LeRobotReader(tmp_path / "data")
    for index, episode in enumerate(episodes):
        for key, rows in episode.items():
            back = reader.read_episode(index).columns[key]
            assert back.dtype == rows.dtype
            assert np.array_equal(back.reshape(rows.shape), rows)  # () comes back as (1,): LeRobot knows no other


# Kills


def test_an_episode_that_fails_leaves_nothing(tmp_path, whole):
    writer = begin(tmp_path / "data")
    append(writer, 0)
    before = contents(tmp_path / "data")
    episode = make_arm_episode(LENGTHS[1], 1)

    def broken():
        yield from episode[TOP][:5]
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        writer.append({**episode, TOP: Frames(episode[TOP].shape, broken)}, "reach")
    assert contents(tmp_path / "data") == before and writer.episodes == 1
    append(writer, 1, 2)
    writer.finish()
    assert contents(tmp_path / "data") == contents(whole)


@pytest.mark.parametrize("written", [0, 1, 3])
def test_resuming_after_a_kill_gives_the_same_data_set(tmp_path, whole, written):
    append(begin(tmp_path / "data"), *range(written))
    (tmp_path / "data/.robostack/partial").mkdir()  # of the episode in flight
    (tmp_path / "data/.robostack/partial/data.parquet").write_bytes(b"half")
    writer = LeRobotWriter.resume(tmp_path / "data")
    assert writer.episodes == written and writer.features == ARM_FEATURES
    append(writer, *range(written, 3))
    writer.finish()
    assert contents(tmp_path / "data") == contents(whole)


@pytest.mark.parametrize("call", range(4))
@pytest.mark.parametrize("place", ["parquet_writer", "join_videos", "write_json"])
def test_a_kill_while_finishing_loses_nothing(tmp_path, whole, monkeypatch, place, call):
    append(writer := begin(tmp_path / "data"), 0, 1, 2)
    calls, real = itertools.count(), getattr(lerobot_assembly, place)

    def killed(*args):
        if next(calls) == call:
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(lerobot_assembly, place, killed)
        try:
            writer.finish()
        except KeyboardInterrupt:
            assert not (tmp_path / "data/meta/info.json").exists()
            (tmp_path / "data/data").mkdir(exist_ok=True)
            (tmp_path / "data/data/.half.partial").write_bytes(b"what a hard kill leaves beside")
            writer = LeRobotWriter.resume(tmp_path / "data")
    writer.finish()
    assert contents(tmp_path / "data") == contents(whole)


def test_a_killed_process_loses_the_episode_in_flight_alone(tmp_path, whole):
    program = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from support import make_arm_episode
from test_writer import TOP, append, begin
from robostack.datasets.episodes import Frames

def dying(frames):
    yield from frames[:5]
    os._exit(9)

append(writer := begin(Path(sys.argv[1])), 0)
episode = make_arm_episode(12, 1)
writer.append({**episode, TOP: Frames(episode[TOP].shape, lambda: dying(episode[TOP]))}, "reach")
"""
    tests = Path(__file__).parents[3]
    path = f"{tests.parent}:{tests}:{Path(__file__).parent}"
    killed = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "data"), str(tests)], env={"PYTHONPATH": path}
    )
    assert killed.returncode == 9
    writer = LeRobotWriter.resume(tmp_path / "data")
    assert writer.episodes == 1
    append(writer, 1, 2)
    writer.finish()
    assert contents(tmp_path / "data") == contents(whole)


def test_nothing_is_overwritten_and_the_finished_is_left_alone(tmp_path, whole):
    with pytest.raises(FileExistsError, match="already exists"):
        begin(whole)
    with pytest.raises(DataError, match="is finished: nothing to resume"):
        LeRobotWriter.resume(whole)
    with pytest.raises(DataError, match="no LeRobot data set that was being written"):
        LeRobotWriter.resume(tmp_path)
    with pytest.raises(DataError, match="has no episodes"):
        begin(tmp_path / "empty").finish()
    writer = begin(tmp_path / "data")
    append(writer, 0)
    writer.finish()
    writer.finish()
    with pytest.raises(DataError, match="is finished: nothing can be appended"):
        append(writer, 1)


# Files


def test_files_and_row_groups_begin_anew_at_their_limits(tmp_path, monkeypatch):
    monkeypatch.setattr(lerobot_assembly, "DATA_FILE", 1)
    monkeypatch.setattr(lerobot_assembly, "VIDEO_FILE", 1)
    monkeypatch.setattr(lerobot_assembly, "_EPISODES_A_ROW_GROUP", 1)
    monkeypatch.setattr(lerobot_writer, "ROW_GROUP", 2000)
    monkeypatch.setattr("robostack.datasets.formats.lerobot.layout.FILES_A_CHUNK", 2)
    names = [f"chunk-{name}" for name in ("000/file-000", "000/file-001", "001/file-000")]
    for images in ("video", "png"):
        files = contents(write(tmp_path / images, images=images))
        assert {f"data/{name}.parquet" for name in names} <= files.keys()
        assert {f"meta/episodes/{name}.parquet" for name in names} <= files.keys()
        assert {f"videos/{TOP}/{name}.mp4" for name in names} <= files.keys() or images == "png"
        assert_reads_back(tmp_path / images)
    import pyarrow.parquet as pq

    assert pq.ParquetFile(tmp_path / "png/data/chunk-000/file-001.parquet").num_row_groups > 1


def test_pictures_are_passed_one_at_a_time(tmp_path):
    alive, most = [0], [0]

    class Frame(np.ndarray):
        def __array_finalize__(self, parent):
            alive[0] += 1
            most[0] = max(most[0], alive[0])

        def __del__(self):
            alive[0] -= 1

    episode = make_arm_episode(40)
    for images in ("video", "png"):
        frames = Frames(episode[TOP].shape, lambda: (frame.copy().view(Frame) for frame in episode[TOP]))
        begin(tmp_path / images, images=images).append({**episode, TOP: frames}, "reach")
    assert 0 < most[0] < 12


# What does not fit


@pytest.mark.parametrize(
    ("features", "options", "message"),
    [
        ({"task_index": Feature((), "int64")}, {}, "cannot hold a feature called 'task_index'"),
        ({"a/b": Feature((), "int64")}, {}, "cannot hold a feature called 'a/b'"),
        ({"a": Feature((1, 1, 1, 1, 1, 2), "float32")}, {}, "of shape"),
        ({"timestamp": Feature((), "float64")}, {}, "timestamp: expected float32"),
        ({"top": Feature((33, 34, 3), "uint8")}, {"codec": "libsvtav1"}, r"even height and width, got \(33, 34\)"),
        ({"top": Feature((64, 16, 3), "uint8")}, {"codec": "libsvtav1"}, r"at least 32 pixels a side, got \(64, 16\)"),
        ({"a": Feature((), "int64")}, {"fps": 0.5}, "at least one frame a second"),
        ({"a": Feature((), "int64")}, {"fps": float("nan")}, "at least one frame a second"),
    ],
)
def test_what_lerobot_cannot_hold_is_refused_at_once(tmp_path, features, options, message):
    with pytest.raises(DataError, match=message):
        LeRobotWriter(tmp_path / "data", features, **{"fps": 25, **options})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("images", ["video", "png"])
@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (lambda f: f[:-1], "expected 9 frames, got 8"),
        (lambda f: np.concatenate([f, f[:1]]), "expected 9 frames of"),
        (lambda f: f[:, :-2], "expected a picture of 32×48×3, got 30×48×3"),
        (lambda f: f.astype(np.float32), "float32 as frame 0"),
    ],
)
def test_a_camera_that_breaks_its_word_is_refused(tmp_path, images, frames, message):
    episode = make_arm_episode(9)
    column = Frames(episode[TOP].shape, lambda: iter(frames(episode[TOP])), where=TOP)
    writer = begin(tmp_path / "data", images=images)
    before = contents(tmp_path / "data")
    with pytest.raises(DataError, match=f"{TOP}.*{message}"):
        writer.append({**episode, TOP: column}, "reach")
    assert contents(tmp_path / "data") == before


def test_timestamps_are_kept_and_must_be_at_the_rate_of_a_video(tmp_path):
    features = {**ARM_FEATURES, "timestamp": Feature((), "float32")}
    times = (np.arange(9) / 25 + 0.01 * (np.arange(9) % 2)).astype(np.float32)
    episode = {**make_arm_episode(9), "timestamp": times}
    with pytest.raises(DataError, match="is off the rate of 25"):
        LeRobotWriter(tmp_path / "video", features, fps=25).append(episode, "reach")
    writer = LeRobotWriter(tmp_path / "png", features, fps=25, images="png")
    writer.append(episode, "reach")
    writer.finish()
    assert np.array_equal(LeRobotReader(tmp_path / "png").read_episode(0).columns["timestamp"], times)


def test_tasks_are_numbered_as_they_come(whole):
    import pyarrow.parquet as pq

    tasks = pq.ParquetFile(whole / "meta/tasks.parquet").read().to_pydict()
    assert tasks == {"task_index": [0, 1, 2, 3], "task": ["reach", "grasp 0", "grasp 1", "grasp 2"]}
    assert json.loads((whole / "meta/info.json").read_text())["total_tasks"] == 4


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3)])
def test_statistics_of_blocks_are_those_of_the_whole(shape: tuple[int, ...]) -> None:
    rows = np.random.default_rng(0).normal(size=(40, *shape)).astype(np.float32)
    whole, blocks = of_numbers([rows]), of_numbers([rows[:7], rows[7:8], rows[8:]])
    assert whole.keys() == blocks.keys() and whole["count"] == blocks["count"] == [40]
    for key in whole:
        np.testing.assert_allclose(blocks[key], whole[key], rtol=1e-12)


def test_settings_survive_the_disk(tmp_path):
    writer = begin(tmp_path / "data", images="png")
    assert LeRobotWriter.resume(tmp_path / "data")._settings == writer._settings
    assert isinstance(writer._settings, lerobot_settings.Settings)


# What LeRobot does not know


def test_shapes_units_and_names_come_back(tmp_path):
    features = {
        "observation.state": Feature((3,), "float32", ("a", "b", "c"), ("rad", "rad", "m")),
        "action": Feature((2,), "float32", ("x", "y"), ("rad", "m")),
        "next.reward": Feature((), "float32"),
        "next.success": Feature((), "bool"),
        "force": Feature((1,), "float32", ("grip",), ("N",)),
        "keypoints": Feature((2, 2), "float32", ("ax", "ay", "bx", "by"), ("m",) * 4),
    }
    rng = np.random.default_rng(0)
    episode = {key: rng.normal(size=(7, *f.shape)).astype(f.dtype) for key, f in features.items()}
    writer = LeRobotWriter(tmp_path / "data", features, fps=50)
    writer.append(episode, "reach")
    writer.finish()
    reader = LeRobotReader(tmp_path / "data")
    assert reader.features == features
    read = reader.read_episode(0).columns
    assert all(np.array_equal(read[key], rows) and read[key].shape == rows.shape for key, rows in episode.items())


@pytest.mark.parametrize(
    "text", ["", "[]", '{"features": 3}', '{"features": {"action": {"shape": [5], "units": "x"}}}']
)
def test_what_robostack_kept_beside_is_dropped_where_it_does_not_fit(whole, tmp_path, text):
    path = shutil.copytree(whole, tmp_path / "data")
    (path / "robostack.json").write_text(text)
    assert LeRobotReader(path).features == ARM_FEATURES


def test_a_round_trip_through_lerobot_changes_nothing(tmp_path):
    from robostack.datasets.formats import open_reader
    from robostack.datasets.formats.convert import ConvertConfig, convert
    from robostack.datasets.store import EpisodeWriter

    features = {
        "action": Feature((2,), "float32", ("x", "y"), ("rad", "m")),
        "next.reward": Feature((), "float32"),
        "observation.images.depth": Feature((6, 5, 1), "uint16", (), ("mm",)),
        TOP: Feature((32, 48, 3), "uint8"),
    }
    rng = np.random.default_rng(0)
    writer = EpisodeWriter(tmp_path / "ours", features, 50.0, {"seeds": [3, 4]}, "arm")
    for seed in range(2):
        writer.append(
            {
                "action": rng.normal(size=(9, 2)).astype(np.float32),
                "next.reward": rng.random(9, np.float32),
                "observation.images.depth": rng.integers(0, 65536, (9, 6, 5, 1)).astype(np.uint16),
                TOP: make_arm_episode(9, seed)[TOP],
            },
            "reach",
        )
    writer.finish()
    convert(ConvertConfig(tmp_path / "ours", tmp_path / "theirs", to="lerobot", images="png"))
    convert(ConvertConfig(tmp_path / "theirs", tmp_path / "back"))
    one, other = open_reader(tmp_path / "ours"), open_reader(tmp_path / "back")
    assert other.features == one.features and (other.fps, other.robot) == (50.0, "arm")
    assert other.provenance["seeds"] == [3, 4]
    for index in range(2):
        before, after = one.read_episode(index).columns, other.read_episode(index).columns
        assert all(np.array_equal(np.stack(list(before[key])), np.stack(list(after[key]))) for key in features)
