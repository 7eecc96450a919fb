"""Many episodes that run at once are recorded without holding them in memory."""

import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from robostack.experts.playing import play_together

ROWS, STEPS, PICTURE = 8, 40, (200, 200, 3)
VIEW = "observation.images.view"


class Worlds:
    """Row i ends after STEPS - i steps; a picture shows its row and step."""

    action_space = SimpleNamespace(shape=(ROWS, 2))

    def reset(self, seed):
        self.seeds, self.step_number = np.array(seed), 0

    def look(self, wanted):
        numbers = (self.seeds * 50 + self.step_number).astype(np.float32)
        pictures = np.broadcast_to(numbers.astype(np.uint8)[:, None, None, None], (ROWS, *PICTURE))
        seen = {"observation.state": numbers[:, None], VIEW: pictures}
        return {key: seen[key] for key in wanted if key in seen}

    def step(self, actions):
        self.step_number += 1
        over = self.step_number >= STEPS - np.arange(ROWS)
        return {}, actions.sum(axis=1), over, np.zeros(ROWS, bool), {"success": over}


class Player:
    def __init__(self, scale: float) -> None:
        self.scale = scale

    def act(self, observation):
        return np.repeat(self.scale * observation["observation.state"], 2, axis=1)


def test_each_row_is_recorded_as_it_went_and_no_more_than_an_episode_is_held(tmp_path: Path) -> None:
    tracemalloc.start()
    try:
        players = np.arange(ROWS) % 2
        episodes = play_together(Worlds(), [Player(1.0), Player(2.0)], players, range(ROWS), [VIEW], tmp_path)
        for i, episode in enumerate(episodes):
            assert {len(rows) for rows in episode.values()} == {STEPS - i}
            assert episode[VIEW].shape[1:] == PICTURE
            np.testing.assert_array_equal(episode[VIEW][:, 7, 7, 1], (i * 50 + np.arange(STEPS - i)) % 256)
            expected = (i * 50 + np.arange(STEPS - i)) * (1 + i % 2)
            np.testing.assert_array_equal(episode["action"], np.repeat(expected[:, None], 2, axis=1).astype(np.float32))
            np.testing.assert_array_equal(episode["next.success"], np.arange(1, STEPS - i + 1) == STEPS - i)
            assert not list(tmp_path.iterdir())  # what it records in has no name that could be left behind
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    whole = ROWS * STEPS * np.prod(PICTURE)
    assert peak < whole / 2, f"{peak} bytes of {whole}"


def test_an_observation_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match=r"there is no observation\.depth to record"):
        next(play_together(Worlds(), [Player(1.0)], np.zeros(ROWS, int), range(ROWS), ["observation.depth"]))
