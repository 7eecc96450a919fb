"""How the actions of demonstrations vary."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from robostack.datasets.episodes import Feature
from robostack.datasets.store import EpisodeStore, EpisodeWriter
from robostack.experts.spread import action_spread


def test_two_branches_of_an_angle_are_noticed_and_of_nothing_else(tmp_path: Path) -> None:
    writer = EpisodeWriter(
        tmp_path / "data", {"action": Feature((3,), "float32", ("elbow", "wrist", "hand"), ("rad", "rad", "1"))}, fps=50
    )
    rng = np.random.default_rng(0)
    for episode in range(10):
        wrist = np.linspace(0, 1.5 if episode % 2 else -1.5, 50)
        actions = np.stack([rng.normal(0, 0.1, 50), wrist + rng.normal(0, 0.1, 50), wrist], axis=1)
        writer.append({"action": actions.astype(np.float32)}, "task")
    assert [entry.branches for entry in action_spread(EpisodeStore(tmp_path / "data"))] == [False, True, False]


@pytest.mark.parametrize(("shape", "names"), [((), [""]), ((2, 2), ["0,0", "0,1", "1,0", "1,1"])])
def test_the_spread_is_that_of_actions_of_any_shape(tmp_path: Path, shape: tuple[int, ...], names: list[str]) -> None:
    writer = EpisodeWriter(tmp_path / "data", {"action": Feature(shape, "float32")}, fps=50)
    for length in (1, 5):
        writer.append({"action": np.ones((length, *shape), np.float32)}, "task")
    entries = action_spread(EpisodeStore(tmp_path / "data"))
    assert [entry.name for entry in entries] == names and all(entry.largest_step == 0 for entry in entries)
