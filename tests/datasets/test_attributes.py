"""A store may come from anybody: what is wrong with it is one line, and nothing outside it is touched."""

import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from support import FEATURES, make_episode, write

from robostack.datasets.attributes import Attributes
from robostack.datasets.episodes import DataError, Feature
from robostack.datasets.store import EpisodeStore, EpisodeWriter

NAN, HUGE = float("nan"), 10**12


def store_at(path: Path) -> Path:
    write(path, [4, 5])
    EpisodeWriter.resume(path).finish()
    return path


def change(file: Path, change: Callable[[Any], None]) -> None:
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


def refused(path: Path) -> str:
    """What opening and reading everything of a store says, in one line."""
    with pytest.raises(DataError) as told:
        store = EpisodeStore(path)
        store.statistics()
        store.relative_statistics(50)
        store.verify()
        for episode in range(store.episodes):
            store.read_episode(episode)
    line = str(told.value)
    assert "\n" not in line and line.isprintable() and len(line) < 700, line
    return line


WRONG = ([], {}, "x", -1, 0.5, True, None, NAN, HUGE, [[]], {"x": 1}, 1e300, -HUGE, "\ud800", "../x")


@pytest.mark.parametrize(
    "name", ["fps", "robot", "features", "tasks", "provenance", "statistics", "episodes", "segments"]
)
def test_attributes_of_another_kind_are_one_line(tmp_path: Path, name: str) -> None:
    path = store_at(tmp_path / "data")
    whole = (path / "zarr.json").read_text()
    fine = {"fps": [0.5], "robot": ["x", "../x", None], "provenance": [{}, {"x": 1}], "statistics": [None]}
    for wrong in WRONG:
        change(path / "zarr.json", lambda group, wrong=wrong: group["attributes"].update({name: wrong}))
        if any(wrong == value and type(wrong) is type(value) for value in fine.get(name, [])):
            EpisodeStore(path).statistics()
        else:
            refused(path)
        (path / "zarr.json").write_text(whole)
    change(path / "zarr.json", lambda group: group["attributes"].pop(name))
    assert name in refused(path)


@pytest.mark.parametrize("wrong", [0, NAN, -1, 1e300, float("inf"), True, "50"])
def test_a_rate_that_cannot_be_is_refused_and_not_written(tmp_path: Path, wrong: Any) -> None:
    path = store_at(tmp_path / "data")
    change(path / "zarr.json", lambda group: group["attributes"].update(fps=wrong))
    assert "frames a second" in refused(path) or "fps" in refused(path)
    if isinstance(wrong, float | int) and wrong is not True:
        with pytest.raises(DataError, match="frames a second"):
            EpisodeWriter(tmp_path / "new", FEATURES, wrong)
        assert not (tmp_path / "new").exists()


def test_the_format_is_looked_at_first(tmp_path: Path) -> None:
    path = store_at(tmp_path / "data")
    change(path / "zarr.json", lambda group: group.update(attributes={"format": "robostack-episodes-9", "fps": []}))
    assert "expected format 'robostack-episodes-2', got \"robostack-episodes-9\"" in refused(path)


def test_attributes_that_others_added_are_left_alone(tmp_path: Path) -> None:
    path = store_at(tmp_path / "data")
    change(path / "zarr.json", lambda group: group["attributes"].update(note="mine"))
    writer = EpisodeWriter.resume(path)
    writer.append(make_episode(3), "task")
    assert EpisodeStore(path).episodes == 3
    assert json.loads((path / "zarr.json").read_text())["attributes"]["note"] == "mine"


def test_features_written_before_a_field_was_known_have_its_default(tmp_path: Path) -> None:
    path = store_at(tmp_path / "data")
    change(path / "zarr.json", lambda group: group["attributes"]["features"]["action"].pop("units"))
    assert EpisodeStore(path).features == FEATURES


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "/etc", "a/../../x", "a//b", "a/", "./a", "zarr.json", "a/zarr.json", "episode_ends", "x\0",
     "segment_task/x", "x" * 300, "action/c/0", "action/x", "\ud800"],
)  # fmt: skip
def test_no_feature_has_a_name_that_leads_elsewhere(tmp_path: Path, name: str) -> None:
    features = {**FEATURES, name: FEATURES["action"]}
    with pytest.raises(DataError):
        EpisodeWriter(tmp_path / "new", features, 50)
    assert not list(tmp_path.iterdir())
    path = store_at(tmp_path / "data")
    secret = tmp_path / "x"  # what a name that leads out of the store would reach
    shutil.copytree(path / "action", secret)
    change(
        path / "zarr.json",
        lambda group: group["attributes"]["features"].update({name: group["attributes"]["features"]["action"]}),
    )
    refused(path)


