"""Collecting keeps whole episodes whatever ends it, and the same ones for the same seed."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from robostack import envs
from robostack.cli import main
from robostack.common.files import DiskFullError
from robostack.common.interrupt import Interrupted
from robostack.datasets.episodes import DataError, Feature
from robostack.datasets.rows import Rows
from robostack.datasets.store import EpisodeStore, EpisodeWriter
from robostack.envs.description import EnvDescription, describe
from robostack.experts import Asked
from robostack.experts.collect import (
    CollectConfig,
    Collected,
    CollectionError,
    _features,
    collect,
    settings_of,
)
from robostack.experts.record import Demonstration
from robostack.experts.spread import action_spread

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
    entries = action_spread(one)
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


WORLD = EnvDescription("task", 50, "arm", {}, {})


def failing(env: str, asked: Asked, start: int, *_: object) -> Iterator[Demonstration]:
    """Of an expert that never moves."""
    rows = np.zeros((2, 14), np.float32)
    for seed in count(start):
        frames = {"observation.state": rows, "action": rows, "next.success": np.zeros(2, bool)}
        yield Demonstration(seed, frames, WORLD)


def quick(env: str, asked: Asked, start: int, *_: object) -> Iterator[Demonstration]:
    """Episodes of a few frames that follow from their seed; every third fails, and more where there is noise."""
    for seed in count(start):
        noise = asked.noise[(seed - asked.first) % len(asked.noise)] if asked.noise else 0.0
        rng = np.random.default_rng(seed)
        rows = rng.normal(size=(2 + seed % 3, 14)).astype(np.float32)
        success = np.full(len(rows), seed % 3 != 1 and noise == 0)
        frames = {"observation.state": rows, "action": rows + np.float32(noise), "next.success": success}
        yield Demonstration(seed, frames, WORLD)


@pytest.fixture(name="quick")
def make_it_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robostack.experts.collect.demonstrations", quick)


class Stopped(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.mark.parametrize("noise", [(), (0.0, 0.1)])
@pytest.mark.parametrize("kept", [0, 1, 3, 7])
def test_the_same_command_goes_on_after_an_end_at_any_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None, kept: int, noise: tuple[float, ...]
) -> None:
    config = CollectConfig(ENV, tmp_path / "data", episodes=7, seed=4, noise=noise)
    whole = collect(replace(config, out=tmp_path / "whole"))
    with monkeypatch.context() as patch:
        append, resized = EpisodeWriter.append, Rows.resize

        def stop(writer: EpisodeWriter, *arguments: object) -> int:
            if writer.episodes == kept:  # with the rows of the next one written and not yet counted
                patch.setattr(Rows, "resize", die)
            return append(writer, *arguments)

        def die(*_: object) -> None:
            patch.setattr(Rows, "resize", resized)
            raise Stopped

        patch.setattr(EpisodeWriter, "append", stop)
        patch.setattr(EpisodeWriter, "finish", die)  # the end may as well come between the last episode and this
        with pytest.raises(Stopped):
            collect(config)
    assert EpisodeStore(config.out).episodes == kept and not EpisodeStore(config.out).finished
    assert settings_of(config.out) == config
    told: list[Collected] = []
    assert collect(config, told.append) == whole == told[-1] and told[0].kept == kept
    assert EpisodeStore(config.out).finished
    assert_same_data(config.out, tmp_path / "whole")
    with pytest.raises(FileExistsError, match="already exists"):
        collect(config)
    with pytest.raises(DataError, match="is finished, with 7 episodes"):
        settings_of(config.out)


def assert_same_data(one: Path, other: Path) -> None:
    first, second = EpisodeStore(one), EpisodeStore(other)
    assert first.features == second.features and first.tasks == second.tasks and first.robot == second.robot
    assert first.episode_ends.tolist() == second.episode_ends.tolist()
    assert first.provenance["seeds"] == second.provenance["seeds"]
    assert all(np.array_equal(first.read(key), second.read(key)) for key in first.features)
    for key, values in first.statistics().items():
        np.testing.assert_equal(asdict(values), asdict(second.statistics()[key]))


def interrupted(config: CollectConfig, monkeypatch: pytest.MonkeyPatch, after: int = 2) -> str:
    """Ctrl-C once so many episodes are kept; what is said of it."""

    def report(done: Collected) -> None:
        if done.kept == after:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as caught:
        collect(config, report)
    return str(caught.value)


def test_an_interrupt_says_what_is_kept_and_other_settings_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    config = CollectConfig(ENV, tmp_path / "[red]data", episodes=6)
    assert (
        interrupted(config, monkeypatch)
        == f"{config.out} keeps 2 whole episodes, and the same command goes on with them"
    )
    for other, told in (
        (replace(config, episodes=5), "episodes 6, now 5"),
        (replace(config, seed=1), "seed 0, now 1"),
        (
            replace(config, env="aloha-insertion", noise=(0.1,)),
            "env 'aloha-transfer-cube', now 'aloha-insertion'; noise",
        ),
    ):
        with pytest.raises(ValueError, match=re.escape(told)) as caught:
            collect(other)
        assert "--resume" in str(caught.value) and "\n" not in str(caught.value)
    assert EpisodeStore(config.out).episodes == 2
    (tmp_path / "[red]data").rename(tmp_path / "moved")
    assert main(["collect", "--resume", str(tmp_path / "moved")]) == 0
    collect(replace(config, out=tmp_path / "whole", workers=3))
    assert_same_data(tmp_path / "moved", tmp_path / "whole")


def test_two_collections_never_write_one_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None) -> None:
    config, refused = CollectConfig(ENV, tmp_path / "data", episodes=3), []

    def report(done: Collected) -> None:
        if done.kept == 1 and not refused:
            with pytest.raises(FileExistsError, match="is being collected by another process") as caught:
                collect(config)
            refused.append(caught.value)

    collect(config, report)
    assert refused and EpisodeStore(config.out).episodes == 3


def test_what_is_refused_leaves_nothing_and_an_empty_folder_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    free = tmp_path / "free"
    free.mkdir()
    assert collect(CollectConfig(ENV, free, episodes=1)).kept == 1
    for taken in ("file", "folder", "link", "pipe"):
        path = tmp_path / taken
        match taken:
            case "file":
                path.write_text("mine")
            case "folder":
                path.mkdir()
                (path / "mine").touch()
            case "link":
                path.symlink_to(tmp_path / "nowhere")
            case "pipe":
                os.mkfifo(path)
        with pytest.raises(FileExistsError, match=f"{taken} already exists"):
            collect(CollectConfig(ENV, path, episodes=1))
    before = sorted(tmp_path.rglob("*"))
    refused = tmp_path / "new" / "data"
    monkeypatch.setattr("robostack.experts.aloha.require_gl", no_gl)
    with pytest.raises(RuntimeError, match="no OpenGL"):
        collect(CollectConfig(ENV, refused, cameras=("top",)))
    with pytest.raises(ValueError, match="unknown camera"):
        collect(CollectConfig(ENV, refused, cameras=("front",)))
    monkeypatch.setattr("robostack.experts.collect.demonstrations", failing)
    with pytest.raises(CollectionError):
        collect(CollectConfig(ENV, refused))
    assert sorted(path for path in tmp_path.rglob("*") if "new" not in path.parts) == before


def no_gl() -> str:
    raise RuntimeError("no OpenGL")


def test_a_full_disk_keeps_the_whole_episodes_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    config = CollectConfig(ENV, tmp_path / "data", episodes=4)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with (
        monkeypatch.context() as patch,
        pytest.raises(DiskFullError, match=r"the disk is full at .*data keeps 2 whole episodes"),
    ):
        collect(config, lambda done: patch.setattr(Rows, "write", full) if done.kept == 2 else None)
    assert EpisodeStore(config.out).episodes == 2
    collect(config)
    collect(replace(config, out=tmp_path / "whole"))
    assert_same_data(config.out, tmp_path / "whole")


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    """In a process whose files may have so many bytes."""
    program = """
