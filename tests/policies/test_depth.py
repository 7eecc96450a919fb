"""Depth is observed by every policy as metres brought to 0..1, whatever the camera's unit, beside colour or alone."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from observations import seeded
from small_policies import SMALL
from support import RAN

from robostack.common.serialize import to_json
from robostack.datasets.episodes import DataError, Feature
from robostack.datasets.mixture import Mixture
from robostack.datasets.moments import Moments
from robostack.datasets.store import EpisodeStore, EpisodeWriter
from robostack.datasets.windows import WindowSampler
from robostack.pages.inspection_console import describe_checkpoint, print_checkpoint
from robostack.policies.act import ActConfig
from robostack.policies.checkpoint import Checkpoint, CheckpointError, PolicyTraining
from robostack.policies.depth import bounded_depth
from robostack.policies.registry import policy_class
from robostack.policies.settings import Augmentation
from robostack.training.augmentation import augment, random_shift
from robostack.training.preparation import prepare

KEY, SIZE = "observation.images.depth", (24, 24)
ACT = ActConfig(chunk_len=2, execute_len=2, width=32, hidden=64, posterior_depth=1, encoder_depth=1, decoder_depth=1)
TRAINING = PolicyTraining(config={}, data=(), **RAN)


def write_depth(
    path: Path, unit: str = "mm", robot: str | None = None, colour: bool = False, **others: Feature
) -> Path:
    """Something near stands somewhere before a wall; the action is where, which only the depth shows."""
    features = {
        "observation.state": Feature((2,), "float32"),
        KEY: Feature((*SIZE, 1), "uint16", (), (unit,) if unit else ()),
        "action": Feature((2,), "float32"),
        **({"observation.images.top": Feature((*SIZE, 3), "uint8")} if colour else {}),
        **others,
    }
    writer, rng = EpisodeWriter(path, features, fps=10, robot=robot), np.random.default_rng(0)
    for _ in range(6):
        rows = {key: np.zeros((20, *feature.shape), feature.dtype) for key, feature in features.items()}
        rows["observation.state"][:] = rng.normal(size=(20, 2))
        if "next.reward" in rows:
            rows["next.reward"][:] = 1
        places = rng.integers(0, 20, (20, 2))
        for frame, (row, column) in enumerate(places):
            rows[KEY][frame] = 2000
            rows[KEY][frame, row : row + 5, column : column + 5] = 400
        rows["action"][:] = places / 10.0 - 1.0
        writer.append(rows, "reach")
    writer.finish()
    return path


def test_a_millimetre_and_a_metre_are_what_they_are_and_nothing_measured_is_zero() -> None:
    counts = np.array([0, 1, 1000, 4000, 65535], np.uint16).reshape(1, 5, 1)
    seen = bounded_depth(counts, 1e-3).ravel()
    assert seen[0] == 0.0 and seen[2] == 0.5 and seen[3] == np.float32(0.8)
    assert np.all(np.diff(seen) > 0) and seen[-1] < 1.0


def test_units_are_of_a_robot_and_the_same_distance_looks_the_same(tmp_path: Path) -> None:
    stores = [EpisodeStore(write_depth(tmp_path / unit, unit, unit)) for unit in ("mm", "cm")]
    processor = prepare(stores, 4)
    assert processor.depth == ("depth",) and processor.interface.depth == ("depth",)
    seen = {}
    for robot, counts in (("mm", 1500), ("cm", 150)):
        rows = {"observation.state": np.zeros((1, 2), np.float32), KEY: np.full((1, *SIZE, 1), counts, np.uint16)}
        seen[robot] = processor.observe(Moments.of(rows, 2), ["reach"], robot).images["depth"]
    assert torch.equal(seen["mm"], seen["cm"]) and seen["mm"].dtype == torch.float32


@pytest.mark.parametrize("unit", ["", "parsec"])
def test_without_a_known_unit_it_is_millimetres_with_a_warning(tmp_path: Path, unit: str) -> None:
    store = EpisodeStore(write_depth(tmp_path / "data", unit))
    with pytest.warns(UserWarning, match="expected one of mm, cm, m: taken as mm"):
        assert prepare([store], 4).robots["robot"].depth == {"depth": 1e-3}


def test_data_sets_of_one_robot_with_other_units_are_refused(tmp_path: Path) -> None:
    stores = [EpisodeStore(write_depth(tmp_path / unit, unit)) for unit in ("mm", "cm")]
    with pytest.raises(DataError, match=r"counts 0\.001 m in .*/mm and 0\.01 m in .*/cm") as told:
        prepare(stores, 4)
    assert "\n" not in str(told.value)


def test_frames_of_another_type_or_shape_are_refused_in_one_line(tmp_path: Path) -> None:
    processor = prepare([EpisodeStore(write_depth(tmp_path / "data"))], 4)
    assert processor.shapes_of("robot")[KEY] == (*SIZE, 1)
    for shape, dtype, message in (
        ((*SIZE, 1), np.float32, "expected depth as uint16, got float32"),
        ((*SIZE, 1), np.uint8, "expected depth as uint16, got uint8"),
        ((*SIZE, 3), np.uint16, "expected shape"),
    ):
        rows = {"observation.state": np.zeros((1, 2), np.float32), KEY: np.zeros((1, *shape), dtype)}
        with pytest.raises(DataError, match=message) as told:
            processor.observe(Moments.of(rows, 2), ["reach"], "robot")
        assert "\n" not in str(told.value)


def test_a_camera_of_colour_here_and_of_depth_there_is_refused(tmp_path: Path) -> None:
    features = {"observation.state": Feature((2,), "float32"), "action": Feature((2,), "float32")}
    writer = EpisodeWriter(tmp_path / "rgb", {**features, KEY: Feature((*SIZE, 3), "uint8")}, fps=10, robot="other")
    rows = {key: np.zeros((5, *feature.shape), feature.dtype) for key, feature in writer.features.items()}
    writer.append(rows, "reach")
    stores = [EpisodeStore(write_depth(tmp_path / "data")), EpisodeStore(tmp_path / "rgb")]
    with pytest.raises(DataError, match="colour of one robot and depth of another"):
        prepare(stores, 4)


def test_depth_is_shifted_and_never_coloured() -> None:
    depth = torch.rand(8, 2, 9, 7, 1, generator=seeded())
    shifted = random_shift(depth, 2, seeded())
    # The three planes of a colour move as the one of depth does.
    alike = random_shift((255 * depth).to(torch.uint8).expand(-1, -1, -1, -1, 3).contiguous(), 2, seeded())
    assert torch.equal((255 * shifted).to(torch.uint8).expand_as(alike), alike)
    assert not torch.equal(shifted, depth)


def test_colour_passes_over_depth(tmp_path: Path) -> None:
    store = EpisodeStore(write_depth(tmp_path / "data", colour=True))
    processor = prepare([store], 4)
    rows = {key: store.read(key, 0, 3) for key in processor.keys}
    observation = processor.observe(Moments.of(rows, 2), ["reach"] * 3, "robot")
    observation = dataclasses.replace(observation, images={**observation.images, "top": observation.images["top"] + 99})
    coloured = augment(observation, Augmentation(0.0, 0, 0.3), seeded())
    assert coloured.images["depth"] is observation.images["depth"]
    assert not torch.equal(coloured.images["top"], observation.images["top"])


@pytest.mark.parametrize("vision", ["keypoints", "vit"])
@pytest.mark.parametrize("case", [name for name in SMALL if name.endswith("camera")])
def test_every_policy_learns_from_depth_alone_and_samples(tmp_path: Path, case: str, vision: Any) -> None:
    policy_name, config = case.split(",")[0], SMALL[case][0]
    config = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, vision=vision))
    store = EpisodeStore(write_depth(tmp_path / "data", **{"next.reward": Feature((), "float32")}))
    keys = ["observation.state", KEY]
    processor = prepare([store], config.chunk_len, keys, history=config.history)
    sampler = WindowSampler(store, processor.keys_of("robot"), config.chunk_len, history=config.history)
    windows = sampler.draw(4, np.random.default_rng(0))
    observation, actions, counts = processor.training_batch([("robot", windows, ["reach"] * 4)])
    torch.manual_seed(0)
    policy: Any = policy_class(policy_name)(config, processor.interface)
    name, first = next((name, p) for name, p in policy.named_parameters() if "cameras" in name)
    before, optimizer = first.detach().clone(), torch.optim.SGD(policy.parameters(), 1e-2)
    for _ in range(4):  # at the start some policies listen to nothing
        policy.loss(observation, actions, counts, seeded()).backward()
        optimizer.step()
    assert not torch.equal(first, before), name
    chunk = policy.eval().sample(observation, seeded())
    far = dataclasses.replace(observation, images={"depth": observation.images["depth"].flip(2)})
    assert chunk.shape == actions.shape and not torch.equal(chunk, policy.sample(far, seeded()))


def test_what_only_depth_shows_is_learnt(tmp_path: Path) -> None:
    store = EpisodeStore(write_depth(tmp_path / "data"))
    processor = prepare([store], ACT.chunk_len)
    sampler = WindowSampler(store, processor.keys_of("robot"), ACT.chunk_len)
    torch.manual_seed(0)
    policy: Any = policy_class("act")(ACT, processor.interface)
    optimizer, rng, generator = torch.optim.AdamW(policy.parameters(), 3e-3), np.random.default_rng(0), seeded()
    for _ in range(120):
        observation, actions, counts = processor.training_batch([("robot", sampler.draw(32, rng), ["reach"] * 32)])
        policy.loss(observation, actions, counts, generator).backward()
        optimizer.step()
        optimizer.zero_grad()
    observation, actions, _ = processor.training_batch([("robot", sampler.draw(64, rng), ["reach"] * 64)])
    error = (policy.eval().sample(observation, generator) - actions)[:, 0].square().mean()
    assert error < 0.1 * actions[:, 0].square().mean()


def test_a_checkpoint_keeps_which_cameras_measure_depth(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from rich.console import Console

    processor = prepare([EpisodeStore(write_depth(tmp_path / "data", "cm", colour=True))], ACT.chunk_len)
    checkpoint = Checkpoint(tmp_path / "run" / "checkpoints" / "step-00000001", "act", ACT, processor, 1, TRAINING)
    weights = checkpoint.build().state_dict()
    checkpoint.save({"model": weights, "average": weights})
    read = Checkpoint.read(tmp_path / "run")
    assert read.processor == processor and read.processor.robots["robot"].depth == {"depth": 0.01}
    assert read.load().state_dict().keys() == weights.keys()
    description = describe_checkpoint(read)
    print_checkpoint(description, Console(width=200))
    assert description["depth"] == ["depth"] and "depth 24×24 depth, top 24×24" in capsys.readouterr().out


def test_a_checkpoint_from_before_depth_has_cameras_of_colour(tmp_path: Path) -> None:
    store = EpisodeStore(write_depth(tmp_path / "data", colour=True))
    processor = prepare([store], ACT.chunk_len, ["observation.state", "observation.images.top"])
    checkpoint = Checkpoint(tmp_path / "checkpoint", "act", ACT, processor, 1, TRAINING)
    checkpoint.path.mkdir()
    description = {
        "format": "robostack-checkpoint-4",
        "policy": "act",
        "config": to_json(ACT),
        "processor": to_json(processor),
        "step": 1,
        "training": {"config": {}, "data": [], "command": "train", "commit": "abc", "date": "today", "machine": "here"},
    }
    del description["processor"]["robots"]["robot"]["depth"]
    (checkpoint.path / "checkpoint.json").write_text(json.dumps(description))
    assert Checkpoint.read(checkpoint.path) == dataclasses.replace(checkpoint, version=4)
    del description["processor"]["robots"]["robot"]["smallest"]  # nor was there one of each entry
    (checkpoint.path / "checkpoint.json").write_text(json.dumps(description))
    smallest = Checkpoint.read(checkpoint.path).processor.robots["robot"].smallest
    assert smallest == dict.fromkeys(("observation.state", "action"), (0.01, 0.01))
    for robots in ([], 3, {"robot": 3}, {"robot": None}, "x"):  # of a damaged one too
        description["processor"]["robots"] = robots
        (checkpoint.path / "checkpoint.json").write_text(json.dumps(description))
        with pytest.raises(CheckpointError):
            Checkpoint.read(checkpoint.path)


def test_a_robot_without_depth_trains_beside_one_with_it(tmp_path: Path) -> None:
    features = {"observation.state": Feature((2,), "float32"), "action": Feature((2,), "float32")}
    writer = EpisodeWriter(tmp_path / "blind", features, fps=10, robot="blind")
    rows = {key: RNG.normal(size=(20, 2)).astype(np.float32) for key in features}
    writer.append(rows, "reach")
    stores = [EpisodeStore(write_depth(tmp_path / "data", robot="seeing")), EpisodeStore(tmp_path / "blind")]
    processor = prepare(stores, ACT.chunk_len)
    names = ("seeing", "blind")
    samplers = [
        WindowSampler(store, processor.keys_of(name), ACT.chunk_len) for store, name in zip(stores, names, strict=True)
    ]
    parts = Mixture(samplers, (0.5, 0.5)).draw(8, np.random.default_rng(0))
    observation, actions, counts = processor.training_batch(
        [(names[part.source], part.windows, ["reach"] * len(part.windows.task)) for part in parts]
    )
    assert observation.images["depth"].shape == (8, 1, *SIZE, 1)
    assert 0 < observation.present["depth"].sum() < 8
    assert not observation.images["depth"][~observation.present["depth"]].any()
    policy: Any = policy_class("act")(ACT, processor.interface)
    assert policy.loss(observation, actions, counts, seeded()).isfinite()


RNG = np.random.default_rng(1)
