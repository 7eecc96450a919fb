"""A damaged LeRobot data set: the file and the episode are named, and the other episodes stay readable."""

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support import ARM_FEATURES, arm_tasks, make_arm_episode

from robostack.datasets.episodes import DataError, Feature
from robostack.datasets.formats.convert import ConvertConfig, convert
from robostack.datasets.formats.lerobot import assembly as lerobot_assembly
from robostack.datasets.formats.lerobot.features import read_source
from robostack.datasets.formats.lerobot.reader import LeRobotReader
from robostack.datasets.formats.lerobot.writer import LeRobotWriter
from robostack.datasets.formats.video import read_frames, write_video
from robostack.datasets.inspection.survey import InspectConfig, inspect

LENGTHS = (9, 12, 7)
TOP = "observation.images.top"
DATA = "data/chunk-000/file-{}.parquet"
VIDEO = f"videos/{TOP}/chunk-000/file-{{}}.mp4"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, Path]:
    """The same episodes: each in files of its own as video and as PNG, and all in one file."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        for name, images, limit in (
            ("video", "video", 1),
            ("png", "png", 1),
            ("one", "video", 10**9),
            ("one-png", "png", 10**9),
        ):
            patch.setattr(lerobot_assembly, "DATA_FILE", limit)
            patch.setattr(lerobot_assembly, "VIDEO_FILE", limit)
            writer = LeRobotWriter(folder / name, ARM_FEATURES, fps=25, images=images, codec="libx264")
            for seed, length in enumerate(LENGTHS):
                writer.append(make_arm_episode(length, seed), arm_tasks(length, seed))
            writer.finish()
    return {path.name: path for path in folder.iterdir()}


def read(reader: LeRobotReader, episode: int) -> None:
    columns = reader.read_episode(episode).columns
    assert len(list(columns[TOP])) == len(columns["action"]) == LENGTHS[episode]


def cut(part: float) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        file.write_bytes(file.read_bytes()[: int(part * file.stat().st_size)])

    return change


def overwrite(part: float) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        data = bytearray(file.read_bytes())
        at = int(part * len(data))
        data[at : at + 64] = bytes(64)
        file.write_bytes(bytes(data))

    return change


def shorten(file: Path) -> None:
    frames, _ = read_frames(file)
    write_video(file, frames[:-3], 25)


def halve_rate(file: Path) -> None:
    frames, _ = read_frames(file)
    write_video(file, frames, 20)


def shrink(file: Path) -> None:
    frames, _ = read_frames(file)
    write_video(file, frames[:, ::2, ::2], 25)


def change(key: str, new: Callable[[pa.ChunkedArray], pa.Array]) -> Callable[[Path], None]:
    def rewrite(file: Path) -> None:
        table = pq.ParquetFile(file).read()
        table = table.set_column(table.schema.get_field_index(key), key, new(table.column(key)))
        pq.write_table(table, file)

    return rewrite


def with_picture(data: bytes | None) -> Callable[[pa.ChunkedArray], pa.Array]:
    def new(column: pa.ChunkedArray) -> pa.Array:
        cells = column.to_pylist()
        cells[4] = {"bytes": data, "path": "../../secret.png" if data is None else None}
        return pa.array(cells, column.type)

    return new


def png(mode: str, size: tuple[int, int]) -> bytes:
    data = io.BytesIO()
    Image.effect_noise(size, 50).convert(mode).save(data, "png")
    return data.getvalue()


@pytest.mark.parametrize(
    ("data", "file", "damage", "message"),
    [
        ("video", DATA, Path.unlink, "No such file|Failed to open"),
        ("video", DATA, cut(0.6), "footer|magic bytes"),
        ("video", DATA, cut(0), "size is 0 bytes|too small|Parquet"),
        ("video", DATA, overwrite(0.3), "CRC|page|deserialize"),
        (
            "video",
            DATA,
            lambda f: pq.write_table(pq.ParquetFile(f).read().slice(0, 10), f),
            "10 rows, the episode's are 0 to 11",
        ),
        (
            "video",
            DATA,
            lambda f: pq.write_table(pq.ParquetFile(f).read().drop(["action"]), f),
            "action is not in the table",
        ),
        (
            "video",
            DATA,
            change("action", lambda c: pa.array([[1.0, 2.0, 3.0]] * 12)),
            r"expected shape \(2,\), got \(3,\)",
        ),
        ("video", DATA, change("action", lambda c: pa.array([[1.0, 2.0]] * 11 + [[1.0]])), "ragged"),
        ("video", DATA, change("action", lambda c: pa.array([[1.0, 2.0]] * 11 + [None])), "missing"),
        ("video", DATA, change("action", lambda c: pa.array([["a", "b"]] * 12)), "expected float32, got"),
        ("video", DATA, change("next.done", lambda c: pa.array([7] * 12)), "got int64 that does not fit"),
        ("video", DATA, change("task_index", lambda c: pa.array([44] * 12)), "task_index 44 is not in meta/tasks"),
        ("video", DATA, change("episode_index", lambda c: pa.array([2] * 12)), "its rows are of episode 2"),
        ("video", DATA, change("frame_index", lambda c: pa.array([*range(6), *range(7, 13)])), "frames 0 to 12"),
        ("video", VIDEO, Path.unlink, "No such file"),
        ("video", VIDEO, cut(0.5), ""),
        ("video", VIDEO, cut(0), ""),
        ("video", VIDEO, overwrite(0.9), ""),
        ("video", VIDEO, shorten, "ends before frame 9, due at 0.3600 s; the table has 12 frames"),
        (
            "video",
            VIDEO,
            halve_rate,
            "frame 2 of the video is missing: due at 0.0800 s, the nearest is shown at 0.1000 s",
        ),
        ("video", VIDEO, shrink, "expected a picture of 32×48×3, got 16×24×3: --resize"),
        ("png", DATA, Path.unlink, "No such file|Failed to open"),
        ("png", DATA, cut(0.6), "footer|magic bytes"),
        (
            "png",
            DATA,
            change(TOP, with_picture(b"no picture")),
            "frame 4: the picture is damaged .cannot identify image file.$",
        ),
        ("png", DATA, change(TOP, with_picture(png("RGB", (48, 32))[:600])), "frame 4: "),
        ("png", DATA, change(TOP, with_picture(png("RGB", (32, 48)))), "frame 4: expected .*, got 48×32×3: --resize"),
        ("png", DATA, change(TOP, with_picture(None)), "frame 4: the path '../../secret.png' leads out"),
    ],
)
def test_damage_is_named_and_the_rest_stays_readable(tmp_path, whole, data, file, damage, message):
    path = shutil.copytree(whole[data], tmp_path / "data")
    damage(path / file.format("001"))
    reader = LeRobotReader(path)
    with pytest.raises(DataError, match=rf"{file.format('001')}, episode 1: .*({message})") as told:
        read(reader, 1)
    assert "\n" not in str(told.value)
    read(reader, 0)
    read(reader, 2)


def test_a_file_of_many_episodes_that_ends_early_costs_only_those_it_lacks(tmp_path, whole):
    path = shutil.copytree(whole["one"], tmp_path / "data")
    shorten(path / VIDEO.format("000"))
    table = pq.ParquetFile(path / DATA.format("000")).read()
    reader = LeRobotReader(path)
    read(reader, 0)
    read(reader, 1)
    with pytest.raises(DataError, match="episode 2: the video ends before frame 4"):
        read(reader, 2)
    pq.write_table(table.slice(0, 15), path / DATA.format("000"))  # one row group now, as LeRobot's converters write
    reader = LeRobotReader(path)
    read(reader, 0)
    for episode in (1, 2):
        with pytest.raises(DataError, match=f"file-000.parquet, episode {episode}: the file has 15 rows"):
            read(reader, episode)


@pytest.mark.parametrize(("name", "episode"), [("video", 1), ("one", 2)])
def test_an_inspection_finds_every_video_that_is_too_short_and_decodes_none(tmp_path, whole, name, episode):
    path = shutil.copytree(whole[name], tmp_path / "data")
    shorten(path / VIDEO.format("001" if name == "video" else "000"))
    unreadable = inspect(LeRobotReader(path), InspectConfig(sampled=0, min_frames=0)).problems
    assert [(problem.kind, problem.feature, problem.episodes) for problem in unreadable if problem.feature == TOP] == [
        ("unreadable", TOP, (episode,))
    ]
    assert "the video ends before frame" in str(unreadable[0].text)


def test_one_row_group_of_many_episodes_reads_the_same(tmp_path, whole):
    path = shutil.copytree(whole["one-png"], tmp_path / "data")
    pq.write_table(pq.ParquetFile(path / DATA.format("000")).read(), path / DATA.format("000"))
    reader = LeRobotReader(path)
    for episode in (2, 0, 1):
        columns = reader.read_episode(episode).columns
        for key, rows in make_arm_episode(LENGTHS[episode], episode).items():
            assert np.array_equal(np.stack(list(columns[key])), rows)


def edit(path: Path, **changes) -> None:
    info = json.loads((path / "meta/info.json").read_text())
    (path / "meta/info.json").write_text(json.dumps({**info, **changes}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / "meta/info.json").unlink(), "is not a LeRobot data set"),
        (lambda p: cut(0.5)(p / "meta/info.json"), "info.json cannot be read"),
        (lambda p: (p / "meta/info.json").write_text("[]"), "info.json cannot be read"),
        (lambda p: edit(p, codebase_version="v1.6"), "expected LeRobot v3.0, v2.1, v2.0, got v1.6"),
        (lambda p: edit(p, fps=0), "fps 0.0"),
        (lambda p: edit(p, data_path="/etc/{file_index}"), "leads out of the data set"),
        (lambda p: edit(p, data_path="../{file_index}"), "leads out of the data set"),
        (lambda p: edit(p, data_path="{file_index.__class__}"), "unknown field"),
        (lambda p: edit(p, data_path="{file_index:099999999d}"), "unknown field"),
        (lambda p: (p / "meta/tasks.parquet").unlink(), "meta cannot be read"),
        (lambda p: cut(0.5)(p / "meta/tasks.parquet"), "meta cannot be read"),
        (lambda p: cut(0.5)(p / "meta/episodes/chunk-000/file-000.parquet"), "meta cannot be read"),
        (lambda p: shutil.rmtree(p / "meta/episodes"), "the table of episodes has 0"),
    ],
)
def test_metadata_that_cannot_be_used_is_told_on_opening(tmp_path, whole, damage, message):
    path = shutil.copytree(whole["one"], tmp_path / "data")
    damage(path)
    with pytest.raises(DataError, match=message) as told:
        LeRobotReader(path)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("shape", "names"),
    [
        ([3, 32, 48], ["channels", "height", "width"]),
        ([3, 32, 48], ["channel", "height", "width"]),
        ([32, 48, 3], ["height", "width", "channels"]),
        ([32, 48, 3], ["height", "width", "rgb"]),
        ([3, 32, 48], None),
        ([32, 48, 3], None),
    ],
)
def test_height_and_width_are_told_by_their_names(shape, names):
    assert read_source("top", {"dtype": "video", "shape": shape, "names": names}).feature.shape == (32, 48, 3)


@pytest.mark.parametrize("shape", [[32, 48, 7], [32], [2, 2, 32, 48], [0, 48, 3], None, "large", [32, "x", 3]])
def test_what_cannot_be_pictures_is_refused(shape):
    with pytest.raises(ValueError):
        read_source("top", {"dtype": "image", "shape": shape, "names": None})


@pytest.mark.parametrize("shape", [[32, 48, 1], [32, 48], [1, 32, 48], [32, 48, 4], [4, 32, 48]])
def test_gray_and_rgba_pictures_are_rgb_here(shape):
    assert read_source("top", {"dtype": "image", "shape": shape}).feature == Feature((32, 48, 3), "uint8")


def test_the_source_is_never_changed(whole):
    for path in whole.values():
        before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in path.rglob("*") if file.is_file()}
        reader = LeRobotReader(path)
        for episode in range(3):
            read(reader, episode)
        assert {
            file: (file.read_bytes(), file.stat().st_mtime_ns) for file in path.rglob("*") if file.is_file()
        } == before


@pytest.mark.parametrize("key", ["episode_index", "frame_index", "task_index"])
def test_a_column_of_bookkeeping_that_is_no_number_costs_its_episode_alone(tmp_path, whole, key: str) -> None:
    source = shutil.copytree(whole["png"], tmp_path / "data")
    file = source / DATA.format("001")
    table = pq.read_table(file)
    place = table.column_names.index(key)
    pq.write_table(table.set_column(place, key, pa.array([[1.0, 2.0]] * len(table))), file)
    inspection = inspect(LeRobotReader(source), InspectConfig(min_frames=1))
    assert any(key in problem.text and problem.episodes == (1,) for problem in inspection.problems)
    config = ConvertConfig(source, tmp_path / "converted")
    with pytest.raises(DataError, match=rf"episode 1: .*{key}.*--skip-damaged leaves it out"):
        convert(config)
    done = convert(replace(config, dst=tmp_path / "without", skip_damaged=True))
    assert done.episodes == 2 and list(done.left_out) == [1]
