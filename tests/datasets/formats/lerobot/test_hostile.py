"""LeRobot data sets that would have frames of another episode, files elsewhere, or all of the memory: one line each."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from old_lerobot import TOP, camera, encoded, number_of, numbers, write_bars, write_old

from robostack.datasets.episodes import DataError, Feature
from robostack.datasets.formats.convert import ConvertConfig, convert
from robostack.datasets.formats.lerobot.reader import LeRobotReader
from robostack.datasets.formats.lerobot.writer import LeRobotWriter

LENGTHS = (10, 12, 9, 11)
FILM = f"videos/{TOP}/chunk-000/file-000.mp4"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
DATA = "data/chunk-000/file-000.parquet"


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    """Four episodes in one video of 10 frames a second, whose pictures count on."""
    path = tmp_path_factory.mktemp("many") / "data"
    features = {"action": Feature((2,), "float32"), TOP: Feature((64, 64, 3), "uint8")}
    writer = LeRobotWriter(path, features, fps=10, codec="libx264")
    for length in LENGTHS:
        writer.append({"action": np.zeros((length, 2), np.float32), TOP: np.zeros((length, 64, 64, 3), np.uint8)}, "go")
    writer.finish()
    write_bars(path / FILM, [i / 10 for i in range(sum(LENGTHS))])
    return path


def change(path: Path, **columns: Callable[[list[float]], list[float]]) -> None:
    table = pq.ParquetFile(path / EPISODES).read()
    for name, new in columns.items():
        name = {"start": f"videos/{TOP}/from_timestamp", "end": f"videos/{TOP}/to_timestamp"}.get(name, name)
        values = new(table.column(name).to_pylist())
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values))
    pq.write_table(table, path / EPISODES)


def shifted(by: float, *episodes: int) -> Callable[[list[float]], list[float]]:
    return lambda values: [value + by * (index in episodes) for index, value in enumerate(values)]


def told(path: Path) -> dict[int, str]:
    """What is wrong with the camera of each episode; those that read have their own frames."""
    reader, wrong = LeRobotReader(path), {}
    for index in range(reader.episodes):
        first = sum(LENGTHS[:index])
        try:
            read = [number_of(frame) for frame in reader.read_episode(index).columns[TOP]]
            assert read == list(range(first, first + LENGTHS[index]))
        except DataError as error:
            wrong[index] = str(error)
            assert f"episode {index}" in str(error) and "\n" not in str(error)
    return wrong


def test_windows_that_tile_the_video_are_read(many):
    assert told(many) == {}


@pytest.mark.parametrize("by", [0.2, -0.2, 0.06, -0.06, 3.0])
@pytest.mark.parametrize("episode", [0, 1, 2, 3])
@pytest.mark.parametrize("ends", ["start", "both"])
def test_frames_of_another_episode_are_never_taken(many, tmp_path, by, episode, ends):
    path = shutil.copytree(many, tmp_path / "data")
    move = shifted(by, episode)
    change(path, **({"start": move} if ends == "start" else {"start": move, "end": move}))
    wrong = told(path)
    assert episode in wrong
    assert all("cannot be its own" in text or "ends before" in text for text in wrong.values())
    assert len(wrong) <= max(2, len(LENGTHS) - episode)


@pytest.mark.parametrize("by", [0.02, -0.02])
def test_windows_within_half_a_period_are_the_episodes(many, tmp_path, by):
    path = shutil.copytree(many, tmp_path / "data")
    change(path, start=shifted(by, 1, 2), end=shifted(by, 1, 2))
    assert told(path) == {}


def test_windows_that_change_places_are_refused(many, tmp_path):
    path = shutil.copytree(many, tmp_path / "data")
    change(path, start=lambda v: [v[0], v[2], v[1], v[3]], end=lambda v: [v[0], v[2], v[1], v[3]])
    assert set(told(path)) >= {1, 2}


def test_a_window_whose_episode_is_missing_takes_nobody_elses(many, tmp_path):
    path = shutil.copytree(many, tmp_path / "data")
    for missing in (0, 2):
        table = pq.ParquetFile(many / EPISODES).read()
        rows = [index for index in range(4) if index != missing]
        pq.write_table(table.take(rows), path / EPISODES)
        reader = LeRobotReader(path)
        assert reader.remarks[0].startswith("meta/info.json says 4 episodes") and "no such episode" in reader.remarks[1]
        for index, number in enumerate(rows):
            first = sum(LENGTHS[:number])
            read = [number_of(frame) for frame in reader.read_episode(index).columns[TOP]]
            assert read == list(range(first, first + LENGTHS[number]))


def test_old_sets_say_no_ends(many, tmp_path):
    path = shutil.copytree(many, tmp_path / "data")
    table = pq.ParquetFile(path / EPISODES).read()
    pq.write_table(table.drop([f"videos/{TOP}/to_timestamp"]), path / EPISODES)
    assert told(path) == {}
    change(path, start=shifted(0.2, 1))
    assert 1 in told(path)


@pytest.mark.parametrize("odd", [None, float("nan"), float("inf"), -1.0, 1e300])
@pytest.mark.parametrize("name", ["start", "end"])
def test_impossible_windows_cost_their_episode(many, tmp_path, odd, name):
    path = shutil.copytree(many, tmp_path / "data")
    change(path, **{name: lambda values: [values[0], odd, *values[2:]]})
    assert (odd is None and name == "end") or 1 in told(path)


@pytest.mark.parametrize("name", ["length", "dataset_from_index", "dataset_to_index", "data/file_index"])
@pytest.mark.parametrize("odd", [None, -1, 10**15])
def test_impossible_places_cost_their_episode(many, tmp_path, odd, name):
    path = shutil.copytree(many, tmp_path / "data")
    change(path, **{name: lambda values: [values[0], odd, *values[2:]]})
    reader = LeRobotReader(path)
    with pytest.raises(DataError, match="episode 1: "):
        reader.read_episode(1)
    reader.read_episode(0)
    reader.read_episode(2)


# Files elsewhere


def edit(path: Path, **changes: object) -> None:
    info = json.loads((path / "meta/info.json").read_text())
    (path / "meta/info.json").write_text(json.dumps({**info, **changes}))


@pytest.mark.parametrize(
    "template",
    [
        "../{video_key}.mp4",
        "/etc/{video_key}",
        "{video_key:0999999999d}",
        "{chunk_index:0999999999d}",
        "{video_key.__class__}",
        "{0}",
        "{",
        "x" * 100_000,
        "",
        5,
        ["a"],
        "videos/\0",
    ],
)
def test_templates_lead_nowhere_else(many, tmp_path, template):
    path = shutil.copytree(many, tmp_path / "data")
    edit(path, video_path=template)
    reader = LeRobotReader(path)
    assert template == "" or list(reader.left_out) == [TOP]
    reader.read_episode(0)
    edit(path, data_path=template)
    if template:
        with pytest.raises(DataError, match="meta cannot be read"):
            LeRobotReader(path)


def test_names_of_features_lead_nowhere_else(tmp_path):
    film = tmp_path / "film.mp4"
    write_bars(film, [i / 10 for i in range(8)])
    for key in ("../../../film.mp4/..", "..", "a/../../b"):
        described = {key: {"dtype": "video", "shape": [64, 64, 3], "names": None}}
        reader = LeRobotReader(write_old(tmp_path / key.replace("/", "_").replace(".", "-"), described))
        assert list(reader.left_out) == [key] and "leads out of" in reader.left_out[key]


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "images/../../secret.png", "pipe", "folder", "\0"])
def test_pictures_lie_in_the_data_set(tmp_path, name):
    (tmp_path / "secret.png").write_bytes(encoded(np.zeros((16, 20, 3), np.uint8))["bytes"])
    cell = {"bytes": None, "path": name}
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    path = write_old(tmp_path / "data", {TOP: camera()}, lambda e, n: {TOP: pa.array([cell] * n, kind)})
    os.mkfifo(path / "pipe")
    (path / "folder").mkdir()
    with pytest.raises(DataError, match=r"episode 0: .*frame 0: .*(leads out of|no regular file)"):
        list(LeRobotReader(path).read_episode(0).columns[TOP])


@pytest.mark.parametrize(
    "file", ["meta/info.json", "meta/tasks.jsonl", "meta/episodes.jsonl", "data/chunk-000/episode_000000.parquet"]
)
def test_pipes_and_devices_are_not_opened(tmp_path, file):
    for number, make in enumerate((os.mkfifo, lambda at: os.symlink("/dev/zero", at), os.mkdir)):
        path = write_old(tmp_path / str(number))
        (path / file).unlink()
        make(path / file)
        with pytest.raises(DataError) as error:
            LeRobotReader(path).read_episode(0)
        assert "\n" not in str(error.value)
    linked = write_old(tmp_path / "linked")
    shutil.move(linked / file, tmp_path / "elsewhere")
    (linked / file).symlink_to(tmp_path / "elsewhere")  # its owner made it
    LeRobotReader(linked).read_episode(0)


# Sizes


def test_of_a_huge_row_group_only_the_episodes_rows_are_kept(many, tmp_path, monkeypatch):
    monkeypatch.setattr("robostack.datasets.formats.lerobot.tables.LARGEST_KEPT", 10)
    path = shutil.copytree(many, tmp_path / "data")
    table = pq.ParquetFile(path / DATA).read()
    more = pa.concat_tables([table, *[table.slice(0, 1)] * 1000])
    pq.write_table(more, path / DATA)
    reader = LeRobotReader(path)
    for index in (2, 0, 1, 3):
        assert len(reader.read_episode(index).columns["action"]) == LENGTHS[index]
    assert reader._tables._kept is None


def test_a_file_of_other_length_is_not_read(tmp_path):
    path = write_old(tmp_path / "data")
    rows = 5_000_000
    columns = {key: np.zeros(rows, np.int64) for key in ("frame_index", "episode_index", "task_index")}
    pq.write_table(pa.table(columns), path / "data/chunk-000/episode_000000.parquet")
    with pytest.raises(DataError, match=r"episode 0: the file has 5000000 rows, the episode 8"):
        LeRobotReader(path).read_episode(0)


def test_lists_of_many_numbers_a_frame_are_not_unpacked(tmp_path):
    def columns(episode: int, length: int) -> dict:
        kind = pa.list_(pa.int8())
        return {"odd": pa.array([np.zeros(300_000, np.int8)] * length, kind)}

    path = write_old(tmp_path / "data", {"odd": numbers("int8", [3])}, columns)
    with pytest.raises(DataError, match="odd has 2,400,000 numbers in 8 frames, expected 3 each"):
        LeRobotReader(path).read_episode(0)
    assert list(convert(ConvertConfig(path, tmp_path / "out")).left_out_features) == ["odd"]


def test_a_small_picture_that_unpacks_to_a_large_one_is_not_unpacked(tmp_path):
    bomb = encoded(np.zeros((9000, 9000), np.uint8))
    assert len(bomb["bytes"]) < 200_000
    path = write_old(tmp_path / "data", {TOP: camera()}, lambda e, n: {TOP: [bomb] * n})
    with pytest.raises(DataError, match=r"episode 0: .*frame 0: the picture has 9000×9000 pixels, more than"):
        list(LeRobotReader(path).read_episode(0).columns[TOP].read())  # pyright: ignore[reportAttributeAccessIssue]


def test_large_metadata_is_not_read(tmp_path, monkeypatch):
    path = write_old(tmp_path / "data")
    monkeypatch.setattr("robostack.datasets.formats.lerobot.layout.read_json", lambda file: _too_large(file))
    with pytest.raises(DataError, match="expected at most"):
        LeRobotReader(path)


def _too_large(file: Path) -> object:
    from robostack.common.files import read_json

    return read_json(file, largest=10)
