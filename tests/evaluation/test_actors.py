"""What a policy is shown in an episode is what the windows of a recording of that episode show in training."""

from collections import deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from support import RAN
from torch import nn

from robostack import envs
from robostack.datasets.episodes import Feature
from robostack.datasets.moments import History
from robostack.datasets.store import EpisodeStore, EpisodeWriter
from robostack.datasets.windows import WindowSampler
from robostack.envs.aloha.cameras import parse_camera
from robostack.envs.aloha.vector import AlohaVectorEnv
from robostack.evaluation.actors import PolicyActor
from robostack.evaluation.rollout import make_worlds, run_together
from robostack.policies import registry
from robostack.policies.checkpoint import Checkpoint, PolicyTraining
from robostack.policies.protocol import Interface, Observation
from robostack.runtime.agent import Agent
from robostack.runtime.chunks import temporal_ensemble
from robostack.training.preparation import prepare

CAMERA = parse_camera("top_zoom:16x16")
ENV, KEYS = "aloha-transfer-cube", ("observation.state", "observation.images.top_zoom")


@dataclass(frozen=True)
class StubConfig:
    chunk_len: int = 6
    execute_len: int = 3
    history: History = History(length=3, stride=2, returns=True)


class Stub(nn.Module):
    """Wanders, and keeps what it was shown."""

    def __init__(self, config: StubConfig, interface: Interface) -> None:
        super().__init__()
        self.config, self.interface = config, interface
        self.shown: list[Observation] = []

    def sample(self, observation: Observation, generator: torch.Generator) -> torch.Tensor:
        self.shown.append(observation)
        shape = (1, self.config.chunk_len, self.interface.action_dim)
        return observation.state[:, -1:, :14] + 0.1 * torch.randn(shape, generator=generator)


class Recorder(AlohaVectorEnv):
    """Keeps what it was told and answered."""

    rows: dict[str, list]

    def reset(self, **kwargs):
        self.rows = {"action": [], "next.reward": [], **{key: [] for key in KEYS}}
        return self._kept(super().reset(**kwargs))

    def step(self, actions):
        result = super().step(actions)
        self.rows["action"].append(actions[0])
        self.rows["next.reward"].append(np.float32(result[1][0]))
        return self._kept(result)

    def _kept(self, result):
        self.rows[KEYS[0]].append(result[0][KEYS[0]][0])
        self.rows[KEYS[1]].append(self.envs[0].render_camera(CAMERA))
        return result


def save_stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: StubConfig) -> Checkpoint:
    """A checkpoint of the stub, with the statistics of some demonstrations."""
    monkeypatch.setitem(registry.POLICIES, "stub", registry.Named(__name__, "StubConfig", "Stub"))
    features = {
        KEYS[0]: Feature((14,), "float32"),
        KEYS[1]: Feature((16, 16, 3), "uint8"),
        "action": Feature((14,), "float32"),
        "next.reward": Feature((), "float32"),
    }
    env, rng = envs.make(ENV), np.random.default_rng(0)
    rest = env.reset(seed=0)[0][KEYS[0]]
    writer = EpisodeWriter(tmp_path / "demonstrations", features, 50, robot=env.get_wrapper_attr("robot"))
    state = (rest + 0.05 * rng.normal(size=(20, 14))).astype(np.float32)
    picture = np.zeros((20, 16, 16, 3), np.uint8)
    reward = np.ones(20, np.float32)
    writer.append(
        {KEYS[0]: state, KEYS[1]: picture, "action": state, "next.reward": reward}, env.get_wrapper_attr("task")
    )
    store = EpisodeStore(tmp_path / "demonstrations")
    processor = prepare([store], config.chunk_len, history=config.history)
    training = PolicyTraining(config={}, data=(), **RAN)
    saved = Checkpoint(tmp_path / "stub", "stub", config, processor, 0, training)
    saved.save({"average": {}})
    return saved


