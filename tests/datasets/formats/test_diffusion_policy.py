"""Diffusion Policy's replay buffers: read as they are, written as they were."""

import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numcodecs import BZ2, LZ4, LZMA, Blosc, GZip, Zlib, Zstd

from robostack.datasets.episodes import DataError, EpisodeReader, Feature
from robostack.datasets.formats import open_reader
from robostack.datasets.formats.convert import ConvertConfig, convert
from robostack.datasets.formats.diffusion_policy import DiffusionPolicyReader, DiffusionPolicyWriter

LENGTHS = (7, 3, 5)


def buffer(path: Path, lengths: tuple[int, ...] = LENGTHS) -> dict[str, np.ndarray]:
    """A replay buffer such as pusht's: pictures in floats, frames of several episodes in one chunk, Blosc."""
    frames, rng = sum(lengths), np.random.default_rng(0)
    data = {
        "img": rng.integers(0, 256, (frames, 8, 6, 3)).astype(np.float32),
        "camera0_rgb": rng.integers(0, 256, (frames, 4, 5, 3), dtype=np.uint8),
        "depth": rng.normal(size=(frames, 4, 5, 1)).astype(np.float32),
        "keypoint": rng.normal(size=(frames, 9, 2)),
        "n_contacts": rng.integers(0, 3, (frames, 1)),
        "state": rng.normal(size=(frames, 5)).astype(np.float32),
        "action": rng.normal(size=(frames, 2)).astype(np.float32),
        "timestamp": np.arange(frames) / 10,
    }
    root = zarr.create_group(store=str(path), zarr_format=2)
    for name, rows in data.items():
        compressor = Blosc("lz4", clevel=5, shuffle=Blosc.NOSHUFFLE)
        chunks = (4, *rows.shape[1:])
        root.create_array(f"data/{name}", shape=rows.shape, chunks=chunks, dtype=rows.dtype, compressors=compressor)
        array(path, f"data/{name}")[:] = rows
    root.create_array("meta/episode_ends", shape=(len(lengths),), chunks=(2,), dtype="int64", compressors=None)
    array(path, "meta/episode_ends")[:] = np.cumsum(lengths)
    return data


def array(path: Path, name: str) -> Any:
    return zarr.open_array(store=str(path), path=name, mode="r+", zarr_format=2)


def rows(reader: EpisodeReader, episode: int) -> dict[str, np.ndarray]:
    columns = reader.read_episode(episode).columns
    return {key: r if isinstance(r, np.ndarray) else np.stack(list(r)) for key, r in columns.items()}


def copy(reader: EpisodeReader, writer: DiffusionPolicyWriter, episodes: range | None = None) -> None:
    for i in episodes or range(reader.episodes):
        episode = reader.read_episode(i)
        writer.append(episode.columns, episode.task)


def test_arrays_get_the_names_of_features(tmp_path: Path) -> None:
    data = buffer(tmp_path / "data")
    reader = DiffusionPolicyReader(tmp_path / "data")
    assert isinstance(reader, EpisodeReader)
    assert (reader.fps, reader.robot, reader.episodes) == (None, None, 3)
    names = {key: name for key, (name, _) in reader.provenance["source"]["arrays"].items()}
    assert names == {
        "action": "action",
        "timestamp": "timestamp",
        "observation.images.img": "img",
        "observation.images.camera0_rgb": "camera0_rgb",
        **{f"observation.{name}": name for name in ("depth", "keypoint", "n_contacts", "state")},
    }
    assert reader.features["observation.images.img"] == Feature((8, 6, 3), "uint8")
    assert reader.features["observation.keypoint"] == Feature((9, 2), "float64")
    for i, (start, stop) in enumerate([(0, 7), (7, 10), (10, 15)]):
        assert reader.length(i) == stop - start and list(reader.read_episode(i).task) == [""] * (stop - start)
        assert all(np.array_equal(read, data[names[key]][start:stop]) for key, read in rows(reader, i).items())


