"""LeRobot data sets as people have them: each of these kinds is read, or told in one line, and blocks nothing else."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from old_lerobot import TOP, camera, encoded, number_of, numbers, write_bars, write_old

from robostack.datasets.episodes import DataError, Feature, FeatureError, Frames
from robostack.datasets.formats import open_reader
from robostack.datasets.formats.convert import ConvertConfig, convert
from robostack.datasets.formats.lerobot.features import flat_names, read_source
from robostack.datasets.formats.lerobot.reader import LeRobotReader

# Texts of meta/


@pytest.mark.parametrize(
    ("text", "task"),
    [
        ('\ufeff{"task_index": 0, "task": "pick"}\n', "pick"),
        ('{"task_index": 0, "task": "pick"}\r\n', "pick"),
        ('{\n "task_index": 0,\n "task": "pick"\n}\n', "pick"),
        ('{"task_index": 0, "task": "pick\u2028and place"}\n', "pick\u2028and place"),
        ('{"task_index": 0, "task": "pick\x85 it"}\n', "pick\x85 it"),
        ('{"task_index": "0", "task": "抓取 🧊"}', "抓取 🧊"),
        ('{"task_index": 0.0, "task": ""}\n\n{"task_index": 0, "task": ""}\n', ""),
    ],
)
def test_tasks_are_read_as_people_write_them(tmp_path, text, task):
    reader = LeRobotReader(write_old(tmp_path / "data", texts={"tasks.jsonl": text}))
    assert set(reader.read_episode(0).task) == {task} and reader.remarks == ()


def test_a_task_with_two_texts_costs_the_episodes_that_have_it(tmp_path):
    text = '{"task_index": 0, "task": "pick"}\n{"task_index": 1, "task": "a"}\n{"task_index": 1, "task": "b"}\n'
    path = write_old(tmp_path / "data", columns=lambda e, n: {"task_index": np.full(n, e)}, texts={"tasks.jsonl": text})
    reader = LeRobotReader(path)
    assert reader.remarks == ("meta/tasks lists task 1 twice, as 'a' and as 'b'",)
    assert reader.read_episode(0).task[0] == "pick"
    with pytest.raises(DataError, match="episode 1: its task 1 is listed in meta/tasks as 'a' and as 'b'"):
        reader.read_episode(1)


@pytest.mark.parametrize(
    "changes", [{"fps": "10"}, {"total_episodes": 2.0}, {"chunks_size": "1000"}, {"robot_type": "unknown"}]
)
def test_numbers_in_meta_may_be_written_otherwise(tmp_path, changes):
    reader = LeRobotReader(write_old(tmp_path / "data", info=changes))
    assert (reader.fps, reader.episodes, reader.remarks) == (10.0, 2, ())
    assert reader.robot == (None if "robot_type" in changes else "arm")
    reader.read_episode(1)


@pytest.mark.parametrize("odd", [None, [], {}, "x", -1, 1e400, float("nan"), True, "9" * 400, [[]], 10**30])
@pytest.mark.parametrize("name", ["fps", "chunks_size", "total_episodes", "features", "codebase_version", "data_path"])
def test_wrong_kinds_in_info_are_one_line(tmp_path, name, odd):
    path = write_old(tmp_path / "data", info={name: odd})
    try:
        LeRobotReader(path).read_episode(0)
    except DataError as error:
        assert "\n" not in str(error) and str(path) in str(error) and len(str(error)) < 600


@pytest.mark.parametrize(
    "odd", [None, [], "x", 3, {"dtype": []}, {"dtype": "float32"}, {"dtype": "float32", "shape": "x"}]
)
def test_a_feature_described_oddly_is_left_out_alone(tmp_path, odd):
    reader = LeRobotReader(write_old(tmp_path / "data", {"odd": odd}))
    assert list(reader.left_out) == ["odd"] and "\n" not in reader.left_out["odd"]
    assert set(reader.read_episode(0).columns) == {"observation.state", "action"}


@pytest.mark.parametrize(
    "line", ["[]", "3", '"x"', "null", '{"length": 8}', '{"episode_index": {}, "length": 8}', "{", "[" * 5000]
)
def test_wrong_kinds_in_the_table_of_episodes_are_one_line(tmp_path, line):
    path = write_old(tmp_path / "data", texts={"episodes.jsonl": line})
    with pytest.raises(DataError, match="meta cannot be read") as told:
        LeRobotReader(path)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("length", ["{}", "null", '"many"', "-1", "1e400", "8.5"])
def test_an_episode_of_impossible_length_costs_itself_alone(tmp_path, length):
    text = f'{{"episode_index": 0, "length": {length}}}\n{{"episode_index": 1, "length": 8}}\n'
    reader = LeRobotReader(write_old(tmp_path / "data", texts={"episodes.jsonl": text}))
    with pytest.raises(
        DataError, match=r"episode 0: its entry in meta/episodes.jsonl is damaged: its length: expected"
    ):
        reader.read_episode(0)
    assert len(reader.read_episode(1).columns["action"]) == 8


# Episodes that are missing


def test_episodes_keep_their_numbers(tmp_path):
    reader = LeRobotReader(write_old(tmp_path / "data", episodes=(0, 2, 3), length=lambda e: 5 + e))
    assert [reader.length(episode) for episode in range(reader.episodes)] == [5, 7, 8]
    assert reader.remarks == ("no such episode: 1; the others are counted without it",)
    assert len(reader.read_episode(2).columns["action"]) == 8
    (reader.path / "data/chunk-000/episode_000003.parquet").unlink()
    with pytest.raises(DataError, match=r"episode_000003.parquet, episode 2 \(number 3 in meta/\): .*No such file"):
        LeRobotReader(reader.path).read_episode(2)


def test_an_episode_without_frames_leaves_itself_out(tmp_path):
    reader = LeRobotReader(write_old(tmp_path / "data", episodes=(0, 1, 2), length=lambda e: 0 if e == 1 else 6))
    assert reader.remarks == ("without frames, and left out: episode 1",)
    assert reader.episodes == 2 and [len(reader.read_episode(i).task) for i in (0, 1)] == [6, 6]


def test_fewer_episodes_than_info_says_is_a_line(tmp_path):
    reader = LeRobotReader(write_old(tmp_path / "data", info={"total_episodes": 5}))
    assert reader.episodes == 2 and "says 5 episodes, the table of episodes has 2" in reader.remarks[0]


def test_a_set_without_any_frames_is_refused(tmp_path):
    with pytest.raises(DataError, match="has no episodes with frames"):
        LeRobotReader(write_old(tmp_path / "data", length=lambda e: 0))


# Names


@pytest.mark.parametrize(
    ("names", "flat"),
    [
        (["a", "b"], ["a", "b"]),
        ({"motors": ["a", "b"]}, ["a", "b"]),
        ({"left": ["waist", "grip"], "right": ["waist"]}, ["left.waist", "left.grip", "right.waist"]),
        ({"b": 1, "a": 0}, ["a", "b"]),
        ({"arm": {"left": ["x"], "right": ["x"]}}, ["left.x", "right.x"]),
        ([["a", "b"], ["c"]], ["a", "b", "c"]),
        ([0, 1.5], ["0", "1.5"]),
        (None, []),
        ("height", ["height"]),
        (True, []),
    ],
)
def test_names_in_every_form(names, flat):
    assert flat_names(names) == flat


def test_names_that_repeat_or_do_not_fit(tmp_path):
    wrong = numbers("float32", [3], ["a", "b"])
    twice = numbers("float32", [3], {"axes": ["j", "j", "g"]})
    reader = LeRobotReader(write_old(tmp_path / "data", {"action": wrong, "observation.state": twice}))
    assert reader.features["observation.state"].names == ("j#1", "j#2", "g")
    assert reader.features["action"].names == ()
    assert reader.remarks == ("action has 2 names for 3 entries: its names are left out",)


def test_names_of_a_matrix_are_of_its_entries_or_of_its_axes(tmp_path):
    keypoints = {"a": numbers("float32", [2, 2], ["ax", "ay", "bx", "by"]), "b": numbers("float32", [2, 2], ["p", "x"])}
    rows = [[[1.0, 2.0], [3.0, 4.0]]] * 8
    reader = LeRobotReader(write_old(tmp_path / "data", keypoints, lambda e, n: {"a": rows, "b": rows}))
    assert [reader.features[key].names for key in "ab"] == [("ax", "ay", "bx", "by"), ()] and reader.remarks == ()


# One odd feature


@pytest.mark.parametrize(
    ("described", "column"),
    [
        (numbers("float32", [3]), [[np.nan] * 3] * 8),
        (numbers("float32", [1]), [None, 1.0] * 4),
        (numbers("float32", [3]), [[1.0, 2.0, 3.0]] * 7 + [[1.0]]),
        (numbers("float32", [3]), [[1.0, 2.0, 3.0]] * 7 + [None]),
        (numbers("float32", [1]), ["x"] * 8),
        (numbers("int64", [1]), [1.5] * 8),
        (numbers("float32", [4]), [[1.0, 2.0]] * 8),
        (numbers("float32", [1]), [np.nan] * 8),
        (numbers("float32", [1]), None),
        (numbers("float32", [1]), [{"a": 1.0}] * 8),
        (camera(), [[1, 2, 3]] * 8),
        (camera(), None),
    ],
)
def test_one_odd_feature_is_left_out_and_blocks_nothing(tmp_path, described, column):
    path = write_old(tmp_path / "data", {"odd": described}, lambda e, n: {"odd": column})
    converted = convert(ConvertConfig(path, tmp_path / "out"))
    assert converted.episodes == 2
    assert len(converted.left_out_features) == 1, converted.left_out_features
    for key in ("observation.state", "action") if described["dtype"] != "image" else ():
        with pytest.raises(DataError):
            wrong = write_old(tmp_path / f"strict {key}", {key: described}, lambda e, n, key=key: {key: column})
            convert(ConvertConfig(wrong, tmp_path / "never"))


def test_a_reward_that_is_missing_in_the_last_frame_is_left_out(tmp_path):
    rewards = np.r_[np.zeros(7), np.nan].astype(np.float32)
    path = write_old(tmp_path / "data", {"next.reward": numbers("float32", [1])}, lambda e, n: {"next.reward": rewards})
    assert list(convert(ConvertConfig(path, tmp_path / "out")).left_out_features) == ["next.reward"]


def test_columns_that_are_not_declared_are_ignored(tmp_path):
    path = write_old(tmp_path / "data", columns=lambda e, n: {"next.note": ["x"] * n, "deep": [{"a": [1]}] * n})
    assert set(LeRobotReader(path).read_episode(0).columns) == {"observation.state", "action"}


# Pictures


def colours(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize(
    ("described", "cell", "expected"),
    [
        (camera(), lambda p: encoded(p), lambda p: p),
        (camera(), lambda p: encoded(p, mode="L"), None),
        (camera(), lambda p: encoded(np.dstack([p, p[..., :1]])), lambda p: p),
        (camera(), lambda p: encoded(p, mode="P"), None),
        (camera(), lambda p: encoded(p, form="BMP"), lambda p: p),
        (camera(), lambda p: encoded(p)["bytes"], lambda p: p),
        (camera((16, 20, 1)), lambda p: encoded(p[..., 0]), lambda p: np.repeat(p[..., :1], 3, 2)),
        (camera((16, 20), ["height", "width"]), lambda p: encoded(p[..., 0]), lambda p: np.repeat(p[..., :1], 3, 2)),
        (camera((3, 16, 20), ["c", "h", "w"]), lambda p: encoded(p), lambda p: p),
        (camera((3, 16, 20), ["rgb", "height", "width"]), lambda p: encoded(p), lambda p: p),
        (camera((3, 16, 20), None), lambda p: encoded(p), lambda p: p),
        (camera((480, 640, 3)), lambda p: encoded(p), lambda p: p),
        (numbers("uint8", (16, 20, 3)), lambda p: p.tolist(), lambda p: p),
        (numbers("uint8", (3, 16, 20)), lambda p: p.transpose(2, 0, 1).tolist(), lambda p: p),
        (numbers("uint8", (16, 20, 4), ["h", "w", "rgba"]), lambda p: np.dstack([p, p[..., :1]]).tolist(), lambda p: p),
        (numbers("uint8", (16, 20)), lambda p: p[..., 0].tolist(), lambda p: np.repeat(p[..., :1], 3, 2)),
        (numbers("float32", (16, 20, 3)), lambda p: (p / 255).tolist(), lambda p: p),
        (numbers("float64", (3, 16, 20)), lambda p: p.transpose(2, 0, 1).astype(float).tolist(), lambda p: p),
    ],
)
def test_pictures_in_every_form_become_rgb(tmp_path, described, cell, expected):
    frames = colours((8, 16, 20, 3))
    path = write_old(tmp_path / "data", {TOP: described}, lambda e, n: {TOP: [cell(frame) for frame in frames]})
    reader = LeRobotReader(path)
    assert reader.features[TOP] == Feature((16, 20, 3), "uint8")
    column = reader.read_episode(0).columns[TOP]
    assert isinstance(column, Frames) and column.shape == (8, 16, 20, 3)
    read = np.stack(list(column))
    assert read.dtype == np.uint8
    if expected is not None:
        assert np.array_equal(read, np.stack([expected(frame) for frame in frames]))
    assert convert(ConvertConfig(path, tmp_path / "out")).left_out_features == {}


def test_a_size_that_is_not_what_info_says_is_told(tmp_path):
    path = write_old(
        tmp_path / "data", {TOP: camera((480, 640, 3))}, lambda e, n: {TOP: [encoded(colours((16, 20, 3)))] * n}
    )
    assert LeRobotReader(path).remarks == (f"{TOP} is said to have frames of 480×640 and has some of 16×20",)


def test_other_sizes_in_one_set_are_resized_when_asked_for(tmp_path):
    def pictures(episode: int, length: int) -> dict[str, Any]:
        return {TOP: [encoded(colours((16 + 8 * episode, 20, 3)))] * length}

    path = write_old(tmp_path / "data", {TOP: camera()}, pictures)
    camera_of = LeRobotReader(path).read_episode(1).columns[TOP]
    with pytest.raises(
        DataError, match=r"episode 1: .*, frame 0: expected a picture of 16×20×3, got 24×20×3: --resize"
    ):
        list(camera_of)
    done = convert(ConvertConfig(path, tmp_path / "out", resize="12x10"))
    assert done.episodes == 2 and done.left_out_features == {}
    assert open_reader(tmp_path / "out").features[TOP].shape == (12, 10, 3)


@pytest.mark.parametrize("key", ["observation.touch", "camera_pose", "observation.extrinsics"])
def test_arrays_that_are_no_pictures_stay_numbers(tmp_path, key):
    described = numbers("float32", (4, 4))
    path = write_old(tmp_path / "data", {key: described}, lambda e, n: {key: [np.eye(4).tolist()] * n})
    assert LeRobotReader(path).features[key] == Feature((4, 4), "float32")


def deep(low: int = 300, high: int = 3000) -> np.ndarray:
    return np.random.default_rng(1).integers(low, high, (8, 16, 20)).astype(np.uint16)


@pytest.mark.parametrize(
    ("described", "cell", "unit"),
    [
        (camera((16, 20, 1), info={"is_depth_map": True, "depth_unit": "mm"}), lambda d: encoded(d, "TIFF"), "mm"),
        (camera((16, 20, 1), info={"video.is_depth_map": True}), lambda d: encoded(d), "mm"),
        (camera((16, 20, 1), info={"is_depth_map": True, "depth_unit": "um"}), lambda d: encoded(d), "um"),
        (
            camera((16, 20, 1), info={"is_depth_map": True, "depth_unit": "m"}),
            lambda d: encoded((d / 1000).astype(np.float32), "TIFF"),
            "mm",
        ),
        (camera((16, 20, 1)), lambda d: encoded(d), "mm"),
        (numbers("uint16", (16, 20, 1)), lambda d: d[..., None].tolist(), "mm"),
    ],
)
def test_depth_stays_depth_with_its_unit(tmp_path, described, cell, unit):
    depth, key = deep(), "observation.images.depth"
    path = write_old(tmp_path / "data", {key: described}, lambda e, n: {key: [cell(frame) for frame in depth]})
    reader = LeRobotReader(path)
    assert reader.features[key] == Feature((16, 20, 1), "uint16", (), (unit,))
    column = reader.read_episode(0).columns[key]
    assert isinstance(column, Frames) and column.dtype == np.uint16
    assert np.array_equal(np.stack(list(column))[..., 0], depth)
    assert convert(ConvertConfig(path, tmp_path / "out")).left_out_features == {}
    assert open_reader(tmp_path / "out").features[key].units == (unit,)


@pytest.mark.parametrize(
    "key",
    [
        "observation.images.rgb.left_wrist",
        "observation.images.left/wrist",
        "observation.images.left wrist",
        "observation.images.type",
        "observation.top_image",
        "image",
        "左",
    ],
)
def test_cameras_and_features_may_have_any_name(tmp_path, key):
    def columns(episode: int, length: int) -> dict[str, Any]:
        return {key: [encoded(colours((16, 20, 3)))] * length, f"{key}.force": np.zeros(length, np.float32)}

    path = write_old(tmp_path / "data", {key: camera(), f"{key}.force": numbers("float32", [1])}, columns)
    done = convert(ConvertConfig(path, tmp_path / "out"))
    assert done.left_out_features == {} and len(open_reader(tmp_path / "out").features) == 4


# Time

BEAT = np.arange(8) / 10


@pytest.mark.parametrize(
    "moments",
    [
        BEAT,
        BEAT + 0.04,
        BEAT + 0.002 * (np.arange(8) % 3),
        BEAT * 1.005,
        BEAT * 0.995,
        BEAT + 0.02 * np.sin(np.arange(8)) + 0.02,
        np.arange(11) / 10,
    ],
    ids=["exact", "late", "jitter", "slow", "quick", "wandering", "longer"],
)
def test_a_frame_within_half_a_period_is_the_frame(tmp_path, moments):
    path = write_old(tmp_path / "data", video=lambda file, episode: write_bars(file, moments.tolist(), 10 * episode))
    for episode in range(2):
        camera_of = LeRobotReader(path).read_episode(episode).columns[TOP]
        assert isinstance(camera_of, Frames)
        camera_of.check()
        assert [number_of(frame) for frame in camera_of] == list(range(10 * episode, 10 * episode + 8))
    assert convert(ConvertConfig(path, tmp_path / "out")).episodes == 2


def test_a_video_of_more_frames_a_second_gives_those_that_are_due(tmp_path):
    path = write_old(tmp_path / "data", video=lambda file, episode: write_bars(file, [i / 30 for i in range(24)]))
    column = LeRobotReader(path).read_episode(0).columns[TOP]
    assert [number_of(frame) for frame in column] == list(range(0, 24, 3))


def test_timestamps_of_hardware_find_their_frames(tmp_path):
    path = write_old(
        tmp_path / "data",
        times=lambda beat: beat + 0.02 * np.sin(np.arange(len(beat))),
        video=lambda file, episode: write_bars(file, BEAT.tolist()),
    )
    reader = LeRobotReader(path)
    assert "timestamp" in reader.features  # they say more than the rate
    assert [number_of(frame) for frame in reader.read_episode(0).columns[TOP]] == list(range(8))


@pytest.mark.parametrize(
    ("start", "moments", "first"), [(0.5, np.arange(13) / 10, 5), (7.3, BEAT, 0)], ids=["LeRobot's rule", "one clock"]
)
def test_timestamps_that_start_late(tmp_path, start, moments, first):
    path = write_old(
        tmp_path / "data",
        times=lambda beat: beat + start,
        video=lambda file, episode: write_bars(file, moments.tolist()),
    )
    read = [number_of(frame) for frame in LeRobotReader(path).read_episode(0).columns[TOP]]
    assert read == list(range(first, first + 8))


@pytest.mark.parametrize(
    "video",
    [
        lambda file: write_bars(file, [*BEAT[:3], *BEAT[4:]]),
        lambda file: write_bars(file, BEAT[:7].tolist()),
        lambda file: write_bars(file, (BEAT * 1.1).tolist()),
        lambda file: write_bars(file, (BEAT + 0.06).tolist()),
        lambda file: None,
        lambda file: file.write_bytes(b""),
        lambda file: file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
        lambda file: file.mkdir(),
        lambda file: file.write_bytes(b"no video" * 99),
        lambda file: shutil.copy(Path(__file__).parents[1] / "damaged.mp4", file),  # which PyAV alone would die of
    ],
    ids=[
        *("dropped frame", "shorter", "other rate", "too late", "missing", "empty", "LFS pointer", "folder", "noise"),
        "without a codec",
    ],
)
def test_a_video_that_does_not_fit_is_named_and_the_rest_converts(tmp_path, video):
    path = write_old(
        tmp_path / "data", video=lambda file, episode: video(file) if episode else write_bars(file, BEAT.tolist())
    )
    with pytest.raises(DataError, match="episode 1: ") as told:
        convert(ConvertConfig(path, tmp_path / "out"))
    assert "\n" not in str(told.value) and str(path) in str(told.value)
    done = convert(ConvertConfig(path, tmp_path / "out", skip_damaged=True))
    assert done.episodes == 1 and list(done.left_out) == [1]


def test_timestamps_of_another_rate_are_refused(tmp_path):
    path = write_old(tmp_path / "data", fps=30, length=lambda e: 60, times=lambda beat: beat * 30 / 50)
    with pytest.raises(DataError, match="episode 0: the timestamps do not keep 30 frames a second"):
        LeRobotReader(path).read_episode(0)
    with pytest.raises(DataError, match="do not keep 30 frames a second"):
        convert(ConvertConfig(path, tmp_path / "out"))


@pytest.mark.parametrize(
    ("times", "why"),
    [
        (lambda beat: beat + 1.75e9, r"cannot tell frames apart: float32 of 1\.75e\+09 s"),
        (lambda beat: np.where(beat > 0.3, np.nan, beat), "is not finite"),
    ],
)
def test_timestamps_that_say_nothing_are_left_out(tmp_path, times, why):
    path = write_old(tmp_path / "data", times=times, video=lambda file, episode: write_bars(file, BEAT.tolist()))
    reader = LeRobotReader(path)
    assert "timestamp" not in reader.features
    assert re.match(why, reader.left_out["timestamp"]) and reader.left_out["timestamp"].endswith("by the rate instead")
    assert [number_of(frame) for frame in reader.read_episode(0).columns[TOP]] == list(range(8))


def test_timestamps_are_a_feature_where_one_episode_is_off(tmp_path):
    path = write_old(tmp_path / "data", columns=lambda e, n: {"timestamp": (BEAT + 0.02 * e).astype(np.float32)})
    reader = LeRobotReader(path)
    assert np.allclose(reader.read_episode(1).columns["timestamp"], BEAT + 0.02)
    even = LeRobotReader(write_old(tmp_path / "even"))
    assert "timestamp" not in even.features and "timestamp" not in even.left_out


def test_a_feature_error_names_the_file_and_the_episode(tmp_path):
    path = write_old(tmp_path / "data", {"odd": numbers("float32", [1])}, lambda e, n: {"odd": pa.array(["x"] * n)})
    with pytest.raises(FeatureError, match=r"episode_000001.parquet, episode 1: odd is not as declared") as told:
        LeRobotReader(path).read_episode(1)
    assert told.value.feature == "odd"


def test_info_of_a_camera_may_be_anything():
    for info in (None, [], "x", {"is_depth_map": "no"}, {"depth_unit": []}):
        source = read_source(TOP, {"dtype": "image", "shape": [16, 20, 3], "info": info})
        assert source.feature.is_camera


def test_what_is_huge_in_meta_is_refused(tmp_path: Path, monkeypatch):
    path = write_old(tmp_path / "data")
    monkeypatch.setattr("robostack.datasets.formats.lerobot.places.MOST_EPISODES", 1)
    with pytest.raises(DataError, match="has 2 episodes, expected at most 1"):
        LeRobotReader(path)
    (path / "meta/info.json").write_text(json.dumps({"features": {}}))
    with pytest.raises(DataError, match=r"info.json cannot be read"):
        LeRobotReader(path)
