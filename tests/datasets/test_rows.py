"""Rows are read by many threads at once, and checksums tell what is not what was written."""

import json
import os
import shutil
import threading
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import FEATURES, make_episode, write

from robostack.datasets import rows as rows_module
from robostack.datasets.episodes import DataError, Feature
from robostack.datasets.formats.convert import ConvertConfig, VerificationError, convert
from robostack.datasets.inspection.survey import inspect
from robostack.datasets.store import INDEX, EpisodeStore, EpisodeWriter


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "ROWS_A_CHUNK", 7)
    monkeypatch.setattr(rows_module, "IMAGES_A_CHUNK", 5)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("most", [1, 3])
def test_threads_read_right_rows_with_few_open_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_chunks: None, most: int
) -> None:
    monkeypatch.setattr(rows_module, "OPEN_FILES", most)
    episodes = write(tmp_path / "data", [40, 50, 60])
    whole = {key: np.concatenate([episode[key] for episode in episodes]) for key in FEATURES}
    store, wrong = EpisodeStore(tmp_path / "data"), []

    def hammer(seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            for _ in range(60):
                key = list(FEATURES)[rng.integers(len(FEATURES))]
                starts = rng.integers(150 - 9, size=16)
                if not np.array_equal(store.windows(key, starts, 9), whole[key][starts[:, None] + np.arange(9)]):
                    wrong.append(key)
                first = int(rng.integers(100))
                if not np.array_equal(store.read(key, first, first + 30), whole[key][first : first + 30]):
                    wrong.append(key)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=hammer, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_all_stores_together_hold_no_more_files_open_than_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_chunks: None
) -> None:
    monkeypatch.setattr(rows_module, "OPEN_FILES", 5)
    for name in "abc":
        write(tmp_path / name, [50])
    rows_module._OPEN.clear()
    before = open_files()
    stores = [EpisodeStore(tmp_path / name) for name in "abc"]
    for store in stores:
        store.episode(0)
    assert before < open_files() <= before + 5
    del stores, store
    assert open_files() == before