def test_a_zip_file_reads_as_its_folder(tmp_path: Path) -> None:
    buffer(tmp_path / "data")
    pack(tmp_path / "data")
    one, other = DiffusionPolicyReader(tmp_path / "data"), DiffusionPolicyReader(tmp_path / "data.zarr.zip")
    assert one.features == other.features
    assert all(np.array_equal(read, rows(other, 1)[key]) for key, read in rows(one, 1).items())
    file = tmp_path / "data.zarr.zip"
    whole = file.read_bytes()
    directory = whole.rfind(b"PK\1\2")
    for damaged in (whole[:2000], whole[:directory] + b"xx" + whole[directory + 2 :], b"PK"):
        file.write_bytes(damaged)
        with pytest.raises(DataError, match="not a whole zip file"):
            open_reader(file)


def pack(path: Path) -> None:
    with zipfile.ZipFile(path.with_suffix(".zarr.zip"), "w") as archive:
        for file in sorted(path.rglob("*")):
            archive.write(file, file.relative_to(path))


def test_names_types_and_values_are_given_back(tmp_path: Path) -> None:
    data = buffer(tmp_path / "source")
    reader = DiffusionPolicyReader(tmp_path / "source")
    writer = DiffusionPolicyWriter(tmp_path / "data", reader.features, None, provenance=reader.provenance)
    copy(reader, writer)
    writer.finish()
    # The accesses of Diffusion Policy's ReplayBuffer.
    root: Any = zarr.open(str(tmp_path / "data"), mode="r")
    assert root["meta"]["episode_ends"][:].tolist() == [7, 10, 15]
    assert set(root["data"].keys()) == set(data)
    for name, expected in data.items():
        assert root["data"][name].dtype == expected.dtype and np.array_equal(root["data"][name][:], expected)
    assert root["data"]["img"].chunks == (64, 8, 6, 3)
    again = DiffusionPolicyReader(tmp_path / "data")
    assert again.features == reader.features and again.provenance == reader.provenance


def test_the_metadata_is_what_zarr_2_reads(tmp_path: Path) -> None:
    buffer(tmp_path / "source")
    reader = DiffusionPolicyReader(tmp_path / "source")
    copy(reader, DiffusionPolicyWriter(tmp_path / "data", reader.features, 10))
    assert not list((tmp_path / "data").rglob("zarr.json"))
    for folder in ("", "data", "meta"):
        assert json.loads((tmp_path / "data" / folder / ".zgroup").read_text()) == {"zarr_format": 2}
    for file in (tmp_path / "data").rglob(".zarray"):
        metadata = json.loads(file.read_text())
        compressor = metadata.pop("compressor")
        assert compressor is None if file.parent.name == "episode_ends" else compressor["id"] == "blosc"
        assert metadata["zarr_format"] == 2 and metadata["filters"] is None and metadata["dimension_separator"] == "."
        assert np.dtype(metadata["dtype"]).kind in "fiu" and metadata["order"] == "C"


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    width=st.sampled_from([14, 16]),
    dtype=st.sampled_from(["float32", "float64", "int64"]),
    fps=st.sampled_from([None, 50.0]),
)
def test_what_is_written_reads_back_the_same(tmp_path_factory, lengths, size, width, dtype, fps) -> None:
    path, rng = tmp_path_factory.mktemp("round") / "data", np.random.default_rng(0)
    features = {
        "observation.state": Feature((width,), dtype, tuple(f"joint {i}" for i in range(width)), ("rad",) * width),
        "observation.images.top": Feature((*size, 3), "uint8"),
        "next.success": Feature((), "bool"),
        "intervention": Feature((), "int64"),
        "action": Feature((width,), dtype),
    }
    writer = DiffusionPolicyWriter(path, features, fps, robot="aloha")
    episodes = []
    for i, length in enumerate(lengths):
        columns = {key: rng.integers(0, 256, (length, *f.shape)).astype(f.dtype) for key, f in features.items()}
        assert writer.append(columns, f"task {i % 2}") == i
        episodes.append(columns)
    reader = DiffusionPolicyReader(path)
    assert reader.features == features
    assert (reader.fps, reader.robot, reader.episodes) == (fps, "aloha", len(lengths))
    for i, columns in enumerate(episodes):
        read = rows(reader, i)
        assert reader.read_episode(i).task == [f"task {i % 2}"] * lengths[i]
        assert all(np.array_equal(read[key], r) and read[key].dtype == r.dtype for key, r in columns.items())


