"""Every format is found by looking, written and gone on with by its name."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from support import write

from robostack.datasets.episodes import Appender, DataError, EpisodeReader, Feature
from robostack.datasets.formats import FORMATS, Recording, Selection, create_writer, detect, open_reader, resume_writer

FEATURES = {
    "observation.state": Feature((14,), "float32"),
    "observation.images.top": Feature((64, 64, 3), "uint8"),
    "action": Feature((14,), "float32"),
}


def episode(length: int = 3) -> dict[str, np.ndarray]:
    return {key: np.ones((length, *feature.shape), feature.dtype) for key, feature in FEATURES.items()}


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_found_by_looking(tmp_path: Path, name: str) -> None:
    path = tmp_path / "data"
    writer = create_writer(name, path, Recording(FEATURES, 50.0, "aloha"))
    assert isinstance(writer, Appender)
    writer.append(episode(), "task")
    writer = resume_writer(name, path)
    assert writer.episodes == 1
    writer.append(episode(4), "task")
    writer.finish()
    assert detect(path).name == name
    reader = open_reader(path, Selection(drop=("observation.images.top",)))
    assert isinstance(reader, EpisodeReader)
    assert [reader.length(i) for i in range(reader.episodes)] == [3, 4]
    assert {*FEATURES} - {*reader.features} == {"observation.images.top"}
    assert {*reader.read_episode(1).columns} == {*reader.features}
    with pytest.raises(DataError, match=r"has no observation.none to .*: it has"):
        open_reader(path, Selection(drop=("observation.none",)))


def test_what_is_no_data_set_is_told_what_was_looked_for(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(DataError, match=r"nowhere does not exist: expected a data set$"):
        detect(tmp_path / "nowhere")
    with pytest.raises(DataError, match="is an empty folder"):
        detect(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match=r"zarr.json .*; meta/info.json .*; episode_<n>.hdf5 .*; .zgroup") as error:
        detect(tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match="no data set that is known"):
        detect(tmp_path / "notes.txt")
    (tmp_path / "mydata").mkdir()
    with pytest.raises(DataError, match=r"mydatta does not exist: .*; did you mean .*mydata\?"):
        detect(tmp_path / "mydatta")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"hf download --repo-type dataset lerobot/pusht --local-dir pusht"):
        detect("lerobot/pusht")


@pytest.mark.parametrize(
    ("file", "said"), [("meta_data/info.json", "LeRobot v1"), ("dataset_info.json", "RLDS"), ("metadata.yaml", "ROS")]
)
def test_data_of_other_kinds_is_named(tmp_path: Path, file: str, said: str) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    with pytest.raises(DataError, match=f"{said}.*which is not read"):
        detect(tmp_path)


def test_pipes_are_not_opened(tmp_path: Path) -> None:
    for name in ("pipe", "pipe.zip", "pipe.hdf5", "meta"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(ValueError, match="is no regular file"):
            detect(tmp_path / name)
    (tmp_path / "data").mkdir()
    os.mkfifo(tmp_path / "data" / "zarr.json")
    with pytest.raises(DataError, match="no data set that is known"):
        detect(tmp_path / "data")


def test_a_damaged_data_set_is_told_by_its_reader(tmp_path: Path) -> None:
    write(tmp_path / "data", [4])
    (tmp_path / "data" / "zarr.json").write_text("{")
    with pytest.raises(DataError, match=r"zarr.json cannot be read"):
        open_reader(tmp_path / "data")
    shutil.rmtree(tmp_path / "data")
    (tmp_path / "data.zarr.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match="not a whole zip file"):
        open_reader(tmp_path / "data.zarr.zip")


def test_wrong_names_are_answered_with_the_known(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown format 'rlds': expected one of robostack, lerobot, aloha"):
        create_writer("rlds", tmp_path / "data", Recording(FEATURES, 50.0))
    with pytest.raises(ValueError, match="aloha keeps images as raw or jpeg, not as 'png'"):
        create_writer("aloha", tmp_path / "data", Recording(FEATURES, 50.0), "png")
    with pytest.raises(DataError, match="robostack needs the frames a second"):
        create_writer("robostack", tmp_path / "data", Recording(FEATURES, None))
    assert not (tmp_path / "data").exists()
