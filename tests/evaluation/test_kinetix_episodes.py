"""Kinetix from demonstrations to an evaluation: many episodes in one program, the same for the same seeds."""

import dataclasses
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from support import InProcess

from robostack import envs
from robostack.common.interrupt import Interrupted
from robostack.datasets.formats.video import read_frames
from robostack.datasets.store import EpisodeStore
from robostack.envs.kinetix.vector import KinetixVectorEnv
from robostack.evaluation import evaluate as evaluation_module
from robostack.evaluation import rollout
from robostack.evaluation.actors import PolicyActor
from robostack.evaluation.config import EvalConfig
from robostack.evaluation.rollout import Outcome, make_worlds, run_together
from robostack.experts import Asked
from robostack.experts.collect import CollectConfig, Collected, collect
from robostack.experts.ppo.acting import PpoExperts
from robostack.experts.record import record_episodes
from robostack.pages.evaluation import write_report
from robostack.policies.pi0 import Pi0Config
from robostack.runtime.agent import Agent
from robostack.training.config import TrainConfig
from robostack.training.trainer import train

evaluate = partial(evaluation_module.evaluate, write_page=write_report)

ENV, STEPS = "kinetix-s-h6_unicycle_right", 60
POLICY = Pi0Config(
    chunk_len=8, actions_per_token=4, execute_len=4, expert_width=32, prefix_width=16, depth=1, heads=2, sample_steps=2
)


