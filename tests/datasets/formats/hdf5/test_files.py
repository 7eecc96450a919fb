"""HDF5 recordings of every kind that people have, and such as would lead out of the file or burst a machine."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from robostack.datasets.episodes import DataError, Feature, FeatureError
from robostack.datasets.formats import open_reader
from robostack.datasets.formats.convert import ConvertConfig, convert
from robostack.datasets.formats.hdf5.reader import Hdf5Reader
from robostack.datasets.store import EpisodeStore

T = 6
RNG = np.random.default_rng(0)


def pixels(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def png(picture: np.ndarray) -> np.ndarray:
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "png")
    return np.frombuffer(data.getvalue(), np.uint8)


def one_arm(file: Path, **more: Any) -> None:
    """What a recorder of one arm leaves, without velocities; `more` are other arrays by path, with / as __."""
    file.parent.mkdir(exist_ok=True)
    with h5py.File(file, "w") as root:
        root["observations/qpos"] = RNG.normal(size=(T, 7))
        root["action"] = RNG.normal(size=(T, 7))
        for path, rows in more.items():
            if (path := path.replace("__", "/")) in root:
                del root[path]
            root[path] = rows


def rows(reader: Any, episode: int = 0) -> dict[str, np.ndarray]:
    columns = reader.read_episode(episode).columns
    return {key: r if isinstance(r, np.ndarray) else np.stack(list(r)) for key, r in columns.items()}


def test_cameras_have_any_name_and_form(tmp_path: Path) -> None:
    rgb, gray, rgba, depth = pixels(T, 8, 9, 3), pixels(T, 8, 9), pixels(T, 8, 9, 4), pixels(T, 8, 9).astype("u2") * 9
    file = tmp_path / "data" / "episode_0.hdf5"
    one_arm(file, **{
        "observations__images__front cam": rgb, "observations__images__cam.wrist": gray,
        "observations__images__first": rgb.transpose(0, 3, 1, 2), "observations__images__alpha": rgba,
        "observations__images__unit": (rgb / 255).astype("f4"), "observations__images__float": rgb.astype("f8"),
        "observations__images_depth__top": depth, "observations__depth_images__top": depth[..., None],
        "observations__images__depth": depth,
    })  # fmt: skip
    with h5py.File(file, "r+") as root:
        encoded = root.create_dataset("observations/images/png", (T,), dtype=h5py.vlen_dtype(np.uint8))
        for i in range(T):
            encoded[i] = png(rgb[i])
    reader = open_reader(tmp_path / "data")
    read = rows(reader)
    expected = {"front cam": rgb, "first": rgb, "alpha": rgba[..., :3], "unit": rgb, "float": rgb}
    expected |= {"cam.wrist": np.repeat(gray[..., None], 3, -1), "png": rgb[..., ::-1]}
    expected |= dict.fromkeys(("top_depth", "depth", "top_images_depth"), depth[..., None])
    for name, pictures in expected.items():
        assert np.array_equal(read[f"observation.images.{name}"], pictures), name
    assert reader.features["observation.images.top_depth"] == Feature((8, 9, 1), "uint16", units=("mm",))
    convert(ConvertConfig(tmp_path / "data", tmp_path / "store", fps=50, task="x"))
    stored = EpisodeStore(tmp_path / "store").episode(0)
    assert all(np.array_equal(stored[key], read[key]) for key in read)


def test_an_action_more_than_states_is_trimmed_with_a_line(tmp_path: Path) -> None:
    one_arm(tmp_path / "data" / "episode_0.hdf5", action=RNG.normal(size=(T + 1, 7)), rewards=np.arange(T + 1.0))
    reader = Hdf5Reader(tmp_path / "data")
    read = rows(reader)
    assert {len(column) for column in read.values()} == {T} and reader.length(0) == T
    assert read["next.reward"].tolist() == [0, 1, 2, 3, 4, 5]
    done = convert(ConvertConfig(tmp_path / "data", tmp_path / "store", fps=50, task="x"))
    assert done.remarks == ("action has one row more than the observations: its last is left out (episode 0)",)
    one_arm(tmp_path / "data" / "episode_0.hdf5", action=RNG.normal(size=(T + 2, 7)))
    with pytest.raises(FeatureError, match=r"observation.state has 6 frames, action 8"):
        Hdf5Reader(tmp_path / "data").read_episode(0)


def test_a_frame_more_than_states_is_trimmed_with_a_line(tmp_path: Path) -> None:
    one_arm(tmp_path / "data" / "episode_0.hdf5", observations__images__top=pixels(T + 1, 8, 9, 3))
    episode = Hdf5Reader(tmp_path / "data").read_episode(0)
    assert {len(column) for column in episode.columns.values()} == {T}
    assert episode.remarks == ("observation.images.top has one row more than action: its last is left out",)


def test_an_episode_of_nothing_leaves_itself_out(tmp_path: Path) -> None:
    for i in (0, 1, 3):
        one_arm(tmp_path / "data" / f"episode_{i}.hdf5")
    nothing = np.zeros((0, 7))
    one_arm(tmp_path / "data" / "episode_1.hdf5", observations__qpos=nothing, action=nothing)
    (tmp_path / "data" / "episode_2.hdf5").touch()
    done = convert(ConvertConfig(tmp_path / "data", tmp_path / "store", fps=50, task="x"))
    assert done.episodes == 2 and [line.split("/")[-1] for line in done.remarks] == [
        "episode_1.hdf5 has no frames: the episode is left out"
    ]
    assert "episode_2.hdf5, episode 1 is truncated or damaged: the file is empty" in done.left_out[1]


def test_what_some_episodes_have_is_left_out_with_a_line(tmp_path: Path) -> None:
    for i in range(3):
        more = {"base_action": np.ones((T, 2))} if i != 1 else {}
        one_arm(
            tmp_path / "data" / f"episode_{i}.hdf5", **more, **({"observations__extra": np.ones(T)} if i == 1 else {})
        )
    done = convert(ConvertConfig(tmp_path / "data", tmp_path / "store", fps=50, task="x"))
    assert done.left_out_features == {
        "base_action": "is in 2 of 3 episodes, with entries (2,)",
        "observation.extra": "is in 1 of 3 episodes",
    }
    assert EpisodeStore(tmp_path / "store").features["action"].shape == (7,)


def test_odd_arrays_do_not_block_the_rest(tmp_path: Path) -> None:
    one_arm(tmp_path / "data" / "episode_0.hdf5", observations__note=[b"x"] * T, observations__z=np.ones(T, complex))
    with h5py.File(tmp_path / "data" / "episode_0.hdf5", "r+") as root:
        root["observations"].create_dataset("blob", (T,), dtype=h5py.vlen_dtype(np.float32))
        root["observations/group/deep/value"] = np.ones((T, 2, 2), bool)
    reader = Hdf5Reader(tmp_path / "data")
    assert set(reader.left_out) == {"observation.note", "observation.z", "observation.blob"}
    assert reader.features["observation.group.deep.value"] == Feature((2, 2), "bool")
    assert len(rows(reader)["action"]) == T


def test_files_of_any_name_are_read_in_natural_order(tmp_path: Path) -> None:
    for i, name in enumerate(("run10.h5", "run9.hdf5", "b.hdf5")):
        one_arm(tmp_path / "data" / name, action=np.full((T, 7), i))
    (tmp_path / "data" / "notes.txt").touch()
    reader = open_reader(tmp_path / "data")
    assert [rows(reader, i)["action"][0, 0] for i in range(3)] == [2, 1, 0]


def robomimic(file: Path, demos: tuple[int, ...] = (10, 2)) -> None:
    with h5py.File(file, "w") as root:
        data = root.create_group("data")
        data.attrs["env_args"] = '{"env_name": "Lift", "env_kwargs": {"control_freq": 20, "robots": ["Panda"]}}'
        for k in demos:
            demo = data.create_group(f"demo_{k}")
            demo["actions"], demo["rewards"], demo["dones"] = np.full((T, 7), k, "f8"), np.zeros(T), np.zeros(T, int)
            demo["states"] = np.ones((T, 5))
            demo["obs/robot0_eef_pos"], demo["next_obs/robot0_eef_pos"] = np.ones((T, 3)), np.ones((T, 3))
            demo["obs/agentview_image"] = pixels(T, 8, 9, 3)
        root["mask/train"] = [b"demo_2"]


def test_robomimic_is_read_with_its_rate_and_robot(tmp_path: Path) -> None:
    robomimic(tmp_path / "low_dim.hdf5")
    reader = open_reader(tmp_path / "low_dim.hdf5")
    assert (reader.format, reader.fps, reader.robot, reader.episodes) == ("robomimic HDF5", 20.0, "Panda", 2)
    assert set(reader.features) == {
        "action", "next.reward", "next.done", "states", "observation.robot0_eef_pos",
        "observation.images.agentview_image",
    }  # fmt: skip
    assert rows(reader)["action"][0, 0] == 2  # demo_2 before demo_10
    assert set(reader.left_out) == {"next_obs"}
    done = convert(ConvertConfig(tmp_path / "low_dim.hdf5", tmp_path / "store", task="lift"))
    assert done.episodes == 2 and EpisodeStore(tmp_path / "store").fps == 20


def test_the_rate_and_task_of_libero_are_read(tmp_path: Path) -> None:
    robomimic(tmp_path / "task.hdf5")
    with h5py.File(tmp_path / "task.hdf5", "r+") as root:
        root["data"].attrs["problem_info"] = '{"language_instruction": "open the drawer"}'
    assert set(open_reader(tmp_path / "task.hdf5").read_episode(0).task) == {"open the drawer"}
    for wrong in ("[", "[1]", '{"env_kwargs": 3}', '{"env_kwargs": {"control_freq": -1}}', "[" * 100_000):
        with h5py.File(tmp_path / "task.hdf5", "r+") as root:
            root["data"].attrs["env_args"] = wrong
        with (
            pytest.raises(DataError, match="none of 1 episodes can be read")
            if wrong != "[1]"
            else pytest.raises(DataError, match="expected an object") as error
        ):
            open_reader(tmp_path / "task.hdf5")
        assert "\n" not in str(error.value)


def test_maniskill_has_an_observation_more(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "t.h5", "w") as root:
        for k in range(2):
            demo = root.create_group(f"traj_{k}")
            demo["actions"], demo["terminated"] = np.ones((T, 8), "f4"), np.zeros(T, bool)
            demo["obs/agent/qpos"] = np.arange(T + 1.0)[:, None] * np.ones(9)
            demo["obs/sensor_data/base/rgb"] = pixels(T + 1, 8, 9, 3)
            demo["obs/sensor_data/base/depth"] = np.full((T + 1, 8, 9, 1), 700, np.int16)
    reader = open_reader(tmp_path / "t.h5")
    assert reader.format == "ManiSkill HDF5"
    read = rows(reader)
    assert {len(column) for column in read.values()} == {T}
    assert read["observation.agent.qpos"][-1, 0] == T - 1
    assert read["observation.images.sensor_data.base.depth"].max() == 700
    assert reader.features["observation.images.sensor_data.base.rgb"].is_image
    assert convert(ConvertConfig(tmp_path / "t.h5", tmp_path / "store", fps=20, task="x")).episodes == 2


def external_link(root: Any, secret: Path) -> None:
    root["observations/x"] = h5py.ExternalLink(str(secret), "/secret")


def external_group(root: Any, secret: Path) -> None:
    root["observations/x"] = h5py.ExternalLink(str(secret), "/")


def soft_through_external(root: Any, secret: Path) -> None:
    external_group(root, secret)
    root["observations/y"] = h5py.SoftLink("/observations/x/secret")


def virtual(root: Any, secret: Path) -> None:
    layout = h5py.VirtualLayout((T, 3), "f8")
    layout[:] = h5py.VirtualSource(str(secret), "secret", (T, 3))
    root.create_virtual_dataset("observations/x", layout)


def external_storage(root: Any, secret: Path) -> None:
    root["observations"].create_dataset("x", (T, 3), "f8", external=[(str(secret), 0, T * 24)])


def virtual_pipe(root: Any, secret: Path) -> None:
    os.mkfifo(secret.with_name("pipe"))
    layout = h5py.VirtualLayout((T, 3), "f8", maxshape=(None, 3))
    layout[:] = h5py.VirtualSource(str(secret.with_name("pipe")), "secret", (T, 3))
    root.create_virtual_dataset("observations/x", layout)


def endless_group(root: Any, secret: Path) -> None:
    root["observations/again"] = root["/"]
    root["observations/soft"] = h5py.SoftLink("/observations/soft")


def huge(root: Any, secret: Path) -> None:
    root["observations"].create_dataset("x", (T, 1 << 40), "f8", chunks=(1, 1 << 20))


def huge_chunk(root: Any, secret: Path) -> None:
    x = root["observations"].create_dataset("x", (T, 1 << 28), "f8", chunks=(T, 1 << 27), compression="gzip")
    del x


def packed_twice(root: Any, secret: Path) -> None:
    made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    made.set_chunk((T, 3))
    made.set_deflate(9)
    made.set_deflate(9)
    space = h5py.h5s.create_simple((T, 3))
    array = h5py.Dataset(h5py.h5d.create(root["observations"].id, b"x", h5py.h5t.NATIVE_DOUBLE, space, made))
    array[...] = 1


def bomb(root: Any, secret: Path) -> None:
    import zlib

    x = root["observations"].create_dataset("x", (T, 3), "f8", chunks=(T, 3), compression="gzip")
    x.id.write_direct_chunk((0, 0), zlib.compress(bytes(64 << 20)))


def references(root: Any, secret: Path) -> None:
    x = root["observations"].create_dataset("x", (T,), dtype=h5py.ref_dtype)
    x[:] = root["action"].ref


@pytest.mark.parametrize(
    "hostile",
    [external_link, external_group, soft_through_external, virtual, virtual_pipe, external_storage, endless_group, huge,
     huge_chunk, packed_twice, bomb, references],
)  # fmt: skip
def test_nothing_outside_of_the_file_or_without_bound_is_read(tmp_path: Path, hostile: Callable[..., None]) -> None:
    with h5py.File(tmp_path / "secret.h5", "w") as root:
        root["secret"] = np.full((T, 3), 42.0)
    one_arm(tmp_path / "data" / "episode_0.hdf5")
    with h5py.File(tmp_path / "data" / "episode_0.hdf5", "r+") as root:
        hostile(root, tmp_path / "secret.h5")
    limited = "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (3 << 30,) * 2);"
    limited += "from robostack.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", limited, "convert", str(tmp_path / "data"), str(tmp_path / "store")]
    ended = subprocess.run([*command, "--fps", "50", "--task", "x"], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0 and "Traceback" not in ended.stderr, ended.stderr
    store = EpisodeStore(tmp_path / "store")
    assert set(store.features) == {"observation.state", "action"}
    if hostile is not endless_group:
        assert "left out: observation" in ended.stderr


@pytest.mark.parametrize("name", ["action", "observations/qpos"])
def test_an_action_that_lies_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    with h5py.File(tmp_path / "secret.h5", "w") as root:
        root["secret"] = np.full((T, 7), 42.0)
    one_arm(tmp_path / "data" / "episode_0.hdf5")
    with h5py.File(tmp_path / "data" / "episode_0.hdf5", "r+") as root:
        del root[name]
        root[name] = h5py.ExternalLink("../secret.h5", "/secret")
    key = {"action": "action"}.get(name, "observation.state")
    reader = Hdf5Reader(tmp_path / "data")
    assert key not in reader.features and "link out of the file" in reader.left_out[key]
    with pytest.raises(DataError, match=rf"{key} is not read: .* \(--drop {key} goes on without it\)"):
        convert(ConvertConfig(tmp_path / "data", tmp_path / "store", fps=50, task="x"))


def test_links_within_the_file_are_followed(tmp_path: Path) -> None:
    one_arm(tmp_path / "data" / "episode_0.hdf5")
    with h5py.File(tmp_path / "data" / "episode_0.hdf5", "r+") as root:
        root["elsewhere/tip"] = np.full((T, 3), 7.0)
        root["observations/tip"] = h5py.SoftLink("/elsewhere/tip")
    assert rows(Hdf5Reader(tmp_path / "data"))["observation.tip"][0, 0] == 7


def test_pipes_and_devices_are_not_opened(tmp_path: Path) -> None:
    one_arm(tmp_path / "data" / "episode_0.hdf5")
    os.mkfifo(tmp_path / "data" / "episode_1.hdf5")
    (tmp_path / "data" / "episode_2.hdf5").symlink_to("/dev/zero")
    reader = Hdf5Reader(tmp_path / "data")
    assert len(rows(reader)["action"]) == T
    for episode in (1, 2):
        with pytest.raises(DataError, match="is no regular file"):
            reader.read_episode(episode)
