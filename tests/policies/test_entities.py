"""Every policy sees entities, of worlds of several sizes, and none larger than those that it was trained on."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from observations import as_text
from small_policies import SMALL

from robostack.datasets.episodes import DataError, Feature
from robostack.datasets.moments import History, Moments
from robostack.datasets.store import EpisodeStore, EpisodeWriter
from robostack.policies.processor import ENTITIES
from robostack.policies.protocol import Interface, Observation
from robostack.policies.registry import policy_class
from robostack.training.preparation import prepare


def observed(batch: int, looks: int, past: int, returns: bool) -> Observation:
    g = torch.Generator().manual_seed(0)
    entities = torch.randn(batch, looks, 4, 6, generator=g)
    entities[..., 0] = 1.0
    entities[:, :, 3] = 0.0
    return Observation(
        state=torch.zeros(batch, looks, 1),
        text=as_text(torch.randint(1, 9, (batch, 4), generator=g)),
        images={},
        present={},
        valid=torch.ones(batch, looks, dtype=torch.bool),
        past_actions=torch.zeros(batch, past, 3),
        returns_to_go=torch.ones(batch, looks) if returns else None,
        entities=entities,
    )


@pytest.mark.parametrize("name", [name for name in SMALL if "camera" not in name])
def test_every_policy_sees_entities(name: str) -> None:
    torch.manual_seed(0)
    config, _ = SMALL[name]
    interface = Interface(state_dim=1, action_dim=3, words=4, vocabulary=9, cameras={}, entities=(4, 6))
    policy: Any = policy_class(name.split(",")[0])(config, interface)
    history: History = config.history
    observation = observed(5, history.length, history.steps, history.returns)
    with torch.no_grad():  # outputs and conditions that begin at zero hide what was seen
        for parameter in policy.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    steps = config.chunk_len + history.steps if name.startswith("decision") else config.chunk_len
    actions, valid = torch.zeros(5, steps, 3), torch.ones(5, steps, 3, dtype=torch.bool)
    policy.loss(observation, actions[:, : config.chunk_len], valid[:, : config.chunk_len], seeded()).backward()
    touched = {key for key, p in policy.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert any("entit" in key for key in touched), touched
    assert observation.entities is not None
    moved = replace(observation, entities=observation.entities * torch.tensor([1.0, 3.0, 1.0, 1.0, 1.0, 1.0]))
    chunk = policy.sample(observation, seeded())
    assert chunk.shape == (5, config.chunk_len, 3)
    assert not torch.allclose(policy.sample(moved, seeded()), chunk, atol=1e-5)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def write_world(path: Path, places: int, features: int = 6) -> EpisodeStore:
    rng = np.random.default_rng(places)
    kinds = {ENTITIES: Feature((places, features), "float32"), "action": Feature((3,), "float32")}
    writer = EpisodeWriter(path, kinds, 30, robot="kinetix")
    entities = rng.normal(size=(12, places, features)).astype(np.float32)
    entities[..., 0] = 1.0
    writer.append({ENTITIES: entities, "action": rng.normal(size=(12, 3)).astype(np.float32)}, "a world")
    return EpisodeStore(path)


def moments(store: EpisodeStore, rows: slice = slice(0, 2)) -> Moments:
    entities = store.read(ENTITIES)[rows]
    batch = len(entities)
    return Moments(
        {ENTITIES: entities[:, None]},
        np.ones((batch, 1), bool),
        np.zeros((batch, 0, 3), np.float32),
        np.zeros((batch, 0), bool),
        None,
    )


def test_worlds_of_several_sizes_are_one_robot_s(tmp_path: Path) -> None:
    small, large = write_world(tmp_path / "small", 3), write_world(tmp_path / "large", 5)
    processor = prepare([small, large], 4)
    assert processor.entities == (5, 6) and processor.interface.state_dim == 1
    assert processor.keys_of("kinetix") == (ENTITIES,) and processor.shapes_of("kinetix") == {ENTITIES: (5, 6)}
    seen = processor.observe(moments(small), ["a world"] * 2, "kinetix").entities
    assert seen is not None and seen.shape == (2, 1, 5, 6)
    assert np.array_equal(seen[:, 0, :3], small.read(ENTITIES)[:2]) and not seen[:, 0, 3:].any()
    alone = prepare([small], 4)
    with pytest.raises(DataError, match="worlds of up to 3 entities, got 5"):
        alone.observe(moments(large), ["a world"] * 2, "kinetix")
    with pytest.raises(DataError, match=r"observes observation\.entities"):
        alone.observe(replace(moments(small), observation={}), [""] * 2, "kinetix")


def test_worlds_of_other_features_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the same features everywhere"):
        prepare([write_world(tmp_path / "a", 3), write_world(tmp_path / "b", 3, features=7)], 4)
