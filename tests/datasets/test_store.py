"""The store gives back what it was given, and tells when it cannot."""

import errno
import os
import re
import resource
import shutil
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import FEATURES, make_episode, write

from robostack.common.files import DiskFullError
from robostack.datasets import store as store_module
from robostack.datasets.episodes import DataError, Frames
from robostack.datasets.store import FRAMES_AT_ONCE, EpisodeStore, EpisodeWriter


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 12), min_size=1, max_size=4))
def test_round_trip(tmp_path: Path, lengths: list[int]) -> None:
    shutil.rmtree(tmp_path / "data", ignore_errors=True)
    episodes = write(tmp_path / "data", lengths)
    store = EpisodeStore(tmp_path / "data")
    assert store.features == FEATURES and store.fps == 50 and store.provenance == {"seeds": [0, len(lengths) - 1]}
    assert np.diff(store.episode_ends, prepend=0).tolist() == lengths
    assert [store.tasks[i] for i in store.tasks_at(store.episode_starts)] == [
        f"task {i % 2}" for i in range(len(lengths))
    ]
    for i, episode in enumerate(episodes):
        read = store.episode(i)
        assert all(np.array_equal(read[key], episode[key]) and read[key].dtype == episode[key].dtype for key in episode)
    frames = np.array([0, store.frames - 1, 0, 0])
    key = "observation.images.top"
    assert np.array_equal(store.gather(key, frames), store.read(key)[frames])


def test_zeros_are_data_and_not_missing(tmp_path: Path) -> None:
    episode = {key: np.zeros_like(rows) for key, rows in make_episode(5).items()}
    EpisodeWriter(tmp_path / "data", FEATURES, fps=50).append(episode, "task")
    assert not EpisodeStore(tmp_path / "data").read("observation.images.top").any()


def test_a_data_set_is_never_overwritten(tmp_path: Path) -> None:
    write(tmp_path / "data", [4])
    with pytest.raises(FileExistsError, match="already exists"):
        EpisodeWriter(tmp_path / "data", FEATURES, fps=50)
    assert EpisodeStore(tmp_path / "data").frames == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e.pop("action"), "lacks action"),
        (lambda e: e.update(extra=e["action"]), "extra"),
        (lambda e: e.update(action=e["action"][:-1]), "expected"),
        (lambda e: e.update(action=e["action"].astype(np.float64)), "float32"),
        (lambda e: e["action"].__setitem__((2, 1), np.nan), "action is not finite at frame 2"),
        (lambda e: e.update({key: rows[:0] for key, rows in e.items()}), "no frames"),
    ],
)
def test_an_unfit_episode_is_refused_and_nothing_written(tmp_path: Path, change, message: str) -> None:
    writer = EpisodeWriter(tmp_path / "data", FEATURES, fps=50)
    writer.append(make_episode(4), "task")
    episode = make_episode(4, seed=1)
    change(episode)
    with pytest.raises(DataError, match=message):
        writer.append(episode, "task")
    assert EpisodeStore(tmp_path / "data").frames == 4


@pytest.mark.parametrize("stage", [*FEATURES, "episode_ends", "segment_ends", "segment_task"])
def test_a_kill_loses_the_episode_in_flight_alone_and_resuming_goes_on(tmp_path: Path, stage: str) -> None:
    path = tmp_path / "data"
    writer = EpisodeWriter(path, FEATURES, fps=50)
    episodes = [make_episode(4, seed) for seed in range(3)]
    writer.append(episodes[0], "task")
    write = writer._rows[stage].write

    def killed(start: int, blocks: Iterable[np.ndarray]) -> int:
        write(start, [next(iter(blocks))[:1]])
        raise KeyboardInterrupt

    writer._rows[stage].write = killed
    with pytest.raises(KeyboardInterrupt):
        writer.append(episodes[1], "another task")
    store = EpisodeStore(path)
    assert store.episodes == 1 and store.tasks == ("task",)
    assert all(np.array_equal(store.episode(0)[key], episodes[0][key]) for key in FEATURES)

    resumed = EpisodeWriter.resume(path)
    assert resumed.episodes == 1
    assert resumed.append(episodes[2], "a third task") == 1
    resumed.finish()
    store = EpisodeStore(path)
    assert store.tasks == ("task", "a third task") and store.frames == 8
    assert all(np.array_equal(store.episode(1)[key], episodes[2][key]) for key in FEATURES)


def test_a_disk_that_fills_loses_the_episode_in_flight_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = EpisodeWriter(tmp_path / "data", FEATURES, fps=50)
    writer.append(make_episode(4), "task")

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(DiskFullError, match=r"the disk is full at .*data: its 1 whole episodes are kept"):
            writer.append(make_episode(4, seed=1), "another task", {"seeds": [0, 1]})
    writer.append(make_episode(5, seed=2), "task")
    store = EpisodeStore(tmp_path / "data")
    assert store.tasks == ("task",) and store.provenance == {}
    assert [store.length(i) for i in range(store.episodes)] == [4, 5]
    assert np.array_equal(store.episode(1)["action"], make_episode(5, seed=2)["action"])


