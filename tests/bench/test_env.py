"""`robostack bench env`: how it measures, not how fast this machine is."""

import json

import numpy as np
import pytest

from robostack.bench import env as bench_env


class Clock:
    """Time that passes only when a program says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def program(self, name: str, steps: int, seconds: list[float], log: list[str]):
        durations = iter(seconds)

        def run() -> int:
            log.append(name)
            self.now += next(durations)
            return steps

        return run


def test_programs_take_turns_and_medians_forget_warming_up_and_hiccups():
    clock, log = Clock(), []
    first = clock.program("first", 10, [9, 1, 5, 1], log)
    second = clock.program("second", 10, [9, 2, 2, 8], log)
    assert bench_env._alternate(first, second, blocks=3, clock=clock) == (10, 5, 2)
    assert log == ["first", "second"] * 4


def test_rounds_in_which_threads_waited_for_a_core_do_not_count():
    clock, log = Clock(), []
    waits = iter([0, 0, 0, 0, 0, 3, 3, 3, 3, 3, 3, 3])  # before and after each block: 3 s in the first of round 2
    first = clock.program("first", 10, [9, 1, 5, 1], log)
    second = clock.program("second", 10, [9, 2, 2, 2], log)
    assert bench_env._alternate(first, second, 2, clock, lambda: next(waits)) == (10, 5, 2)
    assert log == ["first", "second"] * 4


def test_a_busy_machine_is_told_and_the_calmest_rounds_count():
    clock, log, waiting = Clock(), [], iter(range(100))
    first = clock.program("first", 10, [9, 8, 4, 2, 4], log)
    second = clock.program("second", 10, [9, 8, 4, 2, 4], log)
    with pytest.warns(UserWarning, match="the machine is busy: even in the calmest 1 of 4 rounds"):
        assert bench_env._alternate(first, second, 1, clock, lambda: next(waiting)) == (1.25, 1.25, 1)


def test_waiting_for_a_core_is_read_from_the_system():
    assert bench_env._waited() >= 0


def test_a_measurement_has_the_keys_of_the_design():
    found = bench_env._measurement("state", "per second", 20.0, "peer 1.0", 10.0, 2.0)
    assert list(found) == ["bench", "case", "metric", "unit", "value", "peer", "peer_value", "ratio", "machine"]
    assert found["ratio"] == 2
    json.dumps(found)


def test_the_peer_plays_the_same_episode():
    pytest.importorskip("gym_aloha")
    ours, peer = bench_env._ours(), bench_env._gym_aloha_without_pictures()
    ours.reset(seed=0)
    timestep = peer.reset()
    np.testing.assert_allclose(timestep.observation["env_state"], ours.data.qpos[16:], atol=1e-7)
    assert set(timestep.observation) == {"qpos", "qvel", "env_state"}  # no pictures
