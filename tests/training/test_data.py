"""Training holds the times that a data set records to the bound of conversion and inspection."""

from pathlib import Path

import numpy as np
import pytest

from robostack.datasets.episodes import DataError, Feature
from robostack.datasets.store import EpisodeWriter
from robostack.training.config import TrainConfig
from robostack.training.data import open_stores


def _write(path: Path, times: np.ndarray) -> Path:
    vector = Feature((2,), "float32")
    features = {"observation.state": vector, "action": vector, "timestamp": Feature((), str(times.dtype))}
    writer = EpisodeWriter(path, features, fps=30)
    rows = np.zeros((len(times), 2), np.float32)
    for recorded in (np.arange(len(times)).astype(times.dtype) / np.float32(30), times):
        writer.append({"observation.state": rows, "action": rows, "timestamp": recorded}, "go")
    writer.finish()
    return path


def test_times_of_another_rate_are_refused_with_the_episode(tmp_path: Path) -> None:
    data = _write(tmp_path / "data", np.arange(40, dtype=np.float32) / np.float32(50))
    with pytest.raises(DataError, match="episode 1: the timestamps do not keep 30 frames a second"):
        open_stores(TrainConfig((data,), tmp_path / "run"))


@pytest.mark.parametrize("late", [np.zeros(40), np.linspace(0, 0.9, 40) / 30, np.tile([0, 0.9], 20) / 30])
def test_times_within_half_a_period_are_trained_on(tmp_path: Path, late: np.ndarray) -> None:
    data = _write(tmp_path / "data", (np.arange(40) / 30 + late).astype(np.float32))
    assert len(open_stores(TrainConfig((data,), tmp_path / "run"))) == 1
