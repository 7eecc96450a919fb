"""The store gives back what it was given, and tells when it cannot."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import FEATURES, make_episode, write

from robostack.datasets.episodes import DataError
from robostack.datasets.store import EpisodeStore, EpisodeWriter


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 12), min_size=1, max_size=4))
def test_round_trip(tmp_path: Path, lengths: list[int]) -> None:
    shutil.rmtree(tmp_path / "data", ignore_errors=True)
    episodes = write(tmp_path / "data", lengths)
    store = EpisodeStore(tmp_path / "data")
    assert store.features == FEATURES and store.fps == 50 and store.provenance == {"seeds": [0, len(lengths) - 1]}
    assert np.diff(store.episode_ends, prepend=0).tolist() == lengths
    assert [store.tasks[i] for i in store.episode_task] == [f"task {i % 2}" for i in range(len(lengths))]
    for i, episode in enumerate(episodes):
        read = store.episode(i)
        assert all(np.array_equal(read[key], episode[key]) and read[key].dtype == episode[key].dtype for key in episode)
    indices = np.array([[0, store.frames - 1], [0, 0]])
    key = "observation.images.top"
    assert np.array_equal(store.gather(key, indices), store.read(key)[indices])


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


@pytest.mark.parametrize("stage", ["observation.state", "action", "episode_ends", "episode_task"])
def test_a_kill_loses_the_episode_in_flight_alone(tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "data"
    writer = EpisodeWriter(path, FEATURES, fps=50)
    kept = make_episode(4)
    writer.append(kept, "task")
    extend = writer._extend

    def killed(key: str, start: int, rows: np.ndarray) -> None:
        extend(key, start, rows[:1])
        if key == stage:
            raise KeyboardInterrupt

    monkeypatch.setattr(writer, "_extend", killed)
    with pytest.raises(KeyboardInterrupt):
        writer.append(make_episode(4, seed=1), "task")
    store = EpisodeStore(path)
    assert store.episodes == 1
    assert all(np.array_equal(store.episode(0)[key], kept[key]) for key in kept)


def test_a_truncated_store_is_named(tmp_path: Path) -> None:
    def damaged(name: str) -> Path:
        write(tmp_path / name, [4, 5])
        return tmp_path / name

    path = damaged("chunk gone")
    os.remove(path / "observation.images.top" / "c" / "3" / "0" / "0" / "0")
    with pytest.raises(DataError, match=r"truncated: observation.images.top: chunk 'c/3/0/0/0' is missing"):
        EpisodeStore(path).read("observation.images.top")

    path = damaged("chunk cut")
    chunk = path / "action" / "c" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:20])
    with pytest.raises(DataError, match="truncated: action"):
        EpisodeStore(path).read("action")

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

    with pytest.raises(DataError, match="not a robostack data set"):
        EpisodeStore(tmp_path / "nowhere")


def test_a_missing_feature_is_named_with_what_there_is(tmp_path: Path) -> None:
    write(tmp_path / "data", [4])
    with pytest.raises(DataError, match=r"lacks observation.depth: it has observation.state"):
        EpisodeStore(tmp_path / "data").require(["observation.depth"])
