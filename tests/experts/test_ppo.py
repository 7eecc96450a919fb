"""PPO: its formulas against plain numpy, and experts that learn, resume, load and act as they should."""

import dataclasses
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support import RAN

from robostack.cli import main
from robostack.common.interrupt import Interrupted
from robostack.common.provenance import Resumed
from robostack.envs.kinetix.levels import load_level
from robostack.envs.kinetix.simulation import ACTION_HIGH, ACTION_LOW, Transition
from robostack.experts.ppo import training as ppo_training
from robostack.experts.ppo.acting import Acting, PpoExpert, play, used_controls
from robostack.experts.ppo.algorithm import Learner, Start, advantage, surrogate_loss, update_program
from robostack.experts.ppo.checkpoint import ExpertCheckpoint, ExpertError, newest_expert
from robostack.experts.ppo.config import ExpertConfig, PpoConfig
from robostack.experts.ppo.network import ActorCritic, RunningStatistics
from robostack.experts.ppo.training import UpdateReport, read_updates, resume_expert, train_expert

ENV = "kinetix-s-h6_unicycle_right"
TINY = PpoConfig(worlds=8, steps=8, epochs=2, minibatches=2, widths=(16,), max_episode_steps=12, normalise=True)
SIMPLE = PpoConfig(worlds=32, steps=16, minibatches=4, widths=(16,), max_episode_steps=20)