def test_a_picture_in_floats_must_hold_whole_numbers(tmp_path: Path) -> None:
    buffer(tmp_path / "data")
    for value in (0.5, 256.0, -1.0, np.nan):
        array(tmp_path / "data", "data/img")[8, 0, 0, 0] = value
        reader = DiffusionPolicyReader(tmp_path / "data")
        assert len(rows(reader, 0)) == len(rows(reader, 2)) == 8
        with pytest.raises(DataError, match=r"episode 1: observation.images.img: .* not whole numbers 0..255"):
            rows(reader, 1)
    data = array(tmp_path / "data", "data/img")
    data[:] = np.random.default_rng(0).random(data.shape)
    assert DiffusionPolicyReader(tmp_path / "data").features["observation.img"] == Feature((8, 6, 3), "float32")


def shorten(path: Path) -> None:
    array(path, "data/state").resize((9, 5))


def cut_chunk(path: Path) -> None:
    file = path / "data" / "state" / "2.0"
    file.write_bytes(file.read_bytes()[:10])


@pytest.mark.parametrize(
    ("damage", "bad", "message"),
    [
        (shorten, (1, 2), "truncated: data/state has 9 of"),
        (lambda path: os.remove(path / "data" / "state" / "3.0"), (2,), r"data/state: chunk '3.0' is missing"),
        (lambda path: os.remove(path / "data" / "img" / "3.0.0.0"), (2,), r"data/img: chunk '3.0.0.0' is missing"),
        (cut_chunk, (1, 2), "data/state is truncated"),
        (lambda path: array(path, "meta/episode_ends").set_basic_selection(1, 7), (1,), r"does not rise \(7, 7\)"),
        (lambda path: array(path, "meta/episode_ends").set_basic_selection(1, 5), (1, 2), "does not rise"),
        (lambda path: array(path, "meta/episode_ends").set_basic_selection(2, 1 << 60), (2,), "has 15 of 11529"),
    ],
)
def test_what_is_wrong_is_told_with_the_episode(tmp_path: Path, damage, bad: tuple[int, ...], message: str) -> None:
    data = buffer(tmp_path / "data")
    damage(tmp_path / "data")
    reader = DiffusionPolicyReader(tmp_path / "data")
    for i, last in enumerate((6, 9, 14)):
        if i in bad:
            with pytest.raises(DataError, match=rf"episode {i}.*{message}") as error:
                rows(reader, i)
            assert "\n" not in str(error.value)
        else:
            assert np.array_equal(rows(reader, i)["observation.state"][-1], data["state"][last])


def write_metadata(path: Path, name: str, **changes: Any) -> None:
    metadata = json.loads((path / "data" / "action" / ".zarray").read_text())
    (path / "data" / name).mkdir()
    (path / "data" / name / ".zarray").write_text(json.dumps(metadata | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "|O", "filters": [{"id": "pickle", "protocol": 5}], "fill_value": None},
        {"filters": [{"id": "pickle", "protocol": 5}]},
        {"compressor": {"id": "pickle"}},
        {"dtype": "|O", "filters": [{"id": "vlen-utf8"}], "fill_value": None},
        {"dtype": "<U20", "fill_value": ""},
        {"compressor": {"id": "imagecodecs_jpegxl"}},
        {"shape": [15, 1 << 40], "chunks": [1, 1 << 40]},
        {"shape": [15, 2], "chunks": [1 << 40, 2]},
        {"shape": [1 << 70, 2]},
        {"filters": [{"id": "zlib"}]},
        {"shape": [], "chunks": []},
        {"shape": "x"},
        {"chunks": [0, 0]},
        {"zarr_format": 9},
        {"dtype": "<c16"},
    ],
)
def test_what_cannot_be_read_is_left_out_by_name(tmp_path: Path, changes: dict[str, Any]) -> None:
    buffer(tmp_path / "data")
    write_metadata(tmp_path / "data", "odd", **changes)
    reader = DiffusionPolicyReader(tmp_path / "data")
    if "observation.odd" in reader.features:
        reader.select(["observation.odd"])
        with pytest.raises(DataError, match=r"data/odd"):
            rows(reader, 0)
    else:
        assert set(reader.left_out) == {"observation.odd"} and "\n" not in reader.left_out["observation.odd"]
    assert len(rows(DiffusionPolicyReader(tmp_path / "data", ["observation.odd"]), 1)) == 8
    with pytest.raises(DataError, match=r"has no observation.none to drop: it has action"):
        DiffusionPolicyReader(tmp_path / "data", ["observation.odd", "observation.none"])


