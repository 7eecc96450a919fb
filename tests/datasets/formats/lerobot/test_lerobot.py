"""Held against LeRobot 0.6.1 itself: what either writes, the other reads, frame by frame."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import ARM_FEATURES, arm_tasks, make_arm_episode

os.environ["HF_HUB_OFFLINE"] = "1"  # before LeRobot is imported
pytest.importorskip("lerobot")

from lerobot.datasets.aggregate import aggregate_datasets
from lerobot.datasets.compute_stats import auto_downsample_height_width, sample_indices
from lerobot.datasets.depth_utils import dequantize_depth
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.scripts.convert_dataset_v21_to_v30 import convert_dataset

from robostack.datasets.episodes import BOOKKEEPING, DataError, Feature, Frames
from robostack.datasets.formats.lerobot.features import DepthCodes
from robostack.datasets.formats.lerobot.reader import LeRobotReader
from robostack.datasets.formats.lerobot.statistics import PictureStatistics, sampled
from robostack.datasets.formats.lerobot.writer import LeRobotWriter
from robostack.datasets.formats.video import _decoded, frames_at, write_video

LENGTHS = (9, 12, 7)
TOP = "observation.images.top"
CHUNK = 5


NO_MATRIX = {key: feature for key, feature in ARM_FEATURES.items() if key != "forces"}


def write(path: Path, features: dict[str, Feature] = ARM_FEATURES, fps: float = 25, **options) -> Path:
    writer = LeRobotWriter(path, features, fps=fps, robot="arm", **options)
    for seed, length in enumerate(LENGTHS):
        episode = make_arm_episode(length, seed)
        writer.append({key: episode[key] for key in features}, arm_tasks(length, seed))
    writer.finish()
    return path


def write_with_lerobot(path: Path, images: str, features: dict[str, Feature] = ARM_FEATURES) -> Path:
    described = {}
    for key, feature in features.items():
        names = list(feature.names) or None
        described[key] = {"dtype": feature.dtype, "shape": feature.shape, "names": names}
        if feature.is_image:
            described[key] |= {"dtype": images, "names": ["height", "width", "channels"]}
    data = LeRobotDataset.create("a/b", 25, described, root=path, robot_type="arm", use_videos=images == "video")
    for seed, length in enumerate(LENGTHS):
        episode, texts = make_arm_episode(length, seed), arm_tasks(length, seed)
        for i in range(length):
            data.add_frame({**{key: episode[key][i] for key in features}, "task": texts[i]})
        data.save_episode()
    data.finalize()
    return path


@pytest.fixture(scope="module")
def by_lerobot(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("lerobot")
    return {images: write_with_lerobot(folder / images, images) for images in ("image", "video")}


def items(path: Path, **options) -> list[dict]:
    data = LeRobotDataset("a/b", root=path, **options)
    return [{key: np.asarray(value) for key, value in data[i].items()} for i in range(len(data))]


def picture(frame: np.ndarray) -> np.ndarray:
    """A frame as LeRobot gives it."""
    return (frame.transpose(2, 0, 1).astype(np.float32) / 255).astype(np.float32)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"images": "png"}, 0),
        ({"codec": "libx264rgb", "fps": 12.5}, 0),
        ({"codec": "libx264", "fps": 29.97}, 6),
        ({"codec": "libsvtav1"}, 6),
    ],
)
def test_lerobot_reads_what_robostack_writes(tmp_path, options, error):
    path, fps = write(tmp_path / "data", **options), options.get("fps", 25)
    deltas = {"action": [i / fps for i in range(CHUNK)], TOP: [-1 / fps, 0.0]}
    read, ours, first = items(path, delta_timestamps=deltas), LeRobotReader(path), 0
    assert len(read) == sum(LENGTHS)
    for seed, length in enumerate(LENGTHS):
        episode, texts = make_arm_episode(length, seed), arm_tasks(length, seed)
        frames: list[np.ndarray] = list(ours.read_episode(seed).columns[TOP])
        assert np.abs(np.stack(frames).astype(float) - episode[TOP]).mean() <= error
        for i, item in enumerate(read[first : first + length]):
            assert np.array_equal(item["observation.state"], episode["observation.state"][i])
            assert np.array_equal(item["next.reward"], episode["next.reward"][i, 0])
            assert np.array_equal(item["next.done"], episode["next.done"][i, 0])
            assert np.array_equal(item["forces"], episode["forces"][i].astype(np.float32))  # so LeRobot gives it
            ahead = i + np.arange(CHUNK)
            assert np.array_equal(item["action"], episode["action"][np.minimum(ahead, length - 1)])
            assert np.array_equal(item["action_is_pad"], ahead >= length)
            assert np.array_equal(item[TOP][0], picture(frames[max(i - 1, 0)]))
            assert np.array_equal(item[TOP][1], picture(frames[i]))
            assert item["timestamp"] == np.float32(i / fps) and item["task"] == texts[i]
            indices = [int(item[key]) for key in ("frame_index", "episode_index", "index")]
            assert indices == [i, seed, first + i]
        first += length


@pytest.mark.parametrize("images", ["image", "video"])
def test_robostack_reads_what_lerobot_writes(by_lerobot, images):
    reader, read, first = LeRobotReader(by_lerobot[images]), items(by_lerobot[images]), 0
    assert (reader.format, reader.fps, reader.robot, reader.episodes) == ("LeRobot v3.0", 25, "arm", 3)
    assert reader.features == ARM_FEATURES  # timestamps say no more than the rate
    for seed, length in enumerate(LENGTHS):
        episode, written = reader.read_episode(seed), make_arm_episode(length, seed)
        assert episode.task == arm_tasks(length, seed) and reader.length(seed) == length
        camera = episode.columns[TOP]
        assert isinstance(camera, Frames)
        camera.check()
        frames = list(camera)
        for key, rows in written.items():
            if key != TOP or images == "image":
                assert np.array_equal(np.stack(list(episode.columns[key])), rows)
        for i in range(length):
            assert np.array_equal(picture(frames[i]), read[first + i][TOP])
        first += length


def test_from_lerobot_to_lerobot_nothing_changes(by_lerobot, tmp_path):
    reader = LeRobotReader(by_lerobot["image"])
    writer = LeRobotWriter(tmp_path / "data", reader.features, reader.fps, reader.robot, images="png")
    for index in range(reader.episodes):
        episode = reader.read_episode(index)
        writer.append(episode.columns, episode.task)
    writer.finish()
    before, after = items(by_lerobot["image"]), items(tmp_path / "data")
    for one, other in zip(before, after, strict=True):
        assert one.keys() == other.keys()
        # Which task has which number is LeRobot's whim: it goes through a set.
        assert all(np.array_equal(one[key], other[key]) for key in one if key != "task_index")


def kind(column: pa.DataType) -> str:
    return str(column.storage_type if isinstance(column, pa.BaseExtensionType) else column).replace("item", "element")


@pytest.mark.parametrize("images", ["image", "video"])
def test_metadata_and_statistics_are_what_lerobot_writes(by_lerobot, tmp_path, images):
    theirs, ours = by_lerobot[images], write(tmp_path / "data", images={"image": "png", "video": "video"}[images])
    info = {path: json.loads((path / "meta/info.json").read_text()) for path in (theirs, ours)}
    assert info[ours] == info[theirs]
    for table in ("data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet", "meta/tasks.parquet"):
        schemas = [pq.ParquetFile(path / table).schema_arrow for path in (theirs, ours)]
        types = [{field.name: kind(field.type) for field in schema} for schema in schemas]
        assert types[1] == types[0]
        assert (schemas[1].metadata or {}).keys() == (schemas[0].metadata or {}).keys()
        groups = [pq.ParquetFile(path / table).num_row_groups for path in (theirs, ours)]
        assert groups[0] == groups[1]
    stats = {path: json.loads((path / "meta/stats.json").read_text()) for path in (theirs, ours)}
    assert stats[ours].keys() == stats[theirs].keys()
    for key, found in stats[ours].items():
        assert found.keys() == stats[theirs][key].keys()
        for name, value in found.items():
            value, expected = np.array(value), np.array(stats[theirs][key][name])
            assert value.shape == expected.shape
            if name in ("min", "max", "mean", "std", "count") and key != "task_index":
                np.testing.assert_allclose(value, expected, rtol=2e-3 if key == TOP else 1e-4, atol=1e-6)
    rows = np.concatenate([make_arm_episode(length, seed)["action"] for seed, length in enumerate(LENGTHS)])
    pixels = np.concatenate([make_arm_episode(length, seed)[TOP] for seed, length in enumerate(LENGTHS)]) / 255
    for name, part in {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}.items():
        np.testing.assert_allclose(
            stats[ours]["action"][name], np.quantile(rows.astype(float), part, axis=0), rtol=1e-12
        )
        exact = np.quantile(pixels, part, axis=(0, 1, 2), method="inverted_cdf")
        np.testing.assert_allclose(np.ravel(stats[ours][TOP][name]), exact, rtol=1e-12)
    np.testing.assert_allclose(np.ravel(stats[ours][TOP]["mean"]), pixels.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(np.ravel(stats[ours][TOP]["std"]), pixels.std((0, 1, 2)), rtol=1e-12)


@pytest.mark.parametrize("images", ["image", "video"])
def test_lerobot_merges_it_with_its_own(tmp_path, images):
    # Without the matrix, over which LeRobot 0.6.1's merging fails, also of its own data sets.
    theirs = write_with_lerobot(tmp_path / "theirs", images, NO_MATRIX)
    ours = write(tmp_path / "ours", NO_MATRIX, images={"image": "png", "video": "video"}[images])
    aggregate_datasets(["a/ours", "a/theirs"], "a/both", [ours, theirs], tmp_path / "both")
    merged = items(tmp_path / "both")
    assert len(merged) == 2 * sum(LENGTHS)
    for one, other in zip(merged[: sum(LENGTHS)], merged[sum(LENGTHS) :], strict=True):
        same = ("observation.state", "action", "timestamp", "task", "frame_index")
        assert all(np.array_equal(one[key], other[key]) for key in same)
        assert np.abs(one[TOP] - other[TOP]).mean() < 0.05
    reader = LeRobotReader(tmp_path / "both")
    assert reader.episodes == 6 and np.array_equal(
        np.stack(list(reader.read_episode(4).columns[TOP]))[3].shape, (32, 48, 3)
    )


@pytest.mark.parametrize("length", [1, 2, 99, 100, 101, 500, 3000])
def test_pictures_are_sampled_as_lerobot_samples_them(length):
    assert np.flatnonzero(sampled(length)).tolist() == sorted(set(sample_indices(length)))


@pytest.mark.parametrize("size", [(299, 299), (300, 40), (480, 640), (640, 480), (1080, 1920)])
def test_large_pictures_are_thinned_as_lerobot_thins_them(size):
    frame = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    statistics = PictureStatistics(Feature((*size, 3), "uint8"))
    statistics.add(frame)
    thinned = auto_downsample_height_width(frame.transpose(2, 0, 1)).reshape(3, -1)
    assert np.array_equal(statistics.counts, [np.bincount(channel, minlength=256) for channel in thinned])


# v2.1 and v2.0: made here, and held to be what they say by LeRobot's own converter


def write_old(path: Path, version: str, images: str) -> Path:
    """The three episodes in the layout that LeRobot wrote until mid 2025."""
    described, tasks = {}, {}
    for key, feature in ARM_FEATURES.items():
        described[key] = {"dtype": feature.dtype, "shape": list(feature.shape), "names": list(feature.names) or None}
        if feature.is_image:
            described[key] |= {"dtype": images, "names": ["height", "width", "channel"]}
    described["timestamp"] = {"dtype": "float32", "shape": [1], "names": None}
    described |= {key: {"dtype": "int64", "shape": [1], "names": None} for key in BOOKKEEPING}
    (path / "meta").mkdir(parents=True)
    (path / "data/chunk-000").mkdir(parents=True)
    (path / f"videos/chunk-000/{TOP}").mkdir(parents=True)
    lines = {"episodes": [], "tasks": [], "episodes_stats": []}
    first = 0
    for seed, length in enumerate(LENGTHS):
        episode, texts = make_arm_episode(length, seed), arm_tasks(length, seed)
        for text in texts:
            if text not in tasks:
                tasks[text] = len(tasks)
                lines["tasks"].append({"task_index": tasks[text], "task": text})
        columns = {
            key: pa.array(episode[key].tolist(), pa.list_(pa.float32())) for key in ("observation.state", "action")
        }
        columns["next.reward"] = pa.array(episode["next.reward"].ravel())
        columns["next.done"] = pa.array(episode["next.done"].ravel())
        columns["forces"] = pa.array(episode["forces"].tolist())
        columns["timestamp"] = pa.array((np.arange(length) / 25).astype(np.float32))
        columns["frame_index"] = pa.array(np.arange(length))
        columns["episode_index"] = pa.array(np.full(length, seed))
        columns["index"] = pa.array(np.arange(first, first + length))
        columns["task_index"] = pa.array([tasks[text] for text in texts])
        first += length
        if images == "image":
            from PIL import Image

            (path / "images").mkdir(exist_ok=True)
            cells = []
            for i, frame in enumerate(episode[TOP]):
                file = path / f"images/{seed}_{i}.png"
                Image.fromarray(frame).save(file)
                # Older data sets leave pictures beside the table instead of in it.
                inside = {"bytes": file.read_bytes(), "path": file.name}
                cells.append({"bytes": None, "path": f"images/{file.name}"} if version == "v2.0" else inside)
            columns[TOP] = pa.array(cells, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
        else:
            write_video(path / f"videos/chunk-000/{TOP}/episode_{seed:06d}.mp4", episode[TOP], 25)
        pq.write_table(pa.table(columns), path / f"data/chunk-000/episode_{seed:06d}.parquet")
        lines["episodes"].append({"episode_index": seed, "tasks": sorted(set(texts)), "length": length})
        stats = {
            key: {"min": rows.min(0), "max": rows.max(0), "mean": rows.mean(0), "std": rows.std(0), "count": [length]}
            for key, rows in episode.items()
            if key not in (TOP, "forces")
        }
        stats = {
            key: {name: np.asarray(value).astype(float).tolist() for name, value in some.items()}
            for key, some in stats.items()
        }
        lines["episodes_stats"].append({"episode_index": seed, "stats": stats})
    if version == "v2.0":
        del lines["episodes_stats"]
        (path / "meta/stats.json").write_text("{}")
    for name, some in lines.items():
        (path / f"meta/{name}.jsonl").write_text("\n".join(map(json.dumps, some)) + "\n")
    info = {
        "codebase_version": version,
        "robot_type": "arm",
        "total_episodes": 3,
        "total_frames": sum(LENGTHS),
        "total_tasks": len(tasks),
        "total_videos": 3,
        "total_chunks": 1,
        "chunks_size": 1000,
        "fps": 25,
        "splits": {"train": "0:3"},
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": described,
    }
    (path / "meta/info.json").write_text(json.dumps(info))
    return path


@pytest.mark.parametrize("images", ["image", "video"])
@pytest.mark.parametrize("version", ["v2.1", "v2.0"])
def test_old_versions_read_the_same_before_and_after_lerobots_conversion(tmp_path, version, images):
    old = write_old(tmp_path / "data", version, images)
    reader = LeRobotReader(old)
    assert (reader.format, reader.fps, reader.robot, reader.episodes) == (f"LeRobot {version}", 25, "arm", 3)
    episodes = [reader.read_episode(index) for index in range(3)]
    for seed, (episode, length) in enumerate(zip(episodes, LENGTHS, strict=True)):
        assert episode.task == arm_tasks(length, seed)
        camera = episode.columns[TOP]
        assert isinstance(camera, Frames)
        camera.check()
        for key, rows in make_arm_episode(length, seed).items():
            back = np.stack(list(episode.columns[key]))
            assert back.dtype == rows.dtype and back.shape == rows.shape
            error = np.abs(back.astype(float) - rows).mean()
            assert error == 0 or (key == TOP and images == "video" and error < 6)
    if version == "v2.0":
        return  # LeRobot converts v2.1 alone
    frames = [np.stack(list(episode.columns[TOP])) for episode in episodes]
    convert_dataset("a/b", root=old, push_to_hub=False)
    converted = LeRobotReader(old)
    assert converted.format == "LeRobot v3.0"
    for index, episode in enumerate(episodes):
        again = converted.read_episode(index)
        assert again.task == episode.task
        assert np.array_equal(np.stack(list(again.columns[TOP])), frames[index])
        for key, rows in episode.columns.items():
            assert key == TOP or np.array_equal(again.columns[key], rows)


def test_reading_a_video_is_linear_in_its_frames(tmp_path, monkeypatch):
    path = write(tmp_path / "data", codec="libx264")
    decoded = [0]

    def counting(*args):
        for frame in _decoded(*args):
            decoded[0] += 1
            yield frame

    monkeypatch.setattr("robostack.datasets.formats.video._decoded", counting)
    monkeypatch.setattr("robostack.datasets.formats.lerobot.reader.decode_at", frames_at)  # in this process
    reader = LeRobotReader(path)
    for index in range(3):
        assert sum(1 for _ in reader.read_episode(index).columns[TOP]) == LENGTHS[index]
    assert decoded[0] <= sum(LENGTHS) + 3  # each begins at a key frame, which is at most one frame before it


def test_texts_are_left_out_by_name(by_lerobot, tmp_path):
    path = shutil.copytree(by_lerobot["video"], tmp_path / "data")
    info = json.loads((path / "meta/info.json").read_text())
    info["features"]["note"] = {"dtype": "string", "shape": [1], "names": None}
    (path / "meta/info.json").write_text(json.dumps(info))
    reader = LeRobotReader(path)
    assert reader.left_out == {"note": "dtype string"} and "note" not in reader.features
    reader = LeRobotReader(path, drop=["note", TOP])
    assert TOP not in reader.features and reader.provenance["source"]["dropped"] == ["note", TOP]
    assert reader.read_episode(1).columns.keys() == reader.features.keys()
    with pytest.raises(DataError, match="has no typo to leave out: it has"):
        LeRobotReader(path, drop=["typo"])


# Depth


def test_codes_of_depth_mean_what_lerobot_means_by_them():
    codes = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    for said in ({}, {"use_log": False}, {"depth_min": 0.1, "depth_max": 4.0, "shift": 1.0}):
        theirs = dequantize_depth(codes, output_tensor=False, output_channel_last=True, **said)
        assert np.abs(DepthCodes(**said).millimetres(codes).astype(int) - theirs.astype(int)).max() <= 1


DEPTH = "observation.images.depth"
WITH_DEPTH = {**NO_MATRIX, DEPTH: Feature((24, 32, 1), "uint16", (), ("mm",))}


def depth_of(seed: int) -> np.ndarray:
    """What a video of 12 bits keeps well: a slope."""
    y, x = np.mgrid[0:24, 0:32]
    return np.stack([(400 + 20 * x + 10 * y + 5 * i + seed) for i in range(LENGTHS[seed])]).astype(np.uint16)[..., None]


@pytest.mark.parametrize("images", ["png", "video"])
def test_lerobot_reads_the_depth_that_robostack_writes(tmp_path, images):
    writer = LeRobotWriter(tmp_path / "data", WITH_DEPTH, fps=25, images=images)
    for seed, length in enumerate(LENGTHS):
        episode = {**make_arm_episode(length, seed), DEPTH: depth_of(seed)}
        writer.append({key: episode[key] for key in WITH_DEPTH}, "reach")
    writer.finish()
    reader = LeRobotReader(tmp_path / "data")
    assert reader.features == WITH_DEPTH
    assert np.array_equal(np.stack(list(reader.read_episode(1).columns[DEPTH])), depth_of(1))
    read = [np.asarray(item[DEPTH]) for item in items(tmp_path / "data")]
    assert np.array_equal(np.stack(read)[:, 0], np.concatenate([depth_of(seed) for seed in range(3)])[..., 0])
    stats = json.loads((tmp_path / "data/meta/stats.json").read_text())[DEPTH]
    whole = np.concatenate([depth_of(seed) for seed in range(3)])
    assert np.isclose(np.ravel(stats["mean"]), whole.mean()) and np.ravel(stats["max"]) == whole.max()


@pytest.mark.parametrize("videos", [False, True])
def test_robostack_reads_the_depth_that_lerobot_writes(tmp_path, videos):
    described = {
        "action": {"dtype": "float32", "shape": (2,), "names": None},
        DEPTH: {
            "dtype": "video" if videos else "image",
            "shape": (24, 32, 1),
            "names": ["height", "width", "channels"],
            "info": {"is_depth_map": True},
        },
    }
    data = LeRobotDataset.create("a/b", 25, described, root=tmp_path / "data", use_videos=videos)
    for frame in depth_of(1):
        data.add_frame({"action": np.zeros(2, np.float32), DEPTH: frame, "task": "reach"})
    data.save_episode()
    data.finalize()
    reader = LeRobotReader(tmp_path / "data")
    assert reader.features[DEPTH] == Feature((24, 32, 1), "uint16", (), ("mm",))
    read = np.stack(list(reader.read_episode(0).columns[DEPTH]))
    theirs = np.stack([np.asarray(item[DEPTH]) for item in items(tmp_path / "data")])[:, 0, :, :, None]
    assert np.abs(read.astype(int) - theirs).max() <= 1
    assert np.abs(read.astype(int) - depth_of(1)).mean() <= (30 if videos else 0)
