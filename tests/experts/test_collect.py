"""Collecting keeps whole episodes whatever ends it, and the same ones for the same seed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support import InProcess

from robostack.datasets.episodes import DataError, Feature
from robostack.datasets.store import EpisodeStore, EpisodeWriter
from robostack.experts.collect import CollectConfig, CollectionError, collect, spread

ENV = "aloha-transfer-cube"


def test_collecting_does_not_depend_on_workers(tmp_path: Path) -> None:
    stores = []
    for workers in (1, 2):
        path = tmp_path / str(workers)
        done = collect(CollectConfig(ENV, path, episodes=3, seed=5, cameras=("top_zoom:24x32",), workers=workers))
        assert done.kept == 3
        stores.append(EpisodeStore(path))
    one, two = stores
    assert one.features == two.features and one.features["observation.images.top_zoom"].shape == (24, 32, 3)
    for key in one.features:
        assert np.array_equal(one.read(key), two.read(key)), key
    assert one.provenance["seeds"] == [5, 7] and one.features["action"].units[0] == "rad"
    entries = spread(one)
    assert not any(entry.branches for entry in entries) and max(e.largest_step for e in entries) < 0.2


def test_data_of_mixed_quality_is_kept_whole_and_its_levels_can_be_told(tmp_path: Path) -> None:
    stores = []
    for workers in (1, 2):
        path = tmp_path / str(workers)
        done = collect(CollectConfig(ENV, path, episodes=4, seed=5, noise=(0.0, 0.2), workers=workers))
        assert done.kept == 4 and done.failed == 2
        stores.append(EpisodeStore(path))
    one, two = stores
    assert all(np.array_equal(one.read(key), two.read(key)) for key in one.features)
    assert one.provenance["seeds"] == [5, 8] and one.provenance["collected"]["noise"] == [0.0, 0.2]
    bounds = zip(one.episode_starts.tolist(), one.episode_ends.tolist(), strict=True)
    returns = [one.read("next.reward", *bound).sum() for bound in bounds]
    assert min(returns[0::2]) > 800 and max(returns[1::2]) < 600
    undisturbed = collect(CollectConfig(ENV, tmp_path / "expert", episodes=1, seed=5))
    assert undisturbed == type(undisturbed)(1, 0)
    assert np.array_equal(EpisodeStore(tmp_path / "expert").read("action"), one.read("action", 0, 400))


class Failing:
    """Never moves."""

    def demonstrate(self, env, seed, cameras=(), noise=0.0):
        rows = np.zeros((2, 14), np.float32)
        return {"observation.state": rows, "action": rows, "next.success": np.zeros(2, bool)}


@pytest.mark.parametrize(("noise", "tried"), [((), 11), ((0.0, 0.1), 21), ((0.1,), None)])
def test_an_expert_that_fails_undisturbed_is_told(tmp_path: Path, monkeypatch, noise, tried: int | None) -> None:
    """What fails under a disturbance says nothing of the expert."""
    tries = []
    monkeypatch.setattr("robostack.experts.collect.make_expert", lambda _: Failing())
    monkeypatch.setattr("robostack.experts.collect.worker_pool", InProcess)
    config = CollectConfig(ENV, tmp_path / "data", episodes=40, noise=noise, workers=1)
    if tried is None:
        assert collect(config).failed == 40
        return
    with pytest.raises(CollectionError, match="of 11 demonstrations"):
        collect(config, tries.append)
    assert len(tries) == tried - 1


def test_noise_that_is_no_deviation_is_refused(tmp_path: Path) -> None:
    for level in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="finite and not negative"):
            CollectConfig(ENV, tmp_path / "data", noise=(0.0, level))


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_whatever_ends_it_whole_episodes_are_kept(tmp_path: Path, end: signal.Signals) -> None:
    path = tmp_path / "data"
    # A shell's background jobs are started with Ctrl-C ignored, and so would be what the tests start.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    program = f"{heed}; from robostack.cli import main; raise SystemExit(main())"
    arguments = ["collect", "--env", ENV, "--episodes", "1000", "--out", str(path), "--workers", "2"]
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while episodes(path) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    if end == signal.SIGINT:
        os.killpg(process.pid, end)  # as a terminal does: to the parent and its workers
        assert process.wait(60) == 130
        assert process.stderr is not None and "Traceback" not in (text := process.stderr.read())
        assert "interrupted; what was finished is kept" in text
    else:
        process.kill()
        process.wait()
    kept = EpisodeStore(path)
    assert 2 <= kept.episodes < 1000 and kept.provenance["seeds"] == [0, kept.episodes - 1]
    collect(CollectConfig(ENV, tmp_path / "again", episodes=2))
    again = EpisodeStore(tmp_path / "again")
    assert all(np.array_equal(kept.read(key, 0, again.frames), again.read(key)) for key in again.features)
    deadline = time.monotonic() + 30
    while group_lives(process.pid):  # no orphans
        assert time.monotonic() < deadline
        time.sleep(0.1)


def episodes(path: Path) -> int:
    try:
        return EpisodeStore(path).episodes
    except DataError:
        return 0


def group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_two_branches_of_a_joint_are_noticed(tmp_path: Path) -> None:
    writer = EpisodeWriter(tmp_path / "data", {"action": Feature((2,), "float32", ("elbow", "wrist"))}, fps=50)
    rng = np.random.default_rng(0)
    for episode in range(10):
        wrist = np.linspace(0, 1.5 if episode % 2 else -1.5, 50)
        actions = np.stack([rng.normal(0, 0.1, 50), wrist + rng.normal(0, 0.1, 50)], axis=1)
        writer.append({"action": actions.astype(np.float32)}, "task")
    assert [entry.branches for entry in spread(EpisodeStore(tmp_path / "data"))] == [False, True]