def test_pictures_of_every_form_are_cameras(tmp_path: Path) -> None:
    buffer(tmp_path / "data", (4, 3))
    rng = np.random.default_rng(1)
    rgb = rng.integers(0, 256, (7, 8, 6, 3), dtype=np.uint8)
    arrays = {
        "first": rgb.transpose(0, 3, 1, 2), "gray_cam": rgb[..., 0], "one": rgb[..., :1], "rgba": rng.integers(
            0, 256, (7, 8, 6, 4), dtype=np.uint8), "unit_rgb": (rgb / 255).astype("f4"), "cloud": rgb / 7.0,
        "depth16": rgb[..., :1].astype("u2") * 9, "depth": rgb[..., 0].astype("u2"), "table": rgb[..., 0],
    }  # fmt: skip
    shutil.rmtree(tmp_path / "data" / "data" / "depth")
    root = zarr.open_group(str(tmp_path / "data"), mode="r+", zarr_format=2)
    for name, pictures in arrays.items():
        made: Any = root.create_array(
            f"data/{name}", shape=pictures.shape, chunks=(2, *pictures.shape[1:]), dtype=pictures.dtype
        )
        made[:] = pictures
    reader = DiffusionPolicyReader(tmp_path / "data")
    read = {key: np.concatenate([rows(reader, i)[key] for i in range(2)]) for key in reader.features}
    gray = np.repeat(rgb[..., :1], 3, -1)
    expected = {"first": rgb, "gray_cam": gray, "one": gray, "rgba": arrays["rgba"][..., :3], "unit_rgb": rgb,
                "depth16": arrays["depth16"], "depth": arrays["depth"][..., None]}  # fmt: skip
    for name, pictures in expected.items():
        assert np.array_equal(read[f"observation.images.{name}"], pictures), name
    assert reader.features["observation.images.depth"] == Feature((8, 6, 1), "uint16", units=("mm",))
    assert np.array_equal(read["observation.cloud"], arrays["cloud"])
    assert np.array_equal(read["observation.table"], arrays["table"])


@pytest.mark.parametrize("zipped", [False, True])
def test_format_3_of_zarr_is_read(tmp_path: Path, zipped: bool) -> None:
    data = buffer(tmp_path / "old")
    root = zarr.create_group(store=str(tmp_path / "data"), zarr_format=3)
    for name, values in data.items():
        made: Any = root.create_array(
            f"data/{name}", shape=values.shape, chunks=(4, *values.shape[1:]), dtype=values.dtype
        )
        made[:] = values
    made = root.create_array("meta/episode_ends", shape=(3,), chunks=(3,), dtype="int64")
    made[:] = np.cumsum(LENGTHS)
    if zipped:
        pack(tmp_path / "data")
    one = open_reader(tmp_path / ("data.zarr.zip" if zipped else "data"))
    other = DiffusionPolicyReader(tmp_path / "old")
    assert one.features == other.features and one.episodes == 3 and not one.left_out
    assert all(np.array_equal(read, rows(other, 1)[key]) for key, read in rows(one, 1).items())


def test_the_group_may_lie_within_a_folder_of_the_archive(tmp_path: Path) -> None:
    buffer(tmp_path / "data")
    with zipfile.ZipFile(tmp_path / "pusht.zip", "w") as archive:
        for file in sorted((tmp_path / "data").rglob("*")):
            archive.write(file, Path("pusht/x.zarr") / file.relative_to(tmp_path / "data"))
    one, other = open_reader(tmp_path / "pusht.zip"), DiffusionPolicyReader(tmp_path / "data")
    assert one.features == other.features
    assert all(np.array_equal(read, rows(other, 2)[key]) for key, read in rows(one, 2).items())