def test_wide_rows_have_chunks_of_a_bounded_size(tmp_path: Path) -> None:
    """A depth image is no vector of a few joints."""
    depth = {"action": Feature((2,), "float32"), "observation.depth": Feature((480, 640), "uint16")}
    EpisodeWriter(tmp_path / "data", depth, 10).append(
        {"action": np.zeros((2, 2), np.float32), "observation.depth": np.ones((2, 480, 640), np.uint16)}, "task"
    )
    assert max(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 20e6


# Checksums


def read_with_zarr(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a store, which Zarr holds to their checksums."""
    return {key: np.asarray(zarr.open_array(str(path / key), mode="r")[:]) for key in (*INDEX, *FEATURES)}


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def without_checksums(path: Path) -> None:
    """The store as it was written before there were checksums."""
    for key in (*INDEX, *FEATURES):
        described = json.loads((path / key / "zarr.json").read_text())
        described["codecs"] = described["codecs"][:1]
        (path / key / "zarr.json").write_text(json.dumps(described))
        for chunk in (path / key / "c").rglob("*"):
            if chunk.is_file():
                os.truncate(chunk, chunk.stat().st_size - 4)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(st.integers(1, 17), st.sampled_from(["whole", "fails", "killed"])), max_size=6))
def test_checksums_are_right_whatever_was_cut_off(tmp_path_factory, small_chunks: None, steps) -> None:
    path = tmp_path_factory.mktemp("made") / "data"
    writer, kept = EpisodeWriter(path, FEATURES, 50), []
    for seed, (length, ends) in enumerate(steps):
        episode = make_episode(length, seed)
        if ends == "whole":
            writer.append(episode, "task")
            kept.append(episode)
            read_with_zarr(path)  # whole although nobody has finished it
        else:
            last = writer._rows[INDEX[-1]]
            written = last.write

            def stop(start: int, blocks: Iterable[np.ndarray], written=written) -> int:
                written(start, blocks)  # all is written, and nothing counted
                raise KeyboardInterrupt

            last.write = stop
            with pytest.raises(KeyboardInterrupt):
                writer.append(episode, "other")
            EpisodeStore(path).verify()  # at any moment
            last.write = written
            if ends == "killed":
                writer = EpisodeWriter.resume(path)
    writer.append(make_episode(3, 99), "task")
    writer.finish()
    kept.append(make_episode(3, 99))
    EpisodeStore(path).verify()
    read = read_with_zarr(path)
    for key in FEATURES:
        assert np.array_equal(read[key], np.concatenate([episode[key] for episode in kept]))


@pytest.mark.parametrize("key", [*INDEX, *FEATURES])
@pytest.mark.parametrize("place", ["first row", "checksum"])
def test_a_flipped_bit_is_told_with_its_array_and_chunk(tmp_path: Path, small_chunks: None, key: str, place) -> None:
    write(tmp_path / "data", [9] * 8)
    chunk = min(path for path in (tmp_path / "data" / key / "c").rglob("*") if path.is_file())
    name = chunk.relative_to(tmp_path / "data" / key)
    flip(chunk, 0 if place == "first row" else -1)
    with pytest.raises(ValueError, match="checksum"):
        read_with_zarr(tmp_path / "data")
    if key in INDEX and place == "first row":
        with pytest.raises(DataError, match="is damaged: "):
            EpisodeStore(tmp_path / "data").verify()
        return
    store = EpisodeStore(tmp_path / "data")
    store.episode(0)  # reading alone does not look
    for episode in (None, 0):
        with pytest.raises(DataError, match=rf"is damaged: {key}: chunk {name} .*does not match its checksum"):
            store.verify(episode)


def test_a_damaged_chunk_concerns_its_own_episodes_alone(tmp_path: Path, small_chunks: None) -> None:
    write(tmp_path / "data", [7, 7, 7])
    flip(tmp_path / "data" / "action" / "c" / "1" / "0", 0)
    store = EpisodeStore(tmp_path / "data")
    for read in (store.verify, store.read_episode):
        for episode in (0, 2):
            read(episode)
        with pytest.raises(DataError, match=r"action: chunk c/1/0 \(rows 7 to 13\)"):
            read(1)


def test_inspect_and_convert_hold_chunks_to_their_checksums(tmp_path: Path, small_chunks: None) -> None:
    write(tmp_path / "data", [7, 7, 7])
    flip(tmp_path / "data" / "action" / "c" / "1" / "0", 0)
    problems = inspect(EpisodeStore(tmp_path / "data")).problems
    assert [problem.episodes for problem in problems if "checksum" in problem.text] == [(1,)]
    config = ConvertConfig(tmp_path / "data", tmp_path / "new", to="diffusion-policy")
    with pytest.raises(DataError, match=r"episode 1: .*action: chunk c/1/0 .*checksum"):
        convert(config)
    shutil.rmtree(tmp_path / ".new.partial")
    assert list(convert(replace(config, skip_damaged=True)).left_out) == [1]


def test_a_conversion_whose_result_the_disk_garbles_is_not_a_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "data", [7, 7])
    convert(ConvertConfig(tmp_path / "data", tmp_path / "other", to="diffusion-policy"))
    finish = EpisodeWriter.finish

    def garbled(writer: EpisodeWriter) -> None:
        finish(writer)
        flip(writer.path / "observation.images.top" / "c" / "0" / "0" / "0" / "0", 6 * 5 * 3 * 4)  # no frame compared

    monkeypatch.setattr(EpisodeWriter, "finish", garbled)
    with pytest.raises(VerificationError, match=r"observation.images.top: chunk c/0/0/0/0 .*checksum"):
        convert(ConvertConfig(tmp_path / "other", tmp_path / "new", fps=50))


def test_nothing_is_added_to_a_chunk_that_is_damaged(tmp_path: Path) -> None:
    write(tmp_path / "data", [7])
    flip(tmp_path / "data" / "action" / "c" / "0" / "0", 0)
    with pytest.raises(DataError, match="does not match its checksum"):
        EpisodeWriter.resume(tmp_path / "data").append(make_episode(3), "task")


def test_a_store_without_checksums_is_read_and_continued(tmp_path: Path, small_chunks: None) -> None:
    episodes = [*write(tmp_path / "data", [9, 12]), make_episode(11, 5)]
    without_checksums(tmp_path / "data")
    EpisodeStore(tmp_path / "data").verify()
    writer = EpisodeWriter.resume(tmp_path / "data")
    writer.append(episodes[2], "task")
    writer.finish()
    store, read = EpisodeStore(tmp_path / "data"), read_with_zarr(tmp_path / "data")
    store.verify()
    for key in FEATURES:
        whole = np.concatenate([episode[key] for episode in episodes])
        assert np.array_equal(store.read(key), whole) and np.array_equal(read[key], whole)


@pytest.mark.parametrize("change", [{"fill_value": [1]}, {"chunk_key_encoding": {"name": "odd"}}])
def test_what_zarr_cannot_write_to_is_refused_before_a_row_is_written(tmp_path: Path, change: dict) -> None:
    write(tmp_path / "data", [9])
    described = tmp_path / "data" / "action" / "zarr.json"
    described.write_text(json.dumps(json.loads(described.read_text()) | change))
    with pytest.raises(DataError, match=r"action") as told:
        EpisodeWriter.resume(tmp_path / "data")
    assert "\n" not in str(told.value)