def config(out: Path) -> ExpertConfig:
    return ExpertConfig(ENV, out, updates=4, first_checkpoint=1, evaluation_episodes=8, ppo=TINY)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four tiny updates in a real level, with checkpoints after 1, 2 and 4."""
    return train_expert(config(tmp_path_factory.mktemp("expert") / "run"))


class Place(NamedTuple):
    """On a line, at x; the goal is at 1."""

    x: jax.Array
    timestep: jax.Array

    def replace(self, **values: jax.Array) -> "Place":
        return self._replace(**values)


class Line:
    """The first number of an action moves, the others do nothing."""

    def step(self, state: Place, action: jax.Array, key: jax.Array) -> Transition:
        noise = 0.01 * jax.random.normal(key)
        after = Place(state.x + 0.1 * jnp.clip(action[0], -1.0, 1.0) + noise, state.timestep + 1)
        goal = jnp.abs(after.x - 1.0) < 0.1
        reward = jnp.float32(goal) + jnp.abs(state.x - 1.0) - jnp.abs(after.x - 1.0)
        return Transition(after, reward, goal | (after.x < -1.0), goal, jnp.array(False))

    def observe(self, state: Place) -> dict[str, jax.Array]:
        return {"observation.state": jnp.stack([state.x, state.x**2])}


LINE = Line()


def line_start() -> Start:
    return Start(Place(jnp.float32(0.0), jnp.int32(0)), jnp.arange(6) == 0)


def test_advantages_are_those_of_a_plain_loop() -> None:
    rng, shape, discount, trace = np.random.default_rng(0), (40, 3), 0.97, 0.9
    reward, value, next_value = rng.normal(size=(3, *shape))
    terminated = rng.random(shape) < 0.1
    over = terminated | (rng.random(shape) < 0.1)
    expected = np.zeros(shape)
    for world in range(shape[1]):
        for t in range(shape[0]):
            # The definition: a discounted sum of errors up to where the episode ends or is cut off.
            weight = 1.0
            for k in range(t, shape[0]):
                ahead = 0.0 if terminated[k, world] else next_value[k, world]
                expected[t, world] += weight * (reward[k, world] + discount * ahead - value[k, world])
                weight *= discount * trace
                if over[k, world]:
                    break
    reward, value, next_value = (jnp.float32(array) for array in (reward, value, next_value))
    found = advantage(reward, value, next_value, jnp.array(terminated), jnp.array(over), discount, trace)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert (over & ~terminated).sum() > 3


def test_a_cut_off_episode_is_worth_what_the_critic_expects() -> None:
    one = jnp.ones((1, 1))
    for terminated, expected in ((True, 1.0 - 5.0), (False, 1.0 + 0.5 * 8.0 - 5.0)):
        ends = jnp.full((1, 1), terminated)
        assert advantage(one, 5.0 * one, 8.0 * one, ends, jnp.full((1, 1), True), 0.5, 0.9).item() == expected


def test_surrogate_is_the_clipped_objective() -> None:
    rng, clip = np.random.default_rng(1), 0.2
    log_ratio, advantages = rng.normal(scale=0.5, size=100), rng.normal(size=100)
    ratio = np.exp(log_ratio)
    clipped = np.where(
        advantages > 0, np.minimum(ratio, 1 + clip) * advantages, np.maximum(ratio, 1 - clip) * advantages
    )
    found = surrogate_loss(jnp.float32(log_ratio), jnp.float32(advantages), clip)
    assert found.item() == pytest.approx(-clipped.mean(), abs=1e-6)
    slope = jax.grad(lambda log_ratio: surrogate_loss(log_ratio, jnp.array([1.0, -1.0]), clip))
    assert (np.asarray(slope(jnp.array([0.5, -0.5]))) == 0.0).all()  # already moved as far as it may
    assert (np.asarray(slope(jnp.array([-0.5, 0.5]))) != 0.0).all()


def test_statistics_are_those_of_all_observations() -> None:
    observations = np.random.default_rng(2).normal(3.0, [0.1, 5.0, 0.0], (5, 7, 11, 3)).astype(np.float32)
    statistics = RunningStatistics.initial(3)
    np.testing.assert_allclose(statistics.normalised(jnp.array(observations[0])), observations[0].clip(-10, 10))
    for part in observations:
        statistics = statistics.updated(jnp.array(part))
    rows = observations.reshape(-1, 3)
    np.testing.assert_allclose(statistics.mean, rows.mean(0), rtol=1e-5)
    np.testing.assert_allclose(statistics.variance, rows.var(0), rtol=1e-4, atol=1e-9)
    normal = np.asarray(statistics.normalised(jnp.array(rows)))
    np.testing.assert_allclose(normal.std(0), [1.0, 1.0, 0.0], atol=1e-3)


def test_probabilities_are_those_of_the_used_actions() -> None:
    network = ActorCritic.initial(jax.random.PRNGKey(0), 4, 3, (8, 8), 0.5)
    used, mean, action = jnp.array([True, False, True]), jnp.array([0.1, 0.2, 0.3]), jnp.array([0.5, 9.0, -0.2])
    z = (np.array([0.4, -0.5])) / 0.5
    expected = (-0.5 * z**2 - np.log(0.5) - 0.5 * np.log(2 * np.pi)).sum()
    assert network.log_density(mean, action, used).item() == pytest.approx(expected, rel=1e-5)
    assert network.entropy(used).item() == pytest.approx(2 * (np.log(0.5) + 0.5 * np.log(2 * np.pi * np.e)), rel=1e-5)
    weight = np.asarray(network.actor[1].weight)
    np.testing.assert_allclose(weight.T @ weight, 2.0 * np.eye(8), atol=1e-5)


def test_a_simple_problem_is_learned() -> None:
    world, start = LINE, line_start()
    learner = Learner.initial(world, start, SIMPLE, seed=0)
    before = play(world, start, Acting(learner.network, learner.statistics, start.used), 64, 20, seed=1)
    solved = []
    for _ in range(30):
        learner, metrics = update_program(world, SIMPLE)(start, learner, jnp.float32(3e-3))
        solved.append(metrics.solved.item())
    after = play(world, start, Acting(learner.network, learner.statistics, start.used), 64, 20, seed=1)
    assert before["success"] < 0.2 and after["success"] > 0.9
    assert solved[-1] > 0.9 and after["mean_length"] < 15 and after["mean_return"] > before["mean_return"]


class Echo(NamedTuple):
    """Acts what it sees."""

    scale: jax.Array

    def best(self, observations: jax.Array) -> jax.Array:
        return self.scale * observations


class Clock(Line):
    """Shows the step, and is solved by answering at step 6 what was to be seen `delay` steps before."""

    def __init__(self, delay: int) -> None:
        self.delay = delay

    def step(self, state: Place, action: jax.Array, key: jax.Array) -> Transition:
        right = (state.timestep == 6) & (action[0] == 6 - self.delay)
        none = jnp.array(False)
        return Transition(state.replace(timestep=state.timestep + 1), jnp.float32(right), right, right, none)

    def observe(self, state: Place) -> dict[str, jax.Array]:
        return {"observation.state": jnp.float32(state.timestep)[None]}


@pytest.mark.parametrize("delay", [0, 1, 3])
def test_delayed_observations_are_as_old_as_asked_for(delay: int) -> None:
    found = [play(Clock(delay), line_start(), Echo(jnp.float32(1)), 2, 9, 0, given) for given in range(4)]
    assert [result["successes"] for result in found] == [2 if given == delay else 0 for given in range(4)]
    assert found[delay]["mean_length"] == 7 and found[delay - 1]["mean_length"] == 9


def test_a_level_is_moved_by_what_is_bound_in_it() -> None:
    level = load_level("s/h6_unicycle_right")
    assert used_controls(level) == (True, False, False, False, False, False)
    assert any(used_controls(load_level("s/h0_weak_thrust"))[4:])


def test_a_run_leaves_checkpoints_with_what_they_reach(run: Path) -> None:
    assert [path.name[-2:] for path in sorted(run.glob("checkpoints/*"))] == ["01", "02", "04"]
    checkpoint = ExpertCheckpoint.read(run)
    assert checkpoint.evaluation is not None
    assert checkpoint.update == 4 and checkpoint.evaluation["episodes"] == 8
    low, high = checkpoint.evaluation["success_interval"]
    assert low <= checkpoint.evaluation["success"] <= high
    log = read_updates(run)
    assert [line["update"] for line in log] == [1, 2, 3, 4] and log[-1]["env_steps"] == 4 * 64
    assert all(a["cpu_s"] < b["cpu_s"] for a, b in pairwise(log))


def test_a_resumed_run_goes_on_bit_for_bit(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(newest_expert(tmp_path / "run"))
    assert newest_expert(resume_expert(tmp_path / "run")).name == newest_expert(run).name
    for file in ("expert.safetensors", "training.safetensors"):
        assert (newest_expert(run) / file).read_bytes() == (newest_expert(tmp_path / "run") / file).read_bytes()
    timings = ("steps_per_s", "cpu_s", "time_s")
    whole, resumed = (
        [{key: value for key, value in line.items() if key not in timings} for line in read_updates(folder)]
        for folder in (run, tmp_path / "run")
    )
    assert whole == resumed


def test_the_same_seed_gives_the_same_update() -> None:
    start = line_start()

    def after(seed: int) -> np.ndarray:
        begun = Learner.initial(LINE, start, SIMPLE, seed)
        learner, _ = update_program(LINE, SIMPLE)(start, begun, jnp.float32(1e-3))
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(learner)])

    assert (after(0) == after(0)).all() and (after(0) != after(1)).any()


def test_actions_stay_within_bounds_and_unused_ones_are_zero(run: Path) -> None:
    expert = PpoExpert.load(run)
    observations = np.random.default_rng(0).normal(size=(5, 140)).astype(np.float32)
    actions = expert.act({"observation.state": observations, "task": np.zeros(5)})
    assert actions.shape == (5, 6) and actions.dtype == np.float32
    assert (actions[:, 1:] == 0).all() and (actions[:, 0] != 0).all()
    loud = expert.acting.network._replace(actor=(*expert.acting.network.actor[:-1], expert.acting.network.actor[-1]))
    loud = loud._replace(actor=(*loud.actor[:-1], loud.actor[-1]._replace(bias=jnp.full(6, -9.0))))
    extreme = Acting(loud, expert.acting.statistics, jnp.ones(6, dtype=bool)).best(jnp.array(observations))
    assert (extreme == ACTION_LOW).all() and (extreme <= ACTION_HIGH).all()
    np.testing.assert_allclose(expert.act({"observation.state": observations[:2]}), actions[:2], atol=1e-6)


def test_wrong_observations_are_told(run: Path) -> None:
    expert = PpoExpert.load(newest_expert(run))
    with pytest.raises(ExpertError, match=r"sees observation.state, got observation.entities"):
        expert.act({"observation.entities": np.zeros((1, 3))})
    with pytest.raises(ExpertError, match=r"expected observation.state of shape \(batch, 140\), got \(2, 247\)"):
        expert.act({"observation.state": np.zeros((2, 247))})


def same(one: Path, other: Path) -> bool:
    """Equal state after the last update, and equal reports but for their times."""
    timings = ("steps_per_s", "cpu_s", "time_s")
    logs = [
        [{key: value for key, value in line.items() if key not in timings} for line in read_updates(folder)]
        for folder in (one, other)
    ]
    files = ("expert.safetensors", "training.safetensors")
    return logs[0] == logs[1] and all(
        (newest_expert(one) / file).read_bytes() == (newest_expert(other) / file).read_bytes() for file in files
    )


@pytest.mark.parametrize(("number", "update"), [(signal.SIGINT, 3), (signal.SIGTERM, 1)])
def test_an_interrupt_leaves_a_checkpoint_that_goes_on_bit_for_bit(
    run: Path, tmp_path: Path, number: int, update: int
) -> None:
    def stop(report: UpdateReport) -> None:
        if report.update == update:
            os.kill(os.getpid(), number)

    told = dataclasses.replace(config(tmp_path / "run"), first_checkpoint=2)
    with pytest.raises(Interrupted) as stopped:
        train_expert(told, stop)
    assert f"update-{update:08d} is kept, and robostack expert --resume {told.out} goes on" in str(stopped.value)
    assert ExpertCheckpoint.read(told.out).evaluation is None
    with pytest.raises(FileExistsError, match=f"robostack expert --resume {told.out} goes on"):
        train_expert(told)
    resume_expert(told.out)
    assert same(told.out, run)
    last = ExpertCheckpoint.read(told.out)
    assert last.evaluation == ExpertCheckpoint.read(run).evaluation
    assert [one.step for one in last.training.resumed] == [update]


@pytest.mark.parametrize("version", [1, 2])
def test_what_an_earlier_robostack_wrote_is_still_read(run: Path, tmp_path: Path, version: int) -> None:
    folder = shutil.copytree(newest_expert(run), tmp_path / "expert")
    values = json.loads((folder / "expert.json").read_text())
    values["format"] = f"robostack-expert-{version}"
    if version == 1:
        del values["files"], values["training"]["resumed"]
    else:
        values["training"]["resumed"] = [{"update": 3, **RAN}]
    (folder / "expert.json").write_text(json.dumps(values))
    read = ExpertCheckpoint.read(folder)
    assert read.training.resumed == ((Resumed(3, **RAN),) if version == 2 else ())
    assert read.sealed == (version == 2) and read.acting()


def test_a_run_without_a_checkpoint_starts_from_update_0(run: Path, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(report: UpdateReport) -> None:
        raise Killed

    told = dataclasses.replace(config(tmp_path / "run"), first_checkpoint=4)
    with pytest.raises(Killed):
        train_expert(told, kill)
    with pytest.raises(
        ExpertError, match=f"no expert at {told.out} yet.* robostack expert --resume {told.out} goes on"
    ):
        ExpertCheckpoint.read(told.out)
    resume_expert(told.out)
    assert same(told.out, run)


def test_an_evaluation_that_was_stopped_is_made_up_for(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    file = newest_expert(tmp_path / "run") / "expert.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "evaluation": None}))
    resume_expert(tmp_path / "run")
    assert ExpertCheckpoint.read(tmp_path / "run").evaluation == ExpertCheckpoint.read(run).evaluation


def test_a_policy_that_is_not_finite_is_not_kept(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where the figures of its update are."""
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(newest_expert(tmp_path / "run"))
    updated = ppo_training.update_program

    class Poisoned:
        def __init__(self, program: Any) -> None:
            self.program = program

        def lower(self, *arguments: Any) -> Any:
            return self

        def compile(self) -> Any:
            return self

        def __call__(self, *arguments: Any) -> Any:
            learner, metrics = self.program(*arguments)
            network = learner.network._replace(log_deviation=learner.network.log_deviation * jnp.float32(jnp.nan))
            return learner._replace(network=network), metrics

    monkeypatch.setattr(ppo_training, "update_program", lambda *told: Poisoned(updated(*told)))
    with pytest.raises(RuntimeError, match=r"update-00000002 is kept.*smaller learning rate"):
        resume_expert(tmp_path / "run")
    assert newest_expert(tmp_path / "run").name == "update-00000002"


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_keeps_the_last_checkpoint(run: Path, tmp_path: Path) -> None:
    """In a process whose files may not grow beyond a size: a log that has grown so far already."""
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(newest_expert(tmp_path / "run"))
    largest = max(file.stat().st_size for file in newest_expert(run).iterdir())
    for limit, kept in ((largest - 1, "update-00000002 is kept"), (200, "update-00000002 is kept")):
        done = subprocess.run(
            [sys.executable, "-c", "from robostack.cli import main; raise SystemExit(main())", "expert", "--resume",
             str(tmp_path / "run")],
            preexec_fn=lambda limit=limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
            capture_output=True, text=True,
        )  # fmt: skip
        lines = [line for line in done.stderr.splitlines() if "disk is full" in line or "Traceback" in line]
        assert done.returncode == 1 and len(lines) == 1, done.stderr
        assert kept in lines[0] and f"robostack expert --resume {tmp_path / 'run'}" in lines[0]
        assert newest_expert(tmp_path / "run").name == "update-00000002"
        assert not list((tmp_path / "run").rglob(".*.new"))
    resume_expert(tmp_path / "run")
    assert same(tmp_path / "run", run)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("config", "ppo", "widths"), [10**9]),
        (("config", "ppo", "worlds"), 10**9),
        (("config", "ppo", "worlds"), 10**6),
        (("config", "ppo", "learning_rate"), float("nan")),
        (("observation",), 10**12),
        (("observation",), "140"),
        (("used",), [1] * 6),
        (("used",), [True] * 7),
        (("update",), -1),
        (("evaluation", "success"), "all"),
        (("evaluation",), []),
        (("training",), None),
        (("training", "cpu_s"), float("inf")),
        (("files",), {}),
        (("files", "expert.safetensors", "sha256"), "0" * 64),
    ],
)
def test_what_cannot_be_is_refused(run: Path, tmp_path: Path, path: tuple[str, ...], value: Any) -> None:
    folder = tmp_path / "run" / "checkpoints" / "update-00000004"
    shutil.copytree(newest_expert(run), folder)
    values = json.loads((folder / "expert.json").read_text())
    place = values
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (folder / "expert.json").write_text(json.dumps(values))
    with pytest.raises(ExpertError) as told:
        PpoExpert.load(folder)
        resume_expert(tmp_path / "run")
    assert "\n" not in str(told.value) and len(str(told.value)) < 1000