def test_paths_that_leave_an_archive_and_entries_without_bound_are_refused(tmp_path: Path) -> None:
    buffer(tmp_path / "data")
    for name in ("../../x/.zarray", "/etc/x"):
        pack(tmp_path / "data")
        with zipfile.ZipFile(tmp_path / "data.zarr.zip", "a") as archive:
            archive.writestr(name, "{}")
        with pytest.raises(DataError, match="which leads out of it"):
            open_reader(tmp_path / "data.zarr.zip")


@pytest.mark.parametrize(
    "codec", [Blosc("zstd"), Zstd(), LZ4(), Zlib(), GZip(), BZ2(), LZMA()], ids=lambda c: c.codec_id
)
def test_a_chunk_that_unpacks_to_more_than_it_should_is_not_unpacked(tmp_path: Path, monkeypatch, codec: Any) -> None:
    buffer(tmp_path / "data")
    write_metadata(tmp_path / "data", "state2", compressor=codec.get_config(), shape=[15, 5], chunks=[4, 5])
    for i in range(4):
        block = np.full((4, 5), i, np.float32)
        (tmp_path / "data" / "data" / "state2" / f"{i}.0").write_bytes(codec.encode(block))
    reader = DiffusionPolicyReader(tmp_path / "data")
    assert rows(reader, 0)["observation.state2"][:, 0].tolist() == [0] * 4 + [1] * 3
    (tmp_path / "data" / "data" / "state2" / "1.0").write_bytes(codec.encode(bytes(32 << 20)))
    reader = DiffusionPolicyReader(tmp_path / "data")
    monkeypatch.setattr(type(codec), "decode", None)  # it would be called
    reader.select(["observation.state2"])
    with pytest.raises(DataError, match=r"state2/1\.0 unpacks to more than the 80 bytes of a chunk|1\.0 has .* bytes"):
        rows(reader, 0)


def test_pipes_and_endless_files_are_not_opened(tmp_path: Path) -> None:
    buffer(tmp_path / "data")
    chunk = tmp_path / "data" / "data" / "state" / "1.0"
    chunk.unlink()
    os.mkfifo(chunk)
    with pytest.raises(DataError, match="no regular file"):
        rows(DiffusionPolicyReader(tmp_path / "data"), 0)
    chunk.unlink()
    with chunk.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(DataError, match=r"state/1.0 has 1,099,511,627,776 bytes"):
        rows(DiffusionPolicyReader(tmp_path / "data"), 0)
    (tmp_path / "data" / "data" / "action" / ".zarray").unlink()
    os.mkfifo(tmp_path / "data" / "data" / "action" / ".zarray")
    assert "no regular file" in DiffusionPolicyReader(tmp_path / "data").left_out["observation.action"]


@pytest.mark.parametrize(
    "attributes",
    ['{"fps": 0}', '{"fps": "50"}', '{"fps": NaN}', '{"robot": 3}', '{"tasks": [1], "episode_task": [0]}', "[1]", "{",
     '{"tasks": ["a"], "episode_task": [9]}', '{"features": []}', '{"provenance": {"seeds": [1]}}', '{"fps": true}',
     '{"features": {"state": {"key": 3, "names": [], "units": []}}}', '{"provenance": 3}', "[" * 100_000],
)  # fmt: skip
def test_attributes_of_other_kinds_are_one_line(tmp_path: Path, attributes: str) -> None:
    buffer(tmp_path / "data")
    (tmp_path / "data" / ".zattrs").write_text(attributes)
    with pytest.raises(DataError, match="attributes cannot be read") as error:
        DiffusionPolicyReader(tmp_path / "data")
    assert "\n" not in str(error.value)


def test_names_that_leave_the_data_set_make_no_file_outside(tmp_path: Path) -> None:
    buffer(tmp_path / "data")
    described = {"state": {"key": "../../outside", "names": [], "units": []}}
    (tmp_path / "data" / ".zattrs").write_text(json.dumps({"features": described}))
    for to in ("robostack", "lerobot", "aloha", "diffusion-policy"):
        with pytest.raises(ValueError, match=r"outside") as error:
            keep = ("action", "../../outside")
            convert(ConvertConfig(tmp_path / "data", tmp_path / "new" / to, to=to, fps=10, task="x", keep=keep))
        assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", *["new"] * (tmp_path / "new").exists()]