def test_a_policy_is_shown_what_a_recording_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = StubConfig()
    saved = save_stub(tmp_path, monkeypatch, config)
    worlds = Recorder(1)
    actor = PolicyActor(Agent.load(saved.path, target_return=100.0))
    (episode,) = run_together(worlds, actor, [3])
    rows = {key: np.stack(values[:400]) for key, values in worlds.rows.items()}
    assert len(worlds.rows["action"]) == 400 and episode.total_reward == rows["next.reward"].sum()

    features = {key: Feature(tuple(values.shape[1:]), str(values.dtype)) for key, values in rows.items()}
    writer = EpisodeWriter(tmp_path / "recorded", features, 50, robot=worlds.robot)
    writer.append(rows, worlds.task)
    store = EpisodeStore(tmp_path / "recorded")
    sampler = WindowSampler(store, KEYS, config.chunk_len, history=config.history)
    decisions = np.arange(0, 400, config.execute_len)
    windows = sampler.gather(decisions)
    robot = saved.processor.choose(None)
    shown = saved.processor.observe(windows, [worlds.task] * len(decisions), robot)
    seen = Observation.concatenate(actor.agent.policy.shown)
    assert len(episode.latencies_ms) == len(decisions)
    assert torch.equal(seen.state, shown.state) and torch.equal(seen.valid, shown.valid)
    assert torch.equal(seen.images["top_zoom"], shown.images["top_zoom"])
    torch.testing.assert_close(seen.past_actions, shown.past_actions)
    assert seen.returns_to_go is not None and shown.returns_to_go is not None
    # Asked for 100 where the episode earned less: the difference stays.
    more = (100.0 - episode.total_reward) / (saved.processor.largest_return or 1.0)
    torch.testing.assert_close(seen.returns_to_go, shown.returns_to_go + more)


def test_an_ensemble_runs_the_average_of_overlapping_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = save_stub(tmp_path, monkeypatch, StubConfig(history=History()))
    worlds = make_worlds(ENV)
    worlds.reset(seed=[0])
    looked = worlds.look({KEYS[0]: (14,), KEYS[1]: (16, 16, 3)})

    def actions(execute_len: int, **blend) -> np.ndarray:
        actor = PolicyActor(Agent.load(saved.path, execute_len=execute_len, **blend))
        actor.begin(worlds, [0])
        return np.concatenate([actor.act(lambda _: looked, np.zeros(1)) for _ in range(30)])

    rough, smooth = actions(1), actions(1, blend=temporal_ensemble(0.0))
    assert np.abs(np.diff(smooth[6:], axis=0)).mean() < 0.5 * np.abs(np.diff(rough[6:], axis=0)).mean()
    assert np.array_equal(rough[0], smooth[0])


def test_a_target_return_is_for_policies_that_are_conditioned_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = save_stub(tmp_path, monkeypatch, StubConfig(history=History()))
    with pytest.raises(ValueError, match="not conditioned on a return: give no target"):
        PolicyActor(Agent.load(saved.path, target_return=5.0))


@pytest.mark.parametrize("execute_len", [0, -1, 7])
def test_lengths_that_cannot_be_run_are_refused(
    execute_len: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = save_stub(tmp_path, monkeypatch, StubConfig())
    with pytest.raises(ValueError, match=rf"execute_len must lie in 1..chunk_len = 6, got {execute_len}"):
        PolicyActor(Agent.load(saved.path, execute_len=execute_len))


def test_an_actor_keeps_no_more_of_a_long_episode_than_it_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = save_stub(tmp_path, monkeypatch, StubConfig())
    worlds, actor = make_worlds(ENV), PolicyActor(Agent.load(saved.path))
    worlds.reset(seed=[0])
    looked = worlds.look({KEYS[0]: (14,), KEYS[1]: (16, 16, 3)})
    actor.begin(worlds, [0])
    held = []
    for step in range(300):
        actor.act(lambda _: looked, np.zeros(1))
        actor.agent.policy.shown.clear()
        if step in (100, 299):
            held.append(sum(len(kept) for kept in vars(actor.agent).values() if isinstance(kept, list | dict | deque)))
    assert held[1] - held[0] == len(range(101, 300, 3))  # the latency of each chunk, which is a result