@contextmanager
def full_disk(largest_file: int) -> Iterator[None]:
    """No file of this process can grow beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("limit", [0, 10, 2000, 1 << 17])
@pytest.mark.parametrize("stage", ["append", "finish"])
def test_what_was_whole_survives_a_full_disk_and_is_gone_on_with(tmp_path: Path, limit: int, stage: str) -> None:
    writer = EpisodeWriter(tmp_path / "data", FEATURES, 50)
    for seed in range(2):
        writer.append(make_episode(9, seed), "task")
    if stage == "append" or limit < 10_000:
        kept = "the disk is full at " + str(tmp_path / "data") + ": its 2 whole episodes are kept"
        with pytest.raises(DiskFullError, match=re.escape(kept)), full_disk(limit):
            writer.append(make_episode(9, 99), "task") if stage == "append" else writer.finish()
    EpisodeStore(tmp_path / "data").verify()
    writer = EpisodeWriter.resume(tmp_path / "data")
    writer.append(make_episode(9, 2), "task")
    writer.finish()
    store = EpisodeStore(tmp_path / "data")
    store.verify()
    for episode in range(3):
        assert np.array_equal(store.episode(episode)["action"], make_episode(9, episode)["action"])


def test_a_disk_that_is_full_at_once_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(DiskFullError, match="the disk is full at"), full_disk(10):
        EpisodeWriter(tmp_path / "data", FEATURES, 50)
    write(tmp_path / "data", [4])  # the path is free
    assert EpisodeStore(tmp_path / "data").episodes == 1


def test_an_empty_folder_is_free(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write(tmp_path / "data", [4])
    assert EpisodeStore(tmp_path / "data").episodes == 1 and [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_writer_that_is_killed_while_it_begins_leaves_the_path_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store_module, "os", SimpleNamespace(replace=killed))
        with pytest.raises(KeyboardInterrupt):
            EpisodeWriter(tmp_path / "data", FEATURES, fps=50)
    write(tmp_path / "data", [4])
    assert EpisodeStore(tmp_path / "data").episodes == 1 and [path.name for path in tmp_path.iterdir()] == ["data"]


def test_all_that_counts_is_on_the_disk_before_it_is_said_to_be_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Order at a power cut: every file and folder, then the attributes with the statistics, then their folder."""
    write(tmp_path / "data", [4, 5])
    writer, order = EpisodeWriter.resume(tmp_path / "data"), list[str]()
    sync, update = store_module.sync, writer._group.update_attributes
    monkeypatch.setattr(store_module, "sync", lambda path: (order.append(str(path)), sync(path)))
    monkeypatch.setattr(zarr.Group, "update_attributes", lambda _, new: (order.append("statistics"), update(new)))
    writer.finish()
    before, after = order[: order.index("statistics")], order[order.index("statistics") + 1 :]
    assert {str(path) for path in (tmp_path / "data").rglob("*")} | {str(tmp_path), str(tmp_path / "data")} == set(
        before
    )
    assert after == [str(tmp_path / "data" / "zarr.json"), str(tmp_path / "data")]


def test_a_finished_store_that_goes_on_has_the_statistics_of_all(tmp_path: Path) -> None:
    write(tmp_path / "data", [4])
    EpisodeWriter.resume(tmp_path / "data").finish()
    writer = EpisodeWriter.resume(tmp_path / "data")
    writer.append(make_episode(5, 3), "task", {"seeds": [0, 3]})
    assert EpisodeStore(tmp_path / "data").statistics()["action"].count == 9
    writer.finish()
    store = EpisodeStore(tmp_path / "data")
    assert store.statistics()["action"].count == 9 and store.provenance == {"seeds": [0, 3]}


def test_zarr_reads_the_same_arrays(tmp_path: Path) -> None:
    episodes = write(tmp_path / "data", [4, 5])
    group = zarr.open_group(str(tmp_path / "data"), mode="r")
    for key in FEATURES:
        array = group[key]
        assert isinstance(array, zarr.Array)
        assert np.array_equal(array[:], np.concatenate([episode[key] for episode in episodes]))


def test_rows_across_chunk_borders_are_those_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robostack.datasets.rows.ROWS_A_CHUNK", 7)
    monkeypatch.setattr("robostack.datasets.rows.OPEN_FILES", 2)
    episodes = write(tmp_path / "data", [30, 12, 9])
    whole = np.concatenate([episode["action"] for episode in episodes])
    store = EpisodeStore(tmp_path / "data")
    assert np.array_equal(store.read("action"), whole) and np.array_equal(store.read("action", 6, 8), whole[6:8])
    for length in (1, 5, 20):  # the last spans several chunks
        starts = np.random.default_rng(0).integers(51 - length, size=40)
        assert np.array_equal(store.windows("action", starts, length), whole[starts[:, None] + np.arange(length)])


