"""ALOHA's files: read as they are recorded, written as ACT reads them."""

from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robostack.datasets.episodes import Appender, DataError, EpisodeReader, Feature
from robostack.datasets.formats.hdf5.aloha import (
    ARM_NAMES,
    ARM_UNITS,
    BASE_NAMES,
    BASE_UNITS,
    AlohaHdf5Reader,
    AlohaHdf5Writer,
)
from robostack.datasets.inspection.survey import InspectConfig, inspect

CAMERAS = ("cam_high", "cam_left_wrist")


def hdf5(file: Path, mode: str = "r") -> Any:
    """The file; its items are arrays, which h5py's types leave open."""
    return h5py.File(file, mode)


def smooth(length: int, seed: int = 0, size: tuple[int, int] = (24, 32)) -> np.ndarray:
    """Pictures such as a camera gives: neighbours are alike, channels are not."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (length, 3, 4, 3), dtype=np.uint8)
    return np.stack([cv2.resize(image, size[::-1], interpolation=cv2.INTER_CUBIC) for image in coarse])


def record(file: Path, length: int = 5, seed: int = 0, compress: bool = False, mobile: bool = False) -> None:
    """What ACT's and Mobile ALOHA's record_episodes.py leave: the same names, types, chunks and padding."""
    rng = np.random.default_rng(seed)
    images = {camera: smooth(length, seed + i) for i, camera in enumerate(CAMERAS)}
    with hdf5(file, "w") as root:
        root.attrs["sim"] = False
        root.attrs["compress"] = compress
        observations = root.create_group("observations")
        pictures = observations.create_group("images")
        if compress:
            quality = [int(cv2.IMWRITE_JPEG_QUALITY), 50]
            encoded = {c: [cv2.imencode(".jpg", i, quality)[1] for i in images[c]] for c in CAMERAS}
            longest = max(len(data) for camera in CAMERAS for data in encoded[camera])
            lengths = np.zeros((len(CAMERAS), length))
            for c, camera in enumerate(CAMERAS):
                rows = pictures.create_dataset(camera, (length, longest), dtype="uint8", chunks=(1, longest))
                for i, data in enumerate(encoded[camera]):
                    rows[i] = np.pad(data, (0, longest - len(data)))
                    lengths[c, i] = len(data)
            root.create_dataset("compress_len", (len(CAMERAS), length), dtype="f4")
            root["/compress_len"][...] = lengths
        else:
            for camera in CAMERAS:
                shape = images[camera].shape
                pictures.create_dataset(camera, shape, dtype="uint8", chunks=(1, *shape[1:]))[...] = images[camera]
        for name in ("qpos", "qvel", "effort"):
            observations[name] = rng.normal(size=(length, 14))
        root["action"] = rng.normal(size=(length, 14))
        if mobile:
            root["base_action"] = rng.normal(size=(length, 2))


def folder(path: Path, lengths: tuple[int, ...] = (5, 3, 4), **kind: bool) -> Path:
    path.mkdir()
    for i, length in enumerate(lengths):
        record(path / f"episode_{i}.hdf5", length, seed=10 * i, **kind)
    return path


def arrays(reader: EpisodeReader, episode: int) -> dict[str, np.ndarray]:
    columns = reader.read_episode(episode).columns
    return {key: rows if isinstance(rows, np.ndarray) else np.stack(list(rows)) for key, rows in columns.items()}


def test_a_recording_is_read_as_it_is(tmp_path: Path) -> None:
    path = folder(tmp_path / "data")
    reader = AlohaHdf5Reader(path)
    assert isinstance(reader, EpisodeReader)
    assert (reader.fps, reader.robot, reader.episodes) == (None, None, 3)
    assert [reader.length(i) for i in range(3)] == [5, 3, 4]
    assert reader.features["action"] == Feature((14,), "float64", ARM_NAMES, ARM_UNITS)
    assert reader.provenance["source"] == {"format": "ALOHA HDF5", "sim": False, "not_read": []}
    with hdf5(path / "episode_1.hdf5") as root:
        read = arrays(reader, 1)
        assert reader.read_episode(1).task == [""] * 3
        names = {"observation.state": "qpos", "observation.velocity": "qvel", "observation.effort": "effort"}
        for key, name in names.items():
            assert read[key].dtype == np.float64 and np.array_equal(read[key], root[f"/observations/{name}"])
        assert np.array_equal(read["action"], root["/action"])
        for camera in CAMERAS:
            assert np.array_equal(read[f"observation.images.{camera}"], root[f"/observations/images/{camera}"])


def test_jpegs_are_what_cv2_gives_back(tmp_path: Path) -> None:
    path = folder(tmp_path / "data", compress=True)
    read = arrays(AlohaHdf5Reader(path), 0)
    with hdf5(path / "episode_0.hdf5") as root:
        for i, camera in enumerate(CAMERAS):
            decoded = np.stack([cv2.imdecode(row, 1) for row in root[f"/observations/images/{camera}"]])
            key = f"observation.images.{camera}"
            assert np.array_equal(read[key], decoded)
            assert np.abs(read[key].astype(int) - smooth(5, i)).mean() < 8  # a swap of channels makes it about 70


def test_base_actions_are_the_last_two_entries(tmp_path: Path) -> None:
    path = folder(tmp_path / "data", mobile=True)
    reader = AlohaHdf5Reader(path)
    assert reader.features["action"] == Feature((16,), "float64", ARM_NAMES + BASE_NAMES, ARM_UNITS + BASE_UNITS)
    with hdf5(path / "episode_0.hdf5") as root:
        assert np.array_equal(arrays(reader, 0)["action"], np.concatenate([root["action"], root["base_action"]], 1))


def test_an_arm_beyond_its_limits_is_found_though_recorders_write_no_units(tmp_path: Path) -> None:
    path = folder(tmp_path / "data", lengths=(60, 60))
    with hdf5(path / "episode_1.hdf5", "r+") as root:
        root["observations/qpos"][:, 2] = 57.3  # in degrees, or a broken encoder
    problems = inspect(AlohaHdf5Reader(path), InspectConfig(sampled=0)).problems
    (beyond,) = [problem for problem in problems if problem.kind == "beyond limits"]
    assert (beyond.feature, beyond.entry, beyond.episodes) == ("observation.state", "left_elbow", (1,))


def test_episodes_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number, length in ((10, 3), (2, 4), (0, 5)):
        record(tmp_path / f"episode_{number}.hdf5", length)
    (tmp_path / "notes.txt").touch()
    reader = AlohaHdf5Reader(tmp_path)
    assert [reader.length(i) for i in range(reader.episodes)] == [5, 4, 3]
    assert AlohaHdf5Reader(tmp_path / "episode_2.hdf5").length(0) == 4
    with pytest.raises(DataError, match=r"expected files episode_<n>.hdf5, found none"):
        AlohaHdf5Reader(tmp_path / "nowhere")


def test_dropped_features_may_be_odd(tmp_path: Path) -> None:
    path = folder(tmp_path / "data")
    with hdf5(path / "episode_1.hdf5", "r+") as root:
        del root["observations/images/cam_high"]
        root["observations/option"] = np.zeros(3)
    drop = ["observation.images.cam_high", "observation.effort"]
    reader = AlohaHdf5Reader(path, drop)
    assert sorted(arrays(reader, 1)) == sorted(reader.features) and not set(drop) & set(reader.features)
    with pytest.raises(DataError, match=r"has no observation.depth to drop: it has observation.state"):
        AlohaHdf5Reader(path, ["observation.depth"])


def edit(change):
    def apply(file: Path) -> None:
        with hdf5(file, "r+") as root:
            change(root)

    return apply


def replace(name: str, data: np.ndarray):
    def change(root: h5py.File) -> None:
        del root[name]
        root[name] = data

    return edit(change)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def unfinished(root: h5py.File) -> None:
    del root["observations/images/cam_high"]
    images = root.create_dataset("observations/images/cam_high", (3, 24, 32, 3), "uint8", chunks=(1, 24, 32, 3))
    images[0] = 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (edit(lambda root: root.__delitem__("observations/images/cam_high")), "lacks observation.images.cam_high"),
        (replace("action", np.zeros((3, 7))), r"action: expected \(14,\) float64, got \(7,\) float64"),
        (replace("action", np.zeros((3, 14), np.float32)), "action: expected .* float64, got .* float32"),
        (replace("action", np.array([b"x"] * 3, dtype=object)), "action: expected numbers"),
        (replace("observations/qvel", np.zeros((2, 14))), "observation.velocity has 2 frames, action 3"),
        (replace("observations/images/cam_high", np.zeros((3, 24), np.float32)), "is no camera here"),
        (replace("action", np.zeros((0, 14))), "/action is empty"),
        (edit(lambda root: root.__delitem__("action")), "lacks /action"),
        (edit(unfinished), "1 of 3 chunks were written"),
        (edit(lambda root: root.attrs.__setitem__("fps", 30.0)), "expected None frames a second .* got 30"),
        (cut, "truncated"),
        (lambda file: file.write_bytes(b""), "truncated or damaged"),
    ],
)
def test_what_is_wrong_with_an_episode_is_told_when_it_is_read(tmp_path: Path, damage, message: str) -> None:
    path = folder(tmp_path / "data")
    damage(path / "episode_1.hdf5")
    reader = AlohaHdf5Reader(path)
    assert [len(arrays(reader, i)["action"]) for i in (0, 2)] == [5, 4]
    with pytest.raises(DataError, match=rf"episode_1.hdf5, episode 1.*{message}") as error:
        arrays(reader, 1)
    assert "\n" not in str(error.value)


def test_a_damaged_first_episode_leaves_the_others(tmp_path: Path) -> None:
    path = folder(tmp_path / "data")
    cut(path / "episode_0.hdf5")
    reader = AlohaHdf5Reader(path)
    assert len(arrays(reader, 2)["action"]) == 4
    with pytest.raises(DataError, match="episode 0 is truncated"):
        reader.length(0)
    for file in path.iterdir():
        cut(file)
    with pytest.raises(DataError, match="none of 3 episodes can be read"):
        AlohaHdf5Reader(path)


def test_a_damaged_jpeg_is_named(tmp_path: Path) -> None:
    path = folder(tmp_path / "data", compress=True)
    with hdf5(path / "episode_1.hdf5", "r+") as root:
        root["observations/images/cam_high"][2, 100:] = 0
    with pytest.raises(DataError, match=r"episode 1: observation.images.cam_high, frame 2"):
        arrays(AlohaHdf5Reader(path), 1)


def copy(reader: EpisodeReader, writer: Appender, episodes: range | None = None) -> None:
    for i in episodes or range(reader.episodes):
        episode = reader.read_episode(i)
        writer.append(episode.columns, episode.task)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    mobile=st.booleans(),
    dtype=st.sampled_from(["float32", "float64"]),
    velocity=st.booleans(),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    fps=st.sampled_from([None, 50.0]),
)
def test_what_is_written_reads_back_the_same(tmp_path_factory, lengths, mobile, dtype, velocity, size, fps) -> None:
    path = tmp_path_factory.mktemp("round") / "data"
    names = ARM_NAMES + BASE_NAMES * mobile
    features = {
        "observation.state": Feature((14,), dtype, ARM_NAMES, ("rad",) * 14),
        "observation.images.top": Feature((*size, 3), "uint8"),
        "action": Feature((len(names),), dtype, names, ("rad",) * 14 + ("m/s", "rad/s") * mobile),
    }
    if velocity:
        features["observation.velocity"] = Feature((14,), dtype, ARM_NAMES)
    rng = np.random.default_rng(0)
    writer = AlohaHdf5Writer(path, features, fps, robot="aloha")
    episodes = []
    for i, length in enumerate(lengths):
        columns = {key: rng.normal(size=(length, *f.shape)).astype(f.dtype) for key, f in features.items()}
        columns["observation.images.top"] = rng.integers(0, 256, (length, *size, 3), dtype=np.uint8)
        assert writer.append(columns, f"task {i}") == i
        episodes.append(columns)
    writer.finish()
    reader = AlohaHdf5Reader(path)
    assert dict(reader.features) == features
    assert (reader.fps, reader.robot, reader.episodes) == (fps, "aloha", len(lengths))
    for i, columns in enumerate(episodes):
        read = arrays(reader, i)
        assert reader.read_episode(i).task == [f"task {i}"] * lengths[i]
        assert all(np.array_equal(read[key], rows) and read[key].dtype == rows.dtype for key, rows in columns.items())


@pytest.mark.parametrize("images", ["raw", "jpeg"])
def test_what_is_written_opens_in_act(tmp_path: Path, images: str) -> None:
    reader = AlohaHdf5Reader(folder(tmp_path / "source", mobile=True), ["observation.velocity"])
    copy(reader, AlohaHdf5Writer(tmp_path / "data", reader.features, 50, images=images, provenance=reader.provenance))
    for i in range(3):
        expected = arrays(reader, i)
        # The accesses of EpisodicDataset.__getitem__ in act-plus-plus.
        with hdf5(tmp_path / "data" / f"episode_{i}.hdf5", "r") as root:
            assert not root.attrs["sim"]
            action = np.concatenate([root["/action"][()], root["/base_action"][()]], axis=-1)
            assert np.array_equal(action, expected["action"])
            assert np.array_equal(root["/observations/qpos"][1], expected["observation.state"][1])
            assert np.isnan(root["/observations/qvel"][1]).all()
            compressed = root.attrs.get("compress", False)
            assert compressed == (images == "jpeg")
            for c, camera in enumerate(root["/observations/images"].keys()):
                image, key = root[f"/observations/images/{camera}"][1], f"observation.images.{camera}"
                if compressed:
                    assert int(root["/compress_len"][c, 1]) == len(bytes(image).rstrip(b"\0"))
                    image = np.array(cv2.imdecode(image, 1))
                difference = np.abs(image.astype(int) - expected[key][1])
                assert difference.max() == 0 if images == "raw" else difference.mean() < 4
            assert root["/observations/images/cam_high"].chunks[0] == 1
    again = AlohaHdf5Reader(tmp_path / "data")
    assert "observation.velocity" not in again.features and again.provenance["source"]["sim"] is False


def test_what_the_format_cannot_hold_is_told_first(tmp_path: Path) -> None:
    arm = Feature((14,), "float32")
    features = {"observation.state": arm, "action": arm, "next.reward": Feature((), "float32"), "observation.x": arm}
    with pytest.raises(DataError, match=r"cannot hold next.reward, observation.x: leave"):
        AlohaHdf5Writer(tmp_path / "data", features, 50)
    with pytest.raises(DataError, match=r"needs observation.state; the data set has action"):
        AlohaHdf5Writer(tmp_path / "data", {"action": arm}, 50)
    assert not (tmp_path / "data").exists()
    (tmp_path / "data").mkdir()
    with pytest.raises(FileExistsError, match="already exists"):
        AlohaHdf5Writer(tmp_path / "data", {"observation.state": arm, "action": arm}, 50)


@pytest.mark.parametrize("where", ["_encode", "_create", "_sync", "os.posix_fallocate"])
def test_a_failed_append_is_not_there_and_resume_goes_on(tmp_path: Path, monkeypatch, where: str) -> None:
    reader = AlohaHdf5Reader(folder(tmp_path / "source"))
    options = {"images": "jpeg", "provenance": reader.provenance}
    writer = AlohaHdf5Writer(tmp_path / "data", reader.features, 50, **options)
    copy(reader, writer, range(1))

    def full(*_) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(f"robostack.datasets.formats.hdf5.aloha.{where}", full)
        with pytest.raises(OSError, match="No space"):
            copy(reader, writer, range(1, 2))
    (tmp_path / "data" / ".episode_1.hdf5.partial").write_bytes(b"a kill leaves it")
    assert AlohaHdf5Reader(tmp_path / "data").episodes == 1
    resumed = AlohaHdf5Writer.resume(tmp_path / "data")
    assert resumed.episodes == 1 and resumed.features == dict(reader.features)
    copy(reader, resumed, range(1, 3))
    again = AlohaHdf5Reader(tmp_path / "data")
    for i in range(3):
        read, written = arrays(reader, i), arrays(again, i)
        assert all(np.array_equal(read[key], written[key]) for key in read if again.features[key].dtype != "uint8")
    assert not list((tmp_path / "data").glob(".*"))
    with pytest.raises(DataError, match="nothing to go on with"):
        AlohaHdf5Writer.resume(tmp_path / "source")


def test_an_episode_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    reader = AlohaHdf5Reader(folder(tmp_path / "source"))
    writer = AlohaHdf5Writer(tmp_path / "data", reader.features, 50)
    columns = dict(reader.read_episode(0).columns)
    with pytest.raises(DataError, match="one task text an episode, got 2"):
        writer.append(columns, ["a"] * 4 + ["b"])
    columns["action"] = np.full((5, 14), np.nan)
    with pytest.raises(DataError, match="action is not finite"):
        writer.append(columns, "task")
    assert writer.episodes == 0 and sorted(p.name for p in (tmp_path / "data").iterdir()) == ["robostack.json"]