NAMES = ("rgb.left_wrist", "left/wrist", "left wrist", "type", "[red]", "a\nb", "\x1b[31m", "Kamera ü 相机", "c")
NAMES += ("back\\slash", "%41", "a.b/c.d e/f")


def test_any_other_name_is_kept(tmp_path: Path) -> None:
    camera = FEATURES["observation.images.top"]
    features = {"action": FEATURES["action"], **{f"observation.images.{name}": camera for name in NAMES}}
    features |= {name: Feature((2,), "float32", (name, name + "2"), (name, "m")) for name in NAMES}
    writer = EpisodeWriter(tmp_path / "data", features, 50, robot="type")
    rng = np.random.default_rng(0)
    episode = {key: rng.integers(0, 255, (3, *f.shape)).astype(f.dtype) for key, f in features.items()}
    writer.append(episode, "\x1b[31m[red]\u2028\n")
    writer.finish()
    store = EpisodeStore(tmp_path / "data")
    store.verify()
    assert store.features == features and store.tasks == ("\x1b[31m[red]\u2028\n",)
    assert all(np.array_equal(store.episode(0)[key], rows) for key, rows in episode.items())
    # Zarr reads them by name as well, but for the one separator that it takes for a slash.
    group = zarr.open_group(str(tmp_path / "data"), mode="r")
    for key, rows in episode.items():
        if "\\" not in key:
            assert np.array_equal(np.asarray(group[key]), rows)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changed", "wrong"),
    [
        ("shape", [HUGE, 2]), ("shape", [-1, 2]), ("shape", [9, HUGE]), ("shape", [9]), ("shape", []), ("shape", "x"),
        ("shape", [9.5, 2]), ("shape", [9, 0]), ("shape", [True, 2]), ("data_type", "float64"), ("data_type", "O"),
        ("data_type", {"name": "numpy.datetime64"}), ("data_type", None), ("chunk_grid", {}), ("chunk_grid", []),
        ("chunk_grid", {"name": "regular", "configuration": {"chunk_shape": [0, 2]}}),
        ("chunk_grid", {"name": "regular", "configuration": {"chunk_shape": [1, 2]}}),
        ("chunk_grid", {"name": "regular", "configuration": {"chunk_shape": [HUGE**2, 2]}}),
        ("chunk_grid", {"name": "regular", "configuration": {"chunk_shape": [65536, 1]}}),
        ("chunk_grid", {"name": "rectilinear", "configuration": {"chunk_shape": [65536, 2]}}),
        ("chunk_key_encoding", {"name": "v2"}), ("codecs", []), ("codecs", [{"name": "gzip"}]), ("codecs", "bytes"),
        ("codecs", [{"name": "bytes", "configuration": {"endian": "big"}}]), ("codecs", [1]),
        ("zarr_format", 2), ("node_type", "group"), ("storage_transformers", [{"name": "x"}]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("key", ["action", "episode_ends"])
def test_arrays_that_are_not_as_they_are_written_are_one_line(tmp_path: Path, changed: str, wrong: Any, key) -> None:
    path = store_at(tmp_path / "data")
    change(path / key / "zarr.json", lambda array: array.update({changed: wrong}))
    if changed == "shape" and wrong == [HUGE, 2] and key == "action":
        EpisodeStore(path).verify()  # a writer that was killed before the episode counted may leave more
    else:
        refused(path)


@pytest.mark.parametrize("name", ["zarr.json", "action/zarr.json", "action/c/0/0", "episode_ends/c/0"])
@pytest.mark.parametrize("put", ["pipe", "device", "folder", "loop", "socketless name"])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, name: str, put: str) -> None:
    path = store_at(tmp_path / "data")
    (path / name).unlink()
    match put:
        case "pipe":
            os.mkfifo(path / name)
        case "device":
            (path / name).symlink_to("/dev/zero")
        case "folder":
            (path / name).mkdir()
        case "loop":
            (path / name).symlink_to(path / name)
        case _:
            (path / name).symlink_to(tmp_path / "nowhere")
    refused(path)


def test_a_pipe_that_takes_the_place_of_a_chunk_later_is_not_waited_for(tmp_path: Path) -> None:
    path = store_at(tmp_path / "data")
    store = EpisodeStore(path)
    (path / "action" / "c" / "0" / "0").unlink()
    os.mkfifo(path / "action" / "c" / "0" / "0")
    with pytest.raises(DataError, match="action: chunk c/0/0 is missing"):
        store.read("action")


def test_a_link_to_a_file_of_the_users_is_fine(tmp_path: Path) -> None:
    path = store_at(tmp_path / "data")
    for name in ("zarr.json", "action/c/0/0"):
        moved = tmp_path / name.replace("/", "-")
        (path / name).rename(moved)
        (path / name).symlink_to(moved)
    EpisodeStore(path).verify()


def test_a_file_of_nothing_but_holes_does_not_fill_the_memory(tmp_path: Path) -> None:
    path = store_at(tmp_path / "data")
    rows = 10**11
    for key in ("episode_ends", "segment_ends", "segment_task"):
        os.truncate(path / key / "c" / "0", rows * 8 + 4)
        change(
            path / key / "zarr.json",
            lambda array: array.update(
                shape=[rows], chunk_grid={"name": "regular", "configuration": {"chunk_shape": [rows]}}
            ),
        )
    change(path / "zarr.json", lambda group: group["attributes"].update(episodes=rows, segments=rows))
    assert "do not rise" in refused(path)


def test_a_segment_has_one_of_the_tasks(tmp_path: Path) -> None:
    path = store_at(tmp_path / "data")
    change(path / "zarr.json", lambda group: group["attributes"].update(tasks=["only one"]))
    assert "a segment has none of the 1 tasks" in refused(path)


@pytest.mark.parametrize("wrong", [NAN, float("inf"), "x", None, True, [1.0]])
@pytest.mark.parametrize("name", ["mean", "std", "q01", "count"])
def test_statistics_that_cannot_be_are_one_line(tmp_path: Path, name: str, wrong: Any) -> None:
    path = store_at(tmp_path / "data")

    def spoil(group: Any) -> None:
        values = group["attributes"]["statistics"]["features"]["action"]
        values[name] = [wrong, 1.0] if name != "count" else wrong

    change(path / "zarr.json", spoil)
    assert "statistics cannot be read" in refused(path)


def test_a_file_that_is_too_large_or_too_deep_is_one_line(tmp_path: Path) -> None:
    path = store_at(tmp_path / "data")
    whole = (path / "zarr.json").read_text()
    for content in (
        "[" * 100_000,
        '{"attributes": ' * 50_000,
        "1" * 5000,
        "",
        "null",
        "[]",
        "{}",
        whole[:99],
        "\xff\0",
    ):
        (path / "zarr.json").write_text(content, encoding="latin-1")
        refused(path)
    os.truncate(path / "zarr.json", 1 << 40)  # of holes
    assert "bytes, expected at most" in refused(path)


def test_what_is_no_store_is_said_in_one_line(tmp_path: Path) -> None:
    assert refused(tmp_path / "nowhere").endswith("nowhere is not a robostack data set: it does not exist")
    (tmp_path / "empty").mkdir()
    assert refused(tmp_path / "empty").endswith("it is an empty folder")
    (tmp_path / "file").write_text("text")
    assert "expected a folder with zarr.json" in refused(tmp_path / "file")
    (tmp_path / "lerobot" / "meta").mkdir(parents=True)
    (tmp_path / "lerobot" / "meta" / "info.json").write_text("{}")
    assert "it holds the format lerobot; `robostack convert" in refused(tmp_path / "lerobot")
    os.mkfifo(tmp_path / "pipe")
    assert "neither a folder nor a file" in refused(tmp_path / "pipe")


def test_attributes_are_read_as_they_were_written(tmp_path: Path) -> None:
    read = Attributes.read(store_at(tmp_path / "data"))
    assert read.features == FEATURES and read.fps == 50 and type(read.fps) is int and read.segments == 2
    assert stat.S_ISREG((tmp_path / "data" / "zarr.json").stat().st_mode)


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb"])
def test_a_text_that_is_no_unicode_is_refused_and_nothing_written(tmp_path: Path, text: str) -> None:
    writer = EpisodeWriter(tmp_path / "data", FEATURES, 50)
    with pytest.raises(DataError, match="no Unicode text"):
        writer.append(make_episode(3), text)
    assert EpisodeStore(tmp_path / "data").episodes == 0
