"""Many episodes that run at once are recorded without holding them in memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from robostack import envs
from robostack.experts.record import record_episodes

ROWS, STEPS, PICTURE = 8, 40, (200, 200, 3)
VIEW = "observation.images.view"


class Worlds:
    """Row i ends after STEPS - i steps; a picture shows its row and step."""

    highest_stage = 3

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
        return {}, actions.sum(axis=1), over, np.zeros(ROWS, bool), {"stage": np.where(over, 3, 2)}


class Player:
    """Its strength depends on the seed."""

    plans = False

    def __init__(self, *keys: str) -> None:
        self.records = dict.fromkeys(keys, ())

    def begin(self, worlds, seeds):
        self.scale = 1 + np.array(seeds) % 2

    def act(self, look):
        state = look({"observation.state": ()})["observation.state"]
        return np.repeat(self.scale[:, None] * state, 2, axis=1).astype(np.float32)


def test_each_row_is_recorded_as_it_went_and_no_more_than_an_episode_is_held(tmp_path: Path) -> None:
    tracemalloc.start()
    try:
        episodes = record_episodes(Worlds(), Player("observation.state", VIEW), range(ROWS), tmp_path)
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


def test_in_memory_it_is_the_same(tmp_path: Path) -> None:
    player = Player("observation.state", VIEW)
    in_files, in_memory = (record_episodes(Worlds(), player, range(ROWS), folder) for folder in (tmp_path, None))
    for filed, held in zip(in_files, in_memory, strict=True):
        assert list(filed) == list(held) == ["observation.state", VIEW, "action", "next.reward", "next.success"]
        for key, rows in filed.items():
            np.testing.assert_array_equal(rows, held[key])
            assert rows.dtype == held[key].dtype


def test_an_observation_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match=r"there is no observation\.depth to record"):
        next(record_episodes(Worlds(), Player("observation.depth"), range(ROWS)))


def test_an_episode_that_breaks_the_simulation_ends_with_the_action_that_did() -> None:
    """Targets from one end of the action space to the other ask for more than the physics resolves."""
    worlds = envs.make_vector("aloha-transfer-cube", 1)

    class Wild(Player):
        def begin(self, worlds, seeds):
            worlds.single_action_space.seed(seeds[0])

        def act(self, look):
            return worlds.single_action_space.sample()[None]

    episodes = [episode for seed in range(20) for episode in record_episodes(worlds, Wild("observation.state"), [seed])]
    broken = [episode for episode in episodes if len(episode["action"]) < 400]
    assert broken and all(episode["next.reward"][-1] == 0 and not episode["next.success"][-1] for episode in broken)
    assert all({len(rows) for rows in episode.values()} == {len(episode["action"])} for episode in broken)
