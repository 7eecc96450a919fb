"""A conversion loses nothing, says what it cannot do, and goes on where it was stopped."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import write

from robostack.common.interrupt import Interrupted
from robostack.datasets.episodes import DataError, Episode, EpisodeReader, Feature, Frames
from robostack.datasets.formats import FORMATS, Recording, create_writer, open_reader
from robostack.datasets.formats import convert as module
from robostack.datasets.formats.convert import ConvertConfig, DiskFullError, Progress, VerificationError, convert
from robostack.datasets.formats.hdf5 import aloha as aloha_hdf5
from robostack.datasets.formats.hdf5.aloha import ARM_NAMES, BASE_NAMES, AlohaHdf5Writer
from robostack.datasets.store import EpisodeStore, EpisodeWriter

LENGTHS = (4, 6, 3)


def picture(length: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth frames that move: a codec that is lossy keeps them nearly."""
    t, y, x = np.ogrid[:length, :height, :width]
    phase = (y + 3 * x + 11 * t + 40 * seed)[..., None] / np.array([47.0, 53.0, 67.0])
    return (127 + 120 * np.sin(phase)).astype(np.uint8)


def record(
    path: Path,
    name: str = "aloha",
    lengths: tuple[int, ...] = LENGTHS,
    joints: int = 14,
    size: tuple[int, int] = (6, 8),
    dtype: str = "float64",
    task: str = "transfer the cube",
    fps: float | None = 50.0,
    images: str = "",
) -> Path:
    """A data set in some format, with effort and one camera."""
    names = ARM_NAMES + BASE_NAMES if joints == 16 else ARM_NAMES[:joints]
    features = {
        "observation.state": Feature((14,), dtype, ARM_NAMES),
        "observation.velocity": Feature((14,), dtype, ARM_NAMES),
        "observation.images.top": Feature((*size, 3), "uint8"),
        "action": Feature((joints,), dtype, names),
    }
    writer = create_writer(name, path, Recording(features, fps, "aloha"), images)
    rng = np.random.default_rng(0)
    for i, length in enumerate(lengths):
        columns = {key: rng.normal(size=(length, *f.shape)).astype(f.dtype) for key, f in features.items()}
        columns["observation.images.top"] = picture(length, *size, i)
        writer.append(columns, task)
    writer.finish()
    return path


def rows(reader: EpisodeReader, episode: int) -> dict[str, np.ndarray]:
    columns = reader.read_episode(episode).columns
    return {key: r if isinstance(r, np.ndarray) else np.stack(list(r)) for key, r in columns.items()}


def assert_same(one: Path, other: Path, episodes: Sequence[int] = (0, 1, 2)) -> None:
    """`other` holds these episodes of `one`, exactly; LeRobot knows no units, and of ALOHA's arms they are known."""
    a, b = open_reader(one), open_reader(other)
    features = [{key: replace(reader.features[key], units=()) for key in a.features} for reader in (a, b)]
    assert features[0] == features[1]
    assert (a.fps, a.robot, len(episodes)) == (b.fps, b.robot, b.episodes)
    for i, episode in enumerate(episodes):
        left, right = rows(a, episode), rows(b, i)
        assert list(a.read_episode(episode).task) == list(b.read_episode(i).task)
        assert all(np.array_equal(left[key], right[key]) for key in left), i


def files(path: Path) -> dict[Path, bytes]:
    return {file.relative_to(path): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


@pytest.mark.parametrize(
    ("name", "images"), [("aloha", "raw"), ("diffusion-policy", "raw"), ("lerobot", "png")], ids=lambda v: v
)
def test_there_and_back_is_exact(tmp_path: Path, name: str, images: str) -> None:
    source = record(tmp_path / "source", name, images=images)
    before = files(source)
    there = convert(ConvertConfig(source, tmp_path / "there"))
    back = convert(ConvertConfig(tmp_path / "there", tmp_path / "back", to=name, images=images))
    assert_same(source, tmp_path / "there")
    assert_same(source, tmp_path / "back")
    assert open_reader(tmp_path / "back").features == open_reader(source).features
    assert files(source) == before
    assert (there.format, there.episodes, there.frames, there.left_out) == ("robostack", 3, 13, {})
    assert there.actions_sha256 == back.actions_sha256 and there.frames_per_s > 0 and there.mb_per_s > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "source", "there"]