import resource, sys
from robostack.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
raise SystemExit(main(sys.argv[2:]))
"""
    arguments = ["collect", "--env", ENV, "--episodes", "2", "--out", str(tmp_path / "data"), "--workers", "1"]
    for limit in ("300", "30000"):  # it does not suffice for the new data set, or for its first episode
        full = subprocess.run([sys.executable, "-c", program, limit, *arguments], capture_output=True, text=True)
        lines = [line for line in full.stderr.splitlines() if "disk is full" in line]
        assert full.returncode == 1 and "Traceback" not in full.stderr and len(lines) == 1, full.stderr
        assert {path.name for path in tmp_path.iterdir()} == ({"data"} if limit == "30000" else set())
    assert collect(CollectConfig(ENV, tmp_path / "data", episodes=2)).kept == 2


class Reacher(gym.Env):
    """Somebody's environment, that says little of itself."""

    metadata = {"render_fps": 20}  # noqa: RUF012
    observation_space = gym.spaces.Box(-1, 1, (4,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (3,), np.float32)


@pytest.mark.parametrize("names", [None, ("x", "y", "z")])
def test_entries_have_the_names_that_the_environment_gives_them_or_none(tmp_path: Path, names: tuple | None) -> None:
    env = Reacher()
    if names:
        env.feature_names, env.feature_units, env.task, env.robot = (
            {"action": names},
            {"action": ("m",) * 3},
            "go",
            "reach3",
        )
    world = describe(gym.wrappers.TimeLimit(env, 5))
    assert (world.task, world.robot, world.fps) == (("go", "reach3", 20) if names else ("Reacher", None, 20))
    features = _features(
        {"observation.state": np.zeros((5, 4), np.float32), "action": np.zeros((5, 3), np.float32)}, world
    )
    assert features["action"] == Feature((3,), "float32", names or (), ("m",) * 3 if names else ())
    assert features["observation.state"] == Feature((4,), "float32")


def test_names_that_are_not_as_many_as_the_entries_are_refused() -> None:
    env = Reacher()
    env.feature_names = {"action": ("x", "y", "z", "gripper")}
    with pytest.raises(DataError, match=r"action as the environment describes it: expected 3 names .* got 4"):
        _features({"action": np.zeros((5, 3), np.float32)}, describe(env))
    env.metadata = {"render_modes": []}
    with pytest.raises(ValueError, match="expected its rate in Hz"):
        describe(env)


@pytest.mark.parametrize("name", [ENV, "aloha-insertion"])
def test_aloha_names_every_entry_of_its_features(name: str) -> None:
    env = envs.make(name)
    seen = env.reset(seed=0)[0] | {"action": env.action_space.sample()}
    features = _features({key: value[None] for key, value in seen.items()}, describe(env))
    assert all(len(feature.names) == len(feature.units) == feature.shape[0] for feature in features.values())
    assert features["action"].names[6] == "left_gripper" and features["action"].units[0] == "rad"
    vector = envs.make_vector(name, 2)
    assert describe(vector).names == describe(env).names and describe(vector).units == describe(env).units


@pytest.mark.parametrize(("noise", "tried"), [((), 11), ((0.0, 0.1), 21), ((0.1,), None)])
def test_an_expert_that_fails_undisturbed_is_told(tmp_path: Path, monkeypatch, noise, tried: int | None) -> None:
    """What fails under a disturbance says nothing of the expert."""
    tries = []
    monkeypatch.setattr("robostack.experts.collect.demonstrations", failing)
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
        assert re.search(r"interrupted; .*data keeps \d+ whole episodes, and the same command goes on", text)
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