def test_a_task_may_change_within_an_episode(tmp_path: Path) -> None:
    writer = EpisodeWriter(tmp_path / "data", FEATURES, fps=50)
    writer.append(make_episode(3), "grasp")
    texts = ["grasp", "grasp", "hand over", "hand over", "grasp"]
    writer.append(make_episode(5), texts)
    with pytest.raises(DataError, match="a task text for each of 4 frames, got 2"):
        writer.append(make_episode(4), ["a", "b"])
    store = EpisodeStore(tmp_path / "data")
    assert store.tasks == ("grasp", "hand over")
    assert store.tasks_at(np.arange(8)).tolist() == [0, 0, 0, 0, 0, 1, 1, 0]
    assert list(store.read_episode(1).task) == texts


def test_frames_are_written_and_read_a_few_at_a_time(tmp_path: Path) -> None:
    """An episode of images need not fit into memory."""
    episode = make_episode(200)
    images = episode["observation.images.top"]
    alive = {"now": 0, "most": 0}

    def frames() -> Iterator[np.ndarray]:
        for image in images:
            copy = image.copy()
            alive["now"] += 1
            alive["most"] = max(alive.values())
            weakref.finalize(copy, lambda: alive.update(now=alive["now"] - 1))
            yield copy

    writer = EpisodeWriter(tmp_path / "data", FEATURES, fps=50)
    writer.append({**episode, "observation.images.top": Frames(images.shape, frames)}, "task")
    assert alive["most"] <= FRAMES_AT_ONCE + 1
    read = EpisodeStore(tmp_path / "data").read_episode(0).columns["observation.images.top"]
    assert isinstance(read, Frames) and read.shape == images.shape and np.array_equal(np.stack(list(read)), images)


def test_a_source_that_ends_early_is_told_and_not_kept(tmp_path: Path) -> None:
    episode = make_episode(6)
    images = episode["observation.images.top"]
    writer = EpisodeWriter(tmp_path / "data", FEATURES, fps=50)
    with pytest.raises(DataError, match=r"observation.images.top: expected 6 frames, got 4"):
        writer.append({**episode, "observation.images.top": Frames(images.shape, lambda: iter(images[:4]))}, "task")
    assert EpisodeStore(tmp_path / "data").episodes == 0


def test_a_truncated_store_is_named(tmp_path: Path) -> None:
    def damaged(name: str) -> Path:
        write(tmp_path / name, [4, 5])
        return tmp_path / name

    path = damaged("chunk gone")
    os.remove(path / "observation.images.top" / "c" / "0" / "0" / "0" / "0")
    with pytest.raises(DataError, match=r"truncated: observation.images.top: chunk c/0/0/0/0 is missing"):
        EpisodeStore(path)

    path = damaged("chunk cut")
    os.truncate(path / "action" / "c" / "0" / "0", 20)
    with pytest.raises(DataError, match="truncated: action: chunk c/0/0 is missing or cut short"):
        EpisodeStore(path)

    path = damaged("chunk cut while it is read")
    store = EpisodeStore(path)
    os.truncate(path / "action" / "c" / "0" / "0", 20)
    for read in (lambda: store.read("action"), lambda: store.gather("action", np.array([0, 6]))):
        with pytest.raises(DataError, match="truncated: action"):
            read()

    path = damaged("array gone")
    shutil.rmtree(path / "action")
    with pytest.raises(DataError, match="truncated: array action"):
        EpisodeStore(path)

    path = damaged("ends gone")
    shutil.rmtree(path / "episode_ends" / "c")
    with pytest.raises(DataError, match="truncated: episode_ends"):
        EpisodeStore(path)

    path = damaged("metadata cut")
    (path / "zarr.json").write_text((path / "zarr.json").read_text()[:40])
    with pytest.raises(DataError, match="cannot be read"):
        EpisodeStore(path)

    path = damaged("compressed")
    shutil.rmtree(path / "action")
    zarr.open_group(str(path), mode="r+").create_array("action", shape=(9, 2), dtype="float32")
    with pytest.raises(DataError, match="expected an uncompressed Zarr v3 array"):
        EpisodeStore(path)

    with pytest.raises(DataError, match="not a robostack data set"):
        EpisodeStore(tmp_path / "nowhere")


def test_a_missing_feature_is_named_with_what_there_is(tmp_path: Path) -> None:
    write(tmp_path / "data", [4])
    with pytest.raises(DataError, match=r"lacks observation.depth: it has observation.state"):
        EpisodeStore(tmp_path / "data").require(["observation.depth"])