def test_scalars_and_task_texts_go_to_every_format_that_holds_them(tmp_path: Path) -> None:
    write(tmp_path / "source", [4, 5])
    convert(ConvertConfig(tmp_path / "source", tmp_path / "lerobot", to="lerobot", images="png"))
    convert(ConvertConfig(tmp_path / "lerobot", tmp_path / "zarr", to="diffusion-policy", drop=("timestamp",)))
    source, back = EpisodeStore(tmp_path / "source"), open_reader(tmp_path / "zarr")
    for i in range(2):
        read = rows(back, i)
        assert list(back.read_episode(i).task) == [f"task {i}"] * (4 + i)
        for key, expected in source.episode(i).items():
            assert np.array_equal(read[key].reshape(expected.shape), expected)


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    joints=st.sampled_from([14, 16]),
    size=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    dtype=st.sampled_from(["float32", "float64"]),
    name=st.sampled_from(["aloha", "diffusion-policy"]),
)
def test_any_shape_comes_back(tmp_path_factory, lengths, joints, size, dtype, name) -> None:
    folder = tmp_path_factory.mktemp("any")
    source = record(folder / "source", name, tuple(lengths), joints, size, dtype)
    convert(ConvertConfig(source, folder / "there"))
    convert(ConvertConfig(folder / "there", folder / "back", to=name))
    assert_same(source, folder / "back", range(len(lengths)))


@pytest.mark.parametrize(("to", "images"), [("lerobot", "video"), ("aloha", "jpeg")])
def test_lossy_targets_stay_near(tmp_path: Path, to: str, images: str) -> None:
    source = record(tmp_path / "source", "diffusion-policy", size=(64, 96))
    convert(ConvertConfig(source, tmp_path / "data", to=to, images=images))
    one, other = open_reader(source), open_reader(tmp_path / "data")
    for i in range(3):
        left, right = rows(one, i), rows(other, i)
        key = "observation.images.top"
        assert np.abs(left[key].astype(int) - right[key]).mean() < 5
        assert all(np.array_equal(left[k], right[k]) for k in left if k != key)


def test_jpegs_come_over_as_they_decode(tmp_path: Path) -> None:
    source = record(tmp_path / "source", size=(64, 96), images="jpeg")
    convert(ConvertConfig(source, tmp_path / "data"))
    assert_same(source, tmp_path / "data")


def test_cameras_are_resized(tmp_path: Path) -> None:
    source = record(tmp_path / "source", size=(32, 48))
    convert(ConvertConfig(source, tmp_path / "data", resize="16x24"))
    store = EpisodeStore(tmp_path / "data")
    assert store.features["observation.images.top"].shape == (16, 24, 3)
    small = picture(4, 32, 48).reshape(4, 16, 2, 24, 2, 3).mean((2, 4))
    assert np.abs(rows(store, 0)["observation.images.top"] - small).mean() < 6


def test_what_the_source_does_not_record_is_given(tmp_path: Path) -> None:
    source = record(tmp_path / "source", fps=None, task="")
    with pytest.raises(ValueError, match=r"does not record its frames a second, which robostack needs: give --fps"):
        convert(ConvertConfig(source, tmp_path / "data"))
    with pytest.warns(UserWarning, match="without a task text: give --task"):
        convert(ConvertConfig(source, tmp_path / "zarr", to="diffusion-policy"))
    convert(ConvertConfig(source, tmp_path / "data", fps=30.0, task="fold"))
    store = EpisodeStore(tmp_path / "data")
    assert store.fps == 30 and store.tasks == ("fold",)


def refused(source: Path, message: str, **options: Any) -> None:
    folder = source.parent
    before = sorted(folder.iterdir())
    with pytest.raises(ValueError, match=message) as error:
        convert(ConvertConfig(source, **{"dst": folder / "data", **options}))
    assert "\n" not in str(error.value)
    assert sorted(path for path in folder.iterdir() if not path.name.startswith(".")) == before