@pytest.mark.parametrize("name", ["expert.safetensors", "training.safetensors", "expert.json"])
@pytest.mark.parametrize("damage", ["zeros", "pipe", "device", "short", "huge"])
def test_a_file_that_is_not_what_was_written_is_refused(run: Path, tmp_path: Path, name: str, damage: str) -> None:
    folder = tmp_path / "run" / "checkpoints" / "update-00000004"
    shutil.copytree(newest_expert(run), folder)
    file = folder / name
    data = file.read_bytes()
    match damage:
        case "zeros":
            file.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
        case "short":
            file.write_bytes(data[:-3])
        case "huge":
            os.truncate(file, 1 << 32)
        case "pipe" | "device":
            file.unlink()
            os.mkfifo(file) if damage == "pipe" else file.symlink_to("/dev/zero")
    with pytest.raises(ExpertError) as told:
        PpoExpert.load(folder)
        resume_expert(tmp_path / "run")
    assert "\n" not in str(told.value)


def test_a_checkpoint_that_does_not_fit_is_refused(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(newest_expert(run), folder)
    whole = load_file(folder / "expert.safetensors")
    name = "0.actor.0.weight"
    for tensors, told in (
        ({key: value for key, value in whole.items() if key != name}, f"{name} missing"),
        ({**whole, "more": np.zeros(1)}, "more unknown"),
        ({**whole, name: whole[name][1:]}, f"{name} is (139, 16), expected (140, 16)"),
        ({**whole, name: whole[name].astype(np.float64)}, f"{name} is float64 (140, 16), expected float32 (140, 16)"),
    ):
        save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, folder / "expert.safetensors")
        with pytest.raises(ExpertError) as raised:
            PpoExpert.load(folder)
        assert told in str(raised.value) and "\n" not in str(raised.value)
    (folder / "expert.safetensors").write_bytes(b"cut")
    with pytest.raises(ExpertError, match="cannot be read"):
        PpoExpert.load(folder)
    values = json.loads((folder / "expert.json").read_text())
    for change in ({"format": "other"}, {"config": {**values["config"], "seed": "0"}}):
        (folder / "expert.json").write_text(json.dumps({**values, **change}))
        with pytest.raises(ExpertError, match=r"expected"):
            ExpertCheckpoint.read(folder)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--env", "aloha-insertion", "--out", "new"], "has a scripted expert"),
        (["--env", "kinetix-s-h6_unicycle", "--out", "new"], "unknown environment"),
        (["--env", "kinetix:nowhere.json", "--out", "new"], "does not exist"),
        (["--resume", "nowhere"], "no expert at nowhere"),
        (["--resume", "nowhere", "--updates", "3"], "nothing else"),
    ],
)
def test_bad_input_gives_one_line(
    arguments: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["expert", *arguments]) != 0
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and told in lines[0], lines
    assert not list(tmp_path.iterdir())


def test_without_jax_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["expert", "--env", ENV, "--out", str(tmp_path / "run")]) != 0
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and "pip install 'robostack[kinetix]'" in lines[0], lines


def test_settings_that_cannot_be_are_refused(tmp_path: Path) -> None:
    for settings, told in (
        ({"worlds": 3, "steps": 3}, "multiple of minibatches"),
        ({"widths": ()}, "widths must be at least 1"),
        ({"discount": 1.5}, "discount must be from 0 to 1"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive"),
    ):
        with pytest.raises(ValueError, match=told):
            PpoConfig(**settings)
    with pytest.raises(ValueError, match="updates must be at least 1"):
        ExpertConfig(ENV, tmp_path, updates=0)
    saved = [update for update in range(1, 50) if ExpertConfig(ENV, tmp_path, updates=50).is_checkpoint(update)]
    assert saved == [8, 16, 32]
