"""One episode is one seed: whatever runs beside it. And an evaluation tells what it found, once, in one place."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from robostack.common.extras import MissingExtraError
from robostack.datasets.formats.video import read_frames
from robostack.evaluation import evaluate as evaluation_module
from robostack.evaluation.actors import ExpertActor, Look, PolicyActor, load_actor
from robostack.evaluation.config import EvalConfig, results_folder
from robostack.evaluation.evaluate import summarize, workers_on
from robostack.evaluation.rollout import Outcome, make_worlds, run_episodes, run_together
from robostack.experts.collect import CollectConfig, collect
from robostack.pages.evaluation import write_report
from robostack.policies.pi0 import Pi0Config
from robostack.runtime.agent import Agent
from robostack.training.config import TrainConfig
from robostack.training.trainer import train

evaluate = partial(evaluation_module.evaluate, write_page=write_report)

ENV = "aloha-transfer-cube"
POLICY = Pi0Config(expert_width=32, prefix_width=16, depth=1, heads=2, sample_steps=2)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A barely trained policy: its arms wander, so that every difference would show."""
    folder = tmp_path_factory.mktemp("evaluate")
    collect(CollectConfig(ENV, folder / "data", episodes=2, workers=1))
    config = TrainConfig((folder / "data",), folder / "run", steps=4, batch=8, log_every=2, threads=1)
    return train("pi0", POLICY, config)


def outcome(episode: Outcome) -> Outcome:
    return dataclasses.replace(episode, latencies_ms=())


def test_an_episode_does_not_depend_on_workers_order_or_company(run: Path) -> None:
    worlds, actor = make_worlds(ENV), PolicyActor(Agent.load(run))
    alone = {seed: outcome(*run_together(worlds, actor, [seed])) for seed in (13, 11)}
    make = partial(load_actor, run)
    for workers in (1, 2):
        together = {e.seed: outcome(e) for e in run_episodes(ENV, make, range(11, 14), workers)}
        assert {seed: together[seed] for seed in alone} == alone


def test_actions_do_not_depend_on_what_the_actor_did_before(run: Path) -> None:
    worlds, actor = make_worlds(ENV), PolicyActor(Agent.load(run))

    def first_chunk(seed: int) -> np.ndarray:
        worlds.reset(seed=[seed])
        actor.begin(worlds, [seed])
        return np.concatenate([actor.act(worlds.look, np.zeros(1)) for _ in range(POLICY.execute_len)])

    before = first_chunk(3)
    first_chunk(4)
    assert np.array_equal(first_chunk(3), before) and before.shape == (POLICY.execute_len, 14)