def test_settings_that_do_not_fit_are_refused_first(tmp_path: Path) -> None:
    source = record(tmp_path / "source")
    refused(source, "50 frames a second, not 30: leave --fps out", fps=30.0)
    refused(source, "has the task 'transfer the cube': leave --task out", task="fold")
    refused(source, "unknown format 'rlds'", to="rlds")
    refused(source, "robostack keeps images as raw, not as 'png'", images="png")
    refused(source, "expected HEIGHTxWIDTH", resize="16")
    refused(source, "has no next.reward to leave out", drop=("next.reward",))
    refused(source, "--fps: expected frames a second, got nan", fps=float("nan"))
    refused(source, "lies in the source", dst=source / "data")
    refused(tmp_path / "nowhere", "does not exist")
    write(tmp_path / "store", [3])
    refused(tmp_path / "store", "robostack's own: say to which format with --to")
    refused(tmp_path / "store", "cannot hold next.success: leave", to="aloha")
    convert(ConvertConfig(tmp_path / "store", tmp_path / "aloha", to="aloha", drop=("next.success",)))


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    source = record(tmp_path / "source")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "notes").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("data", "link"):
        with pytest.raises(FileExistsError, match="already exists"):
            convert(ConvertConfig(source, tmp_path / name))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "link", "source"]
    (tmp_path / "data" / "notes").unlink()
    convert(ConvertConfig(source, tmp_path / "data"))
    assert_same(source, tmp_path / "data")


def lacks_camera(file: Path) -> None:
    with h5py.File(file, "r+") as root:
        del root["observations/images/top"]


def wrong_dimensions(file: Path) -> None:
    with h5py.File(file, "r+") as root:
        del root["action"]
        root["action"] = np.zeros((6, 7))


def not_finite(file: Path) -> None:
    with h5py.File(file, "r+") as root:
        root["action"][2, 3] = np.nan  # pyright: ignore[reportIndexIssue]


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:5000])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lacks_camera, "lacks observation.images.top"),
        (wrong_dimensions, r"action: expected \(14,\)"),
        (not_finite, "action is not finite at frame 2"),
        (cut, "truncated"),
    ],
)
def test_a_damaged_episode_is_named_and_can_be_left_out(tmp_path: Path, damage, message: str) -> None:
    source = record(tmp_path / "source")
    damage(source / "episode_1.hdf5")
    with pytest.raises(DataError, match=rf"episode 1.*{message}.*--skip-damaged"):
        convert(ConvertConfig(source, tmp_path / "data"))
    assert not (tmp_path / "data").exists()
    shutil.rmtree(tmp_path / ".data.partial")
    done = convert(ConvertConfig(source, tmp_path / "data", skip_damaged=True))
    assert done.episodes == 2 and list(done.left_out) == [1] and "episode 1" in done.left_out[1]
    assert_same(source, tmp_path / "data", (0, 2))


