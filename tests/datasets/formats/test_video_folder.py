"""A folder of videos is a data set without actions."""

from pathlib import Path

import numpy as np
import pytest

from robostack.datasets.episodes import DataError
from robostack.datasets.formats import open_reader
from robostack.datasets.formats.convert import ConvertConfig, convert
from robostack.datasets.formats.video import read_frames, write_video
from robostack.datasets.store import EpisodeStore
from robostack.training.preparation import prepare


def film(path: Path, length: int = 5, size: tuple[int, int] = (32, 48), fps: float = 10, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    t, y, x = np.ogrid[:length, : size[0], : size[1]]
    write_video(
        path, (127 + 120 * np.sin((y + 3 * x + 11 * t + 40 * seed)[..., None] / [47, 53, 67])).astype("u1"), fps
    )


def test_each_video_is_an_episode_in_natural_order(tmp_path: Path) -> None:
    for name, length in (("take 10.mp4", 4), ("take 9.mp4", 6), ("notes.txt", 0)):
        film(tmp_path / "videos" / name, length) if length else (tmp_path / "videos" / name).touch()
    reader = open_reader(tmp_path / "videos")
    assert (reader.format, reader.fps, [reader.length(i) for i in range(2)]) == ("videos", 10.0, [6, 4])
    done = convert(ConvertConfig(tmp_path / "videos", tmp_path / "data", fps=10, task="pour"))
    store = EpisodeStore(tmp_path / "data")
    assert done.episodes == 2 and done.actions_sha256 == "" and store.tasks == ("pour",)
    expected, _ = read_frames(tmp_path / "videos" / "take 10.mp4")
    assert np.array_equal(store.episode(1)["observation.images.camera"], expected)
    with pytest.raises(DataError, match="has no actions"):
        prepare([store], 2)
    convert(ConvertConfig(tmp_path / "data", tmp_path / "lerobot", to="lerobot", images="png"))
    again = open_reader(tmp_path / "lerobot")
    frames = np.stack(list(again.read_episode(1).columns["observation.images.camera"]))
    assert np.array_equal(frames, expected)


def test_a_folder_of_each_camera(tmp_path: Path) -> None:
    for camera, size in (("top", (32, 48)), ("wrist.left", (64, 64))):
        for i in range(2):
            film(tmp_path / "videos" / camera / f"{i}.mp4", 5 - (camera == "top" and i == 1), size, seed=i)
    reader = open_reader(tmp_path / "videos")
    assert {key: f.shape for key, f in reader.features.items()} == {
        "observation.images.top": (32, 48, 3),
        "observation.images.wrist.left": (64, 64, 3),
    }
    done = convert(ConvertConfig(tmp_path / "videos", tmp_path / "data", task="pour"))
    assert done.frames == 9 and "a camera has one frame more: its last is left out (episode 1)" in done.remarks
    (tmp_path / "videos" / "top" / "1.mp4").unlink()
    film(tmp_path / "videos" / "top" / "2.mp4", 2)
    with pytest.raises(DataError, match=r"wrist.left has 5 frames, another camera 2"):
        open_reader(tmp_path / "videos").read_episode(1)


def test_what_is_wrong_is_told_of_its_episode(tmp_path: Path) -> None:
    film(tmp_path / "videos" / "0.mp4")
    film(tmp_path / "videos" / "1.mp4", fps=25)
    (tmp_path / "videos" / "2.mp4").write_bytes((tmp_path / "videos" / "0.mp4").read_bytes()[:400])
    reader = open_reader(tmp_path / "videos")
    assert len(reader.read_episode(0).columns["observation.images.camera"]) == 5
    for episode, message in ((1, "25 frames a second, others 10"), (2, "2.mp4")):
        with pytest.raises(DataError, match=message) as error:
            reader.read_episode(episode)
        assert "\n" not in str(error.value)
    done = convert(ConvertConfig(tmp_path / "videos", tmp_path / "data", task="x", skip_damaged=True))
    assert list(done.left_out) == [1, 2]