def test_an_evaluation_is_written_once_and_whole(run: Path) -> None:
    seen = []
    evaluation = evaluate(str(run), EvalConfig(ENV, episodes=3, videos=1), seen.append)
    folder = run / f"eval-{ENV}"
    assert evaluation.folder == folder and len(seen) == 3
    summary = json.loads((folder / "summary.json").read_text())
    assert summary == evaluation.summary
    assert {"env", "policy", "episodes", "seed", "success", "success_interval", "final"} <= set(summary)
    assert summary["success_interval"][0] <= summary["success"] <= summary["success_interval"][1]
    assert sum(summary["stages"].values()) == 3
    records = [json.loads(line) for line in (folder / "episodes.jsonl").read_text().splitlines()]
    assert [record["seed"] for record in records] == [1_000_000, 1_000_001, 1_000_002]
    assert all(record["chunks"] == 400 // POLICY.execute_len for record in records)
    page = (folder / "report.html").read_text()
    videos = list((folder / "videos").iterdir())
    assert len(videos) == page.count("<video") == 1
    frames, _ = read_frames(videos[0])
    assert len(frames) == 201
    with pytest.raises(FileExistsError, match="already exists"):
        evaluate(str(run), EvalConfig(ENV, episodes=1))


def test_a_simulation_that_diverges_is_a_failed_episode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its warning to MUJOCO_LOG.TXT

    class Wild:
        latencies_ms: ClassVar[list[float]] = []

        def begin(self, worlds: Any, seeds: Sequence[int]) -> None:
            self.space = worlds.single_action_space
            self.space.seed(seeds[0])

        def act(self, look: Look, rewards: np.ndarray) -> np.ndarray:
            return self.space.sample()[None]

    worlds = make_worlds(ENV)
    episodes = [episode for seed in range(40) for episode in run_together(worlds, Wild(), [seed])]
    diverged = [e for e in episodes if e.diverged_step is not None]
    assert diverged and all(not e.final and e.stage_final == 0 for e in diverged)


def test_seeds_of_the_demonstrations_are_refused(run: Path) -> None:
    with pytest.raises(ValueError, match="demonstrations of seeds 0 to 1"):
        evaluate(str(run), EvalConfig(ENV, episodes=5, seed=1))


def test_the_expert_is_evaluated_like_a_policy(tmp_path: Path) -> None:
    (episode,) = run_together(make_worlds(ENV), ExpertActor(ENV), [7])
    assert episode.success and episode.final and len(episode.latencies_ms) == 1
    evaluation = evaluate("expert", EvalConfig(ENV, episodes=2, videos=0, out=tmp_path / "expert"))
    assert evaluation.summary["policy"] == "expert" and evaluation.summary["final"] == 1.0


def test_an_expert_takes_no_flag_of_policies(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="execute_len, target_return is for policies"):
        evaluate("expert", EvalConfig(ENV, execute_len=5, target_return=3.0, out=tmp_path / "expert"))


def test_a_summary_counts_success_at_any_time_and_at_the_end() -> None:
    def episode(seed: int, stages: list[int]) -> Outcome:
        reached = [i for i, stage in enumerate(stages) if stage == 4]
        first = reached[0] if reached else None
        held, total = stages[-1] == 4, float(sum(stages))
        return Outcome(seed, bool(reached), held, max(stages), stages[-1], first, None, total, (1.0, 3.0))

    summary = summarize("env", "p", 0, [episode(0, [0, 4, 2]), episode(1, [0, 1, 4]), episode(2, [0, 1, 1])], 4)
    assert summary["success"] == pytest.approx(2 / 3) and summary["final"] == pytest.approx(1 / 3)
    assert summary["stages"] == {"0": 0, "1": 1, "2": 0, "3": 0, "4": 2}
    assert summary["latency_ms_p50"] == 2.0 and summary["mean_return"] == pytest.approx(13 / 3)


def test_a_gpu_that_is_not_there_is_one_line_and_leaves_no_folder(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="device 'cuda' was asked for, but torch sees no GPU: take --device auto"):
        evaluate(str(run), EvalConfig(ENV, device="cuda", out=tmp_path / "out"))
    with pytest.raises(ValueError, match="device is for policies"):
        evaluate("expert", EvalConfig(ENV, device="cuda", out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "value"), [("execute_len", 0), ("videos", -1), ("workers", -1), ("episodes", 0)])
def test_numbers_that_make_no_sense_are_refused(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least [01], got {value}"):
        EvalConfig(ENV, **{name: value})


def test_the_folder_of_the_results_lies_in_the_run_whatever_the_level_is_called() -> None:
    for env in ("kinetix:../../mine.json", "kinetix:random/m/7", "robostack/AlohaInsertion-v0"):
        folder = results_folder("run", EvalConfig(env))
        assert folder.parent == Path("run") and folder.name.startswith("eval-")


def test_no_pictures_need_no_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, package: str | None = None) -> Any:
        return None if name in ("av", "matplotlib") else find_spec(name, package)

    monkeypatch.setattr("importlib.util.find_spec", missing)
    with pytest.raises(MissingExtraError, match="av"):
        evaluate("expert", EvalConfig(ENV, out=tmp_path / "filmed"))
    assert not (tmp_path / "filmed").exists()
    evaluate("expert", EvalConfig(ENV, episodes=1, videos=0, workers=1, out=tmp_path / "out"))
    assert (tmp_path / "out" / "report.html").is_file()


FLAT = """
from pathlib import Path
from robostack.evaluation.evaluate import EvalConfig, evaluate
from robostack.pages.evaluation import write_report
print("begun")
done = evaluate(
    "expert", EvalConfig("aloha-transfer-cube", episodes=2, videos=0, workers={workers}, out=Path({out!r})),
    write_page=write_report)
print(done.summary["episodes"])
"""


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_flat_script_can_evaluate(workers: int, tmp_path: Path) -> None:
    script = tmp_path / "flat.py"
    script.write_text(FLAT.format(workers=workers, out=str(tmp_path / "out")))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert (done.stdout, done.returncode) == ("begun\n2\n", 0), done.stderr


def test_one_worker_is_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("a pool was made")

    monkeypatch.setattr("robostack.evaluation.rollout.worker_pool", refuse)
    threads = torch.get_num_threads()
    (episode,) = run_episodes(ENV, partial(ExpertActor, ENV), range(7, 8), workers=1)
    assert episode.success and torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("parameters", "free_gib", "expected"), [(10**6, 79, 8), (3 * 10**9, 79, 3), (7 * 10**9, 40, 1)]
)
def test_a_gpu_has_as_many_workers_as_it_has_room_for(
    parameters: int, free_gib: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("robostack.evaluation.evaluate.cores", lambda: 8)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free_gib << 30, 80 << 30))
    assert workers_on(torch.device("cuda"), parameters) == expected
    assert workers_on(torch.device("cpu"), parameters) == 8