@pytest.fixture
def one_frame_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that one frame can be lost."""
    monkeypatch.setattr("robostack.datasets.formats.diffusion_policy._IMAGE_CHUNK_BYTES", 1)


def test_pixels_that_are_damaged_leave_the_episode_out(tmp_path: Path, one_frame_a_chunk: None) -> None:
    source = record(tmp_path / "source", "diffusion-policy")
    (source / "data" / "top" / "5.0.0.0").unlink()
    done = convert(ConvertConfig(source, tmp_path / "data", skip_damaged=True))
    assert list(done.left_out) == [1] and done.episodes == 2
    record(tmp_path / "bad")
    for file in sorted((tmp_path / "bad").glob("*.hdf5")):
        not_finite(file)
    with pytest.raises(DataError, match="has no episode that can be converted"):
        convert(ConvertConfig(tmp_path / "bad", tmp_path / "other", skip_damaged=True))


class Killed(BaseException):
    pass


def kill(*_: Any, **__: Any) -> None:
    raise Killed


def at(calls: int, function, error: BaseException):
    """The function, which raises at its n-th call."""
    left = [calls]

    def wrapped(*arguments: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise error
        return function(*arguments, **options)

    return wrapped


KILLS = {
    "before the writer": (module, "create_writer", 1),
    "writer made, not noted": (module.ConversionState, "save", 2),
    "first append": ("writer", "append", 1),
    "third append": ("writer", "append", 3),
    "all appended": (module.ConversionState, "save", 4),
    "finish": ("writer", "finish", 1),
    "check": (module, "_verify", 1),
    "sync": (module.os, "sync", 1),
}
WRITERS = {"robostack": "store.EpisodeWriter", "lerobot": "formats.lerobot.writer.LeRobotWriter"}
WRITERS |= {"aloha": "formats.hdf5.aloha.AlohaHdf5Writer"}
WRITERS |= {"diffusion-policy": "formats.diffusion_policy.DiffusionPolicyWriter"}


@pytest.mark.parametrize(
    ("to", "point"),
    [("robostack", point) for point in KILLS]
    + [(to, point) for to in ("lerobot", "aloha", "diffusion-policy") for point in ("third append", "finish", "sync")],
)
def test_a_killed_conversion_goes_on(tmp_path: Path, monkeypatch, one_frame_a_chunk, to: str, point: str) -> None:
    source = record(tmp_path / "source", "diffusion-policy")
    images = "png" if to == "lerobot" else ""
    (source / "data" / "top" / "5.0.0.0").unlink()  # a frame of episode 1
    config = ConvertConfig(source, tmp_path / "data", to=to, images=images, skip_damaged=True)
    where, name, calls = KILLS[point]
    with monkeypatch.context() as patch:
        if where == "writer":
            patch.setattr(f"robostack.datasets.{WRITERS[to]}.{name}", at(calls, method(to, name), Killed()))
        else:
            patch.setattr(where, name, at(calls, getattr(where, name), Killed()))
        with pytest.raises(Killed):
            convert(config)
    assert not (tmp_path / "data").exists()
    told: list[Progress] = []
    done = convert(config, told.append)
    assert done.episodes == 2 and list(done.left_out) == [1]
    assert point != "third append" or [p.done for p in told if p.stage == "converting"] == [3]
    assert_same(source, tmp_path / "data", (0, 2))
    assert not (tmp_path / ".data.partial").exists()


def method(to: str, name: str):
    import importlib

    file, kind = WRITERS[to].rsplit(".", 1)
    return getattr(getattr(importlib.import_module(f"robostack.datasets.{file}"), kind), name)


def test_a_kill_after_the_last_step_is_no_hindrance(tmp_path: Path, monkeypatch) -> None:
    config = ConvertConfig(record(tmp_path / "source"), tmp_path / "data")
    with monkeypatch.context() as patch:
        patch.setattr(module, "_sync_folder", kill)
        with pytest.raises(Killed):
            convert(config)
    assert_same(config.src, config.dst)
    shutil.rmtree(config.dst)
    convert(config)
    assert_same(config.src, config.dst)
    assert not (tmp_path / ".data.partial").exists()


def test_other_settings_do_not_go_on(tmp_path: Path, monkeypatch) -> None:
    source = record(tmp_path / "source")
    with monkeypatch.context() as patch:
        patch.setattr(module, "_verify", kill)
        with pytest.raises(Killed):
            convert(ConvertConfig(source, tmp_path / "data"))
    with pytest.raises(ValueError, match=r"unfinished conversion with other settings \(resize '', now '8x8'\)"):
        convert(ConvertConfig(source, tmp_path / "data", resize="8x8"))
    assert convert(ConvertConfig(source, tmp_path / "data")).episodes == 3


@pytest.mark.parametrize("to", FORMATS)
def test_a_full_disk_is_told_and_what_was_done_is_kept(tmp_path: Path, monkeypatch, to: str) -> None:
    source = record(tmp_path / "source", "aloha" if to != "aloha" else "diffusion-policy")
    config = ConvertConfig(source, tmp_path / "data", to=to, images="png" if to == "lerobot" else "", skip_damaged=True)
    full = OSError(errno.ENOSPC, "No space left on device")
    places = {
        "robostack": ("robostack.datasets.rows.os.pwrite", module.os.pwrite, 18),
        "lerobot": ("robostack.datasets.formats.lerobot.writer._encoded", None, 6),
        "aloha": ("robostack.datasets.formats.hdf5.aloha.os.posix_fallocate", module.os.posix_fallocate, 2),
        "diffusion-policy": ("zarr.Array.__setitem__", zarr.Array.__setitem__, 6),
    }
    target, function, calls = places[to]
    if function is None:
        file, name = target.rsplit(".", 1)
        function = getattr(__import__(file, fromlist=[name]), name)
    with monkeypatch.context() as patch:
        patch.setattr(target, at(calls, function, full))
        with pytest.raises(
            DiskFullError,
            match=r"full at episode 1: make room and run the same command again; 1 converted episodes are",
        ) as error:
            convert(config)
    assert "\n" not in str(error.value) and not (tmp_path / "data").exists()
    told: list[Progress] = []
    assert convert(config, told.append).left_out == {}
    assert [p.done for p in told if p.stage == "converting"] == [2, 3]
    assert_same(source, tmp_path / "data")


def spoil(path: Path, key: str, offset: int) -> None:
    file = path / key / "c" / ("0/0" if key == "action" else "0/0/0/0")
    data = bytearray(file.read_bytes())
    data[offset : offset + 8] = b"\1" * 8
    file.write_bytes(data)


TOP = "observation.images.top"


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        (lambda path: spoil(path, "action", 9 * 14 * 8), "episode 1: action"),
        (lambda path: spoil(path, TOP, 4 * 6 * 8 * 3), "episode 1: observation.images.top: the first frame, by"),
        (lambda path: spoil(path, TOP, 12 * 6 * 8 * 3), "episode 2: observation.images.top: the last frame, by"),
        (lambda path: EpisodeWriter.resume(path).append(rows(EpisodeStore(path), 0), "x"), "expected 3 .*, got 4"),
    ],
)
def test_a_result_that_differs_is_not_put_in_place(tmp_path: Path, monkeypatch, spoilt, message: str) -> None:
    source = record(tmp_path / "source")
    finish = EpisodeWriter.finish

    def finish_and_spoil(writer: EpisodeWriter) -> None:
        finish(writer)
        spoilt(writer.path)

    monkeypatch.setattr(EpisodeWriter, "finish", finish_and_spoil)
    with pytest.raises(VerificationError, match=rf"differs from its source: {message}.*: remove .*partial"):
        convert(ConvertConfig(source, tmp_path / "data"))
    assert not (tmp_path / "data").exists()


def test_a_lossy_target_must_be_within_its_bound(tmp_path: Path, monkeypatch) -> None:
    source = record(tmp_path / "source", "diffusion-policy", size=(64, 96))
    swapped = partial(lambda encode, frame: encode(np.ascontiguousarray(frame[..., ::-1])), aloha_hdf5._encode)
    monkeypatch.setattr(aloha_hdf5, "_encode", swapped)
    with pytest.raises(VerificationError, match=r"the first frame, by \d+.\d grey levels, allowed are 12"):
        convert(ConvertConfig(source, tmp_path / "data", to="aloha", images="jpeg"))


def test_rows_of_every_number_are_compared(tmp_path: Path, monkeypatch) -> None:
    source = record(tmp_path / "source")
    create = AlohaHdf5Writer._write

    def shifted(writer: AlohaHdf5Writer, root: Any, columns: dict[str, Any], length: int) -> None:
        create(writer, root, columns | {"observation.state": columns["observation.state"] + 1e-9}, length)

    monkeypatch.setattr(AlohaHdf5Writer, "_write", shifted)
    convert(ConvertConfig(source, tmp_path / "store"))
    with pytest.raises(VerificationError, match=r"episode 0: observation.state"):
        convert(ConvertConfig(tmp_path / "store", tmp_path / "data", to="aloha"))


def test_a_format_that_cannot_hold_it_leaves_nothing_behind(tmp_path: Path) -> None:
    write(tmp_path / "source", [4])
    with pytest.raises(DataError, match=r"cannot hold next.success: leave them out with --drop"):
        convert(ConvertConfig(tmp_path / "source", tmp_path / "data", to="aloha"))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


REWARDED = {
    "observation.state": Feature((3,), "float32"),
    "observation.images.top": Feature((6, 8, 3), "uint8"),
    "next.reward": Feature((), "float32"),
    "action": Feature((2,), "float32"),
}


def rewarded(path: Path, spoil: dict[str, int], lengths: tuple[int, ...] = LENGTHS) -> Path:
    """A data set in which these features are not finite at these frames."""
    writer = create_writer("diffusion-policy", path, Recording(REWARDED, 10.0))
    for i, length in enumerate(lengths):
        columns: dict[str, Any] = {k: np.full((length, *f.shape), i, f.dtype) for k, f in REWARDED.items()}
        columns["observation.images.top"] = picture(length, 6, 8, i)
        writer.append(columns, "reach")
    for key, frame in spoil.items():
        zarr.open_array(str(path), path=f"data/{key.removeprefix('observation.')}", mode="r+")[frame] = np.nan
    return path


def test_one_odd_feature_does_not_block_the_rest(tmp_path: Path) -> None:
    source = rewarded(tmp_path / "source", {"next.reward": 9})
    done = convert(ConvertConfig(source, tmp_path / "data"))
    assert set(EpisodeStore(tmp_path / "data").features) == set(REWARDED) - {"next.reward"}
    assert done.episodes == 3 and done.left_out == {} and list(done.left_out_features) == ["next.reward"]
    assert "episode 1: next.reward is not finite at frame 5" in done.left_out_features["next.reward"]
    with pytest.raises(DataError, match=r"episode 1: next.reward is not finite .*--skip-damaged"):
        convert(ConvertConfig(source, tmp_path / "kept", keep=("next.reward", "action")))
    done = convert(ConvertConfig(source, tmp_path / "kept", keep=("next.reward", "action"), skip_damaged=True))
    assert list(done.left_out) == [1] and set(EpisodeStore(tmp_path / "kept").features) == {"next.reward", "action"}


def test_the_state_and_the_action_are_never_left_out(tmp_path: Path) -> None:
    for key in ("observation.state", "action"):
        source = rewarded(tmp_path / key, {key: 9})
        with pytest.raises(DataError, match=rf"episode 1: {key} is not finite .*--skip-damaged"):
            convert(ConvertConfig(source, tmp_path / "data"))
        shutil.rmtree(tmp_path / ".data.partial")


def test_what_was_left_out_stays_so_after_a_kill(tmp_path: Path, monkeypatch) -> None:
    source = rewarded(tmp_path / "source", {"next.reward": 5})
    with monkeypatch.context() as patch:
        patch.setattr(EpisodeWriter, "append", at(4, EpisodeWriter.append, Killed()))  # the second after the new start
        with pytest.raises(Killed):
            convert(ConvertConfig(source, tmp_path / "data"))
    told: list[Progress] = []
    assert list(convert(ConvertConfig(source, tmp_path / "data"), told.append).left_out_features) == ["next.reward"]
    assert [p.done for p in told if p.stage == "converting"] == [2, 3]


def test_a_conversion_that_wrote_nothing_does_not_keep_its_name(tmp_path: Path, monkeypatch) -> None:
    source = record(tmp_path / "source")
    not_finite(source / "episode_1.hdf5")
    for file in ("episode_1", "episode_0"):
        (source / f"{file}.hdf5").rename(source / f"{'episode_0' if file == 'episode_1' else 'episode_1'}x.hdf5")
    for file in ("episode_0", "episode_1"):
        (source / f"{file}x.hdf5").rename(source / f"{file}.hdf5")
    with pytest.raises(DataError, match=r"episode 0.*--skip-damaged"):
        convert(ConvertConfig(source, tmp_path / "data"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]
    with monkeypatch.context() as patch:
        patch.setattr(EpisodeWriter, "append", kill)
        with pytest.raises(Killed):
            convert(ConvertConfig(source, tmp_path / "data"))
    assert convert(ConvertConfig(source, tmp_path / "data", skip_damaged=True)).episodes == 2


def test_an_interrupt_says_what_is_kept(tmp_path: Path, monkeypatch) -> None:
    source = record(tmp_path / "source")
    monkeypatch.setattr(EpisodeWriter, "append", at(3, EpisodeWriter.append, KeyboardInterrupt()))
    with pytest.raises(Interrupted, match=r"2 converted episodes are kept in .*\.data\.partial: the same command"):
        convert(ConvertConfig(source, tmp_path / "data"))


@pytest.mark.parametrize(
    "hostile",
    [
        lambda path: path.write_text("x"),
        lambda path: path.symlink_to("/nowhere"),
        os.mkfifo,
        lambda path: (path.mkdir(), (path / "conversion.json").write_text("{")),
        lambda path: (path.mkdir(), (path / "conversion.json").write_text('{"settings": 3}')),
        lambda path: (path.mkdir(), (path / "conversion.json").write_text("[1]")),
        lambda path: (path.mkdir(), (path / "conversion.json").write_text('{"settings": {}, "left_out": {"1": []}}')),
        lambda path: (path.mkdir(), os.mkfifo(path / "conversion.json")),
    ],
)
def test_what_else_lies_at_the_place_of_the_unfinished_result_is_told_and_kept(tmp_path: Path, hostile) -> None:
    source = record(tmp_path / "source")
    hostile(tmp_path / ".data.partial")
    with pytest.raises((ValueError, OSError), match=r"\.data\.partial") as error:
        convert(ConvertConfig(source, tmp_path / "data"))
    assert "\n" not in str(error.value) and "remove" in str(error.value)
    assert os.path.lexists(tmp_path / ".data.partial") and not (tmp_path / "data").exists()


@pytest.mark.parametrize("to", ["lerobot", "aloha", "diffusion-policy"])
def test_seeds_survive_every_conversion_and_back(tmp_path: Path, to: str) -> None:
    features = {key: REWARDED[key] for key in ("observation.state", "action")}
    provenance = {"seeds": [0, 7], "collected": {"env": "x"}}
    writer = EpisodeWriter(tmp_path / "store", features, 50.0, provenance)
    writer.append({key: np.ones((4, *f.shape), np.float32) for key, f in features.items()}, "reach", {"seeds": [0, 9]})
    writer.finish()
    convert(ConvertConfig(tmp_path / "store", tmp_path / "there", to=to))
    assert open_reader(tmp_path / "there").provenance["seeds"] == [0, 9]
    convert(ConvertConfig(tmp_path / "there", tmp_path / "back"))
    found = EpisodeStore(tmp_path / "back").provenance
    assert found["seeds"] == [0, 9] and found["collected"] == {"env": "x"}


class Sized:
    """A data set whose cameras change their size from one episode, or one frame, to the next."""

    path, format, fps, robot, left_out, remarks, provenance, episodes = Path("sized"), "test", 10.0, None, {}, (), {}, 2

    def __init__(self, within: bool = False) -> None:
        self._within = within
        self.features = {
            "action": Feature((2,), "float32"),
            "observation.images.top": Feature((6, 8, 3), "uint8"),
            "observation.images.depth": Feature((6, 8, 1), "uint16"),
        }

    def select(self, keys: Any) -> None:
        self.features = {key: feature for key, feature in self.features.items() if key in keys}

    def length(self, episode: int) -> int:
        return 3

    def read_episode(self, episode: int) -> Episode:
        columns: dict[str, Any] = {"action": np.ones((3, 2), np.float32)}
        for key in self.features.keys() - {"action"}:
            depth = self.features[key].is_depth
            frames = [np.full((6, 8, 1 if depth else 3), 7 * depth, np.uint16 if depth else np.uint8) for _ in range(3)]
            frames = [frame * np.arange(2, dtype=frame.dtype).repeat(4)[:, None] * 100 for frame in frames]
            if not self._within and episode == 1:
                frames = [frame.repeat(2, 0) for frame in frames]
            if self._within and episode == 1:
                frames[2] = frames[2].repeat(2, 1)
            columns[key] = Frames((3, *frames[0].shape), lambda frames=frames: iter(frames), dtype=frames[0].dtype)
        return Episode({key: columns[key] for key in self.features}, ["x"] * 3)


@pytest.mark.parametrize("within", [False, True])
def test_cameras_of_several_sizes_are_resized_or_named(tmp_path: Path, monkeypatch, within: bool) -> None:
    (tmp_path / "source.hdf5").touch()
    monkeypatch.setattr(module, "open_reader", lambda *_: Sized(within))
    done = convert(ConvertConfig(tmp_path / "source.hdf5", tmp_path / "data"))
    expected = "is 6x16 in frame 2 of episode 1" if within else "is 12x8 in episode 1"
    assert set(done.left_out_features) == {"observation.images.top", "observation.images.depth"}
    assert all(f"{expected}, 6x8 before: --resize" in why for why in done.left_out_features.values())
    done = convert(ConvertConfig(tmp_path / "source.hdf5", tmp_path / "resized", resize="3x6"))
    store = EpisodeStore(tmp_path / "resized")
    assert done.left_out_features == {} and store.features["observation.images.top"].shape == (3, 6, 3)
    depth = store.episode(1)["observation.images.depth"]
    assert depth.shape == (3, 3, 6, 1) and depth.dtype == np.uint16 and set(depth.ravel().tolist()) == {0, 700}


def test_timestamps_of_another_rate_are_refused(tmp_path: Path) -> None:
    features = {"timestamp": Feature((), "float64"), "action": Feature((2,), "float32")}
    writer = create_writer("diffusion-policy", tmp_path / "source", Recording(features, None))
    for start in (0.0, 1e9):
        times = start + np.arange(40) / 50 + 0.004 * np.sin(np.arange(40))
        writer.append({"timestamp": times, "action": np.ones((40, 2), np.float32)}, "x")
    with pytest.raises(DataError, match=r"episode 0: the timestamps do not keep 30 frames a second"):
        convert(ConvertConfig(tmp_path / "source", tmp_path / "data", fps=30))
    assert convert(ConvertConfig(tmp_path / "source", tmp_path / "data", fps=50)).episodes == 2


def test_timestamps_that_count_no_seconds_are_left_out(tmp_path: Path) -> None:
    features = {"timestamp": Feature((), "int64"), "action": Feature((2,), "float32")}
    writer = create_writer("diffusion-policy", tmp_path / "source", Recording(features, None))
    times = 1_700_000_000_000_000_000 + (np.arange(40) * 2e7).astype(np.int64)
    writer.append({"timestamp": times, "action": np.ones((40, 2), np.float32)}, "x")
    done = convert(ConvertConfig(tmp_path / "source", tmp_path / "data", fps=50))
    assert "is in nanoseconds, expected seconds" in done.left_out_features["timestamp"]
    with pytest.raises(DataError, match="do not keep 30 frames a second"):
        convert(ConvertConfig(tmp_path / "source", tmp_path / "other", fps=30))


LIMITED = """
import resource, sys
from robostack.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize("to", FORMATS)
def test_a_limit_on_the_size_of_files_is_one_line_in_every_format(tmp_path: Path, to: str) -> None:
    """As on a full disk: the file that does not fit is not written, and what stood before stays."""
    source = record(tmp_path / "source", "aloha" if to != "aloha" else "diffusion-policy", size=(64, 96))
    command = ["convert", str(source), str(tmp_path / "data"), "--to", to]
    command += ["--images", "png"] if to == "lerobot" else []
    run = [sys.executable, "-c", LIMITED]
    ended = subprocess.run([*run, "20000", *command], capture_output=True, text=True)
    said = [line for line in ended.stderr.splitlines() if line.strip() and "converting" not in line]
    assert ended.returncode == 1 and "Traceback" not in ended.stderr and len(said) == 1, ended.stderr
    assert "the disk is full at" in said[0] and not (tmp_path / "data").exists()
    assert convert(ConvertConfig(source, tmp_path / "data", to=to, images="png" * (to == "lerobot"))).episodes == 3


def test_a_source_whose_bytes_changed_is_told_by_its_checksums(tmp_path: Path) -> None:
    convert(ConvertConfig(record(tmp_path / "source"), tmp_path / "store"))
    file = tmp_path / "store" / "action" / "c" / "0" / "0"
    file.write_bytes(file.read_bytes()[:-5000].replace(file.read_bytes()[:8], b"\1" * 8, 1) + file.read_bytes()[-5000:])
    with pytest.raises(DataError, match=r"episode 0.*action.*checksum|action.*checksum"):
        convert(ConvertConfig(tmp_path / "store", tmp_path / "data", to="diffusion-policy"))
    assert not (tmp_path / "data").exists()