class Player:
    """Drives with a strength that is its own."""

    def __init__(self, strength: float) -> None:
        self.strength = strength

    def act(self, observations) -> np.ndarray:
        state = observations["observation.state"]
        actions = np.zeros((len(state), 6), np.float32)
        actions[:, :4] = self.strength * np.tanh(state[:, :4] + state[:, 40:44])
        return actions


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """The four rows and sixty steps that tests/envs compile as well; everything in this process."""
    monkeypatch.setattr(KinetixVectorEnv, "rows_per_program", 4)
    monkeypatch.setattr(KinetixVectorEnv, "published", {"action_noise": 0.1, "max_episode_steps": STEPS})
    monkeypatch.setattr("robostack.experts.ppo.acting.PpoExpert.load", lambda path: Player(float(Path(path).name)))
    monkeypatch.setattr(rollout, "worker_pool", InProcess)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A barely trained policy."""
    folder = tmp_path_factory.mktemp("kinetix")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KinetixVectorEnv, "rows_per_program", 4)
        patch.setattr(KinetixVectorEnv, "published", {"action_noise": 0.1, "max_episode_steps": STEPS})
        patch.setattr("robostack.experts.ppo.acting.PpoExpert.load", lambda path: Player(float(Path(path).name)))
        experts = (Path("0.2"), Path("1.0"))
        collect(CollectConfig(ENV, folder / "data", episodes=4, expert=experts))
    config = TrainConfig((folder / "data",), folder / "run", steps=4, batch=8, log_every=2, threads=1)
    return train("pi0", POLICY, config)


def outcome(episode: Outcome) -> Outcome:
    return dataclasses.replace(episode, latencies_ms=())


def test_a_mixture_is_kept_whole_and_each_episode_is_its_seed_s(tmp_path: Path) -> None:
    experts = (Path("0.2"), Path("1.0"))
    observe = ("observation.state", "observation.entities")
    done = collect(CollectConfig(ENV, tmp_path / "data", episodes=6, seed=3, expert=experts, observe=observe))
    store = EpisodeStore(tmp_path / "data")
    assert done.kept == 6 and store.robot == "kinetix" and store.features["action"].names[4] == "thruster0"
    assert store.provenance["seeds"] == [3, 8] and store.provenance["collected"]["expert"] == ["0.2", "1.0"]
    assert len(store.features["observation.entities"].shape) == 2
    bounds = list(zip(store.episode_starts.tolist(), store.episode_ends.tolist(), strict=True))
    strongest = [np.abs(store.read("action", *bound)).max() for bound in bounds]
    assert max(strongest[0::2]) <= 0.2 < min(strongest[1::2])
    # The last two episodes ran in the second group of rows: alone they come out the same.
    worlds = envs.make_vector(ENV, 4, **KinetixVectorEnv.published)
    again = record_episodes(worlds, PpoExperts(Asked(experts, observe=observe, first=3)), range(7, 11))
    for episode, bound in zip(again, bounds[4:], strict=False):
        assert all(np.array_equal(store.read(key, *bound), values) for key, values in episode.items())


def test_an_interrupted_mixture_goes_on_with_the_same_episodes(tmp_path: Path) -> None:
    config = CollectConfig(ENV, tmp_path / "data", episodes=6, seed=3, expert=(Path("0.2"), Path("1.0")))
    collect(dataclasses.replace(config, out=tmp_path / "whole"))

    def stop(done: Collected) -> None:
        if done.kept == 5:  # the first of the second group of rows
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="keeps 5 whole episodes"):
        collect(config, stop)
    collect(config)
    again, whole = EpisodeStore(config.out), EpisodeStore(tmp_path / "whole")
    assert again.finished and again.provenance["seeds"] == whole.provenance["seeds"] == [3, 8]
    assert all(np.array_equal(again.read(key), whole.read(key)) for key in whole.features)


def test_failures_of_one_expert_are_left_out_and_told(tmp_path: Path) -> None:
    from robostack.experts.collect import CollectionError

    with pytest.raises(CollectionError, match=r"demonstrations in kinetix-s-h6_unicycle_right failed"):
        collect(CollectConfig(ENV, tmp_path / "data", episodes=20, expert=(Path("0.0"),)))


def test_what_cannot_be_recorded_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    config = CollectConfig(ENV, tmp_path / "data", expert=(Path("1.0"),), observe=("observation.depth",))
    with pytest.raises(ValueError, match=r"no observation\.depth to record"):
        collect(config)
    assert not (tmp_path / "data").exists()
    with pytest.raises(ValueError, match="noise and cameras are for scripted experts"):
        collect(CollectConfig(ENV, tmp_path / "data", expert=(Path("1.0"),), noise=(0.1,)))
    with pytest.raises(ValueError, match="observe goes with --expert"):
        collect(CollectConfig("aloha-insertion", tmp_path / "data", observe=("observation.entities",)))
    with pytest.raises(ValueError, match=r"train one with `robostack expert --env kinetix-s-h6_unicycle_right`"):
        collect(CollectConfig(ENV, tmp_path / "data"))


def test_episodes_that_run_together_come_out_the_same_again(run: Path) -> None:
    worlds, actor = make_worlds(ENV), PolicyActor(Agent.load(run))
    first = [outcome(e) for e in run_together(worlds, actor, range(4))]
    run_together(worlds, actor, range(4, 8))
    assert [outcome(e) for e in run_together(worlds, actor, range(4))] == first
    assert len({e.total_reward for e in first}) == 4, "the noise of each seed is its own"
    assert all(e.diverged_step is None and e.stage_max in (0, 1) for e in first)


def test_an_evaluation_counts_only_the_episodes_it_was_asked_for(run: Path) -> None:
    seen: list[Outcome] = []
    evaluation = evaluate(str(run), EvalConfig(ENV, episodes=6, videos=1), seen.append)
    assert sorted(e.seed for e in seen) == list(range(1_000_000, 1_000_006))
    assert evaluation.summary["together"] == 4 and set(evaluation.summary["stages"]) == {"0", "1"}
    more = evaluate(str(run), EvalConfig(ENV, episodes=8, videos=0, out=run / "more"))
    assert [outcome(e) for e in more.episodes[:6]] == [outcome(e) for e in evaluation.episodes]
    (video,) = (evaluation.folder / "videos").iterdir()
    frames, _ = read_frames(video)
    assert frames.shape[1:] == (500, 500, 3) and len(frames) <= STEPS / 2


def test_a_policy_of_entities_looks_at_them_in_its_episodes(tmp_path: Path) -> None:
    expert, observe = (Path("0.2"), Path("1.0")), ("observation.entities",)
    collect(CollectConfig(ENV, tmp_path / "data", episodes=2, expert=expert, observe=observe))
    path = train("pi0", POLICY, TrainConfig((tmp_path / "data",), tmp_path / "run", steps=2, batch=4, threads=1))
    episodes = run_together(make_worlds(ENV), PolicyActor(Agent.load(path)), range(4))
    assert len({e.total_reward for e in episodes}) == 4


def test_a_trained_expert_is_evaluated_like_a_policy(tmp_path: Path) -> None:
    folder = tmp_path / "1.0"
    folder.mkdir()
    (folder / "expert.json").write_text("{}")
    summary = evaluate(str(folder), EvalConfig(ENV, episodes=4, videos=0)).summary
    assert summary["policy"] == "expert" and 0.0 <= summary["success"] <= 1.0