def test_names_that_do_not_fit_are_left_out(tmp_path: Path) -> None:
    buffer(tmp_path / "data")
    described = {"state": {"key": "observation.state", "names": ["a"], "units": []}}
    (tmp_path / "data" / ".zattrs").write_text(json.dumps({"features": described}))
    reader = DiffusionPolicyReader(tmp_path / "data")
    assert reader.features["observation.state"].names == () and "names are left out" in reader.remarks[0]


def test_a_folder_that_is_no_buffer_is_told(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError, match="not a replay buffer"):
            DiffusionPolicyReader(path)
    buffer(tmp_path / "data")
    (tmp_path / "data" / ".zattrs").write_text('{"features": {"state": 3}}')
    with pytest.raises(DataError, match="attributes cannot be read"):
        DiffusionPolicyReader(tmp_path / "data")


@pytest.mark.parametrize("stop", ["resize", "rows", "tasks", "ends resized"])
def test_a_kill_loses_the_episode_in_flight_alone(tmp_path: Path, monkeypatch, stop: str) -> None:
    buffer(tmp_path / "source")
    reader = DiffusionPolicyReader(tmp_path / "source")
    path = tmp_path / "data"
    copy(reader, writer := DiffusionPolicyWriter(path, reader.features, 10, provenance=reader.provenance), range(1))
    with monkeypatch.context() as patch:

        def killed(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        if stop == "resize":
            patch.setattr(zarr.Array, "resize", killed)
        elif stop == "rows":
            patch.setattr(zarr.Array, "__setitem__", killed)
        elif stop == "tasks":
            patch.setattr(zarr.Group, "update_attributes", killed)
        else:
            patch.setattr(zarr.Array, "__setitem__", _killed_at_ends(zarr.Array.__setitem__))
        with pytest.raises(KeyboardInterrupt):
            copy(reader, writer, range(1, 2))
    assert DiffusionPolicyReader(path).episodes == 1
    resumed = DiffusionPolicyWriter.resume(path)
    assert resumed.episodes == 1 and resumed.features == reader.features
    copy(reader, resumed, range(1, 3))
    resumed.finish()
    unbroken = DiffusionPolicyWriter(tmp_path / "unbroken", reader.features, 10, provenance=reader.provenance)
    copy(reader, unbroken)
    unbroken.finish()
    files = {file.relative_to(path): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    assert files == {file: (tmp_path / "unbroken" / file).read_bytes() for file in files}


def _killed_at_ends(set_rows):
    def killed(self: zarr.Array, selection: Any, value: Any) -> None:
        if self.path == "meta/episode_ends":
            raise KeyboardInterrupt
        set_rows(self, selection, value)

    return killed


def test_a_refused_episode_leaves_the_writer_usable(tmp_path: Path) -> None:
    buffer(tmp_path / "source")
    shutil.rmtree(tmp_path / "source" / "data" / "img")
    reader = DiffusionPolicyReader(tmp_path / "source")
    writer = DiffusionPolicyWriter(tmp_path / "data", reader.features, 10)
    columns = rows(reader, 0)
    with pytest.raises(DataError, match="one task text an episode, got 2"):
        writer.append(columns, ["a"] * 6 + ["b"])
    os.remove(tmp_path / "source" / "data" / "camera0_rgb" / "0.0.0.0")
    with pytest.raises(DataError, match="episode 0: data/camera0_rgb"):
        copy(reader, writer, range(1))
    copy(reader, writer, range(2, 3))
    writer.finish()
    assert array(tmp_path / "data", "data/state").shape == (5, 5)
    read = rows(DiffusionPolicyReader(tmp_path / "data"), 0)
    assert all(np.array_equal(read[key], r) for key, r in rows(reader, 2).items())


def test_two_features_of_one_name_are_refused_first(tmp_path: Path) -> None:
    features = {"observation.top": Feature((3,), "float32"), "observation.images.top": Feature((4, 4, 3), "uint8")}
    with pytest.raises(DataError, match=r"observation.top and observation.images.top would both be data/top"):
        DiffusionPolicyWriter(tmp_path / "data", features, 10)
    assert not (tmp_path / "data").exists()
    (tmp_path / "data").mkdir()
    with pytest.raises(FileExistsError, match="already exists"):
        DiffusionPolicyWriter(tmp_path / "data", {"action": Feature((2,), "float32")}, 10)
