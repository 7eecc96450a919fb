"""A training begins with the weights that it is told to, and leaves alone what it is told to."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support import write_reaching_data

from robostack.datasets.episodes import Feature
from robostack.datasets.store import EpisodeWriter
from robostack.policies.checkpoint import Checkpoint
from robostack.policies.pi0 import Pi0Config
from robostack.policies.weights import CheckpointError
from robostack.training.config import TrainConfig
from robostack.training.trainer import resume, train

POLICY = Pi0Config(chunk_len=4, execute_len=2, actions_per_token=2, expert_width=32, prefix_width=16, depth=1, heads=2)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    return train("pi0", POLICY, settings(write_reaching_data(folder / "data"), folder / "run"))


def settings(data: Path, out: Path, **changes: Any) -> TrainConfig:
    config = TrainConfig((data,), out, steps=4, batch=8, warmup_steps=0, log_every=1, checkpoint_every=2, threads=1)
    return dataclasses.replace(config, **changes)


def write_other(path: Path, entries: int, task: str) -> Path:
    features = {"observation.state": Feature((3,), "float32"), "action": Feature((entries,), "float32")}
    writer, rng = EpisodeWriter(path, features, fps=50), np.random.default_rng(5)
    writer.append({k: rng.normal(size=(30, *f.shape)).astype(np.float32) for k, f in features.items()}, task)
    return path


def files(run: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(Checkpoint.read(run).path / f"{name}.safetensors")


def test_a_training_begins_with_the_weights_that_evaluation_would_take(base: Path, tmp_path: Path) -> None:
    data = write_other(tmp_path / "data", 2, "reach")
    run = train("pi0", POLICY, settings(data, tmp_path / "run", init=base, learning_rate=1e-30, average_decay=0))
    expected = files(base, "average")
    for name, value in files(run, "model").items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-12)
    assert Checkpoint.read(run).training.config["init"] == str(Checkpoint.read(base).path)


def test_what_the_data_change_is_told_and_drawn_only_where_it_is_named(base: Path, tmp_path: Path) -> None:
    data, out = write_other(tmp_path / "data", 3, "reach"), tmp_path / "run"
    with pytest.raises(CheckpointError, match=r"action_out\.bias is \(4,\), expected \(6,\).*--init-except") as told:
        train("pi0", POLICY, settings(data, out, init=base))
    assert "\n" not in str(told.value) and not out.exists()
    named = ("action_in.*", "action_out.*")
    config = settings(data, out, init=base, init_except=named, learning_rate=1e-30, average_decay=0)
    model, expected = files(train("pi0", POLICY, config), "model"), files(base, "average")
    for name, value in model.items():
        assert name.startswith(("action_in", "action_out")) or torch.equal(value, expected[name]), name


def test_words_keep_their_numbers_or_are_told(base: Path, tmp_path: Path) -> None:
    data = write_other(tmp_path / "data", 2, "grasp")
    with pytest.raises(CheckpointError, match="of other words than those of the data"):
        train("pi0", POLICY, settings(data, tmp_path / "run", init=base))


def test_what_is_frozen_stays_and_has_no_state_also_when_resumed(base: Path, tmp_path: Path) -> None:
    data = write_other(tmp_path / "data", 2, "reach")
    config = settings(data, tmp_path / "run", init=base, freeze=("word.*", "state_in.*"))
    whole = train("pi0", POLICY, dataclasses.replace(config, out=tmp_path / "whole"))
    frozen = [name for name in files(whole, "model") if name.startswith(("word.", "state_in."))]
    assert frozen
    expected, moved = files(base, "average"), False
    for kind in ("model", "average"):
        for name, value in files(whole, kind).items():
            assert (name not in frozen) or torch.equal(value, expected[name]), name
            moved |= not torch.equal(value, expected[name])
    assert moved and not any(key.startswith(("word.", "state_in.")) for key in files(whole, "optimizer"))

    class Killed(Exception):
        pass

    def kill(report: Any) -> None:
        if report.step == 3:
            raise Killed

    with pytest.raises(Killed):
        train("pi0", POLICY, config, kill)
    resume(config.out)
    for kind in ("model", "average", "optimizer"):
        one, other = files(config.out, kind), files(whole, kind)
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_a_run_without_a_checkpoint_begins_again_with_the_same_weights_or_not_at_all(
    base: Path, tmp_path: Path
) -> None:
    class Killed(Exception):
        pass

    def kill(report: Any) -> None:
        raise Killed

    start = shutil.copytree(Checkpoint.read(base).path, tmp_path / "start")
    data = write_other(tmp_path / "data", 2, "reach")
    config = settings(data, tmp_path / "run", init=start)
    with pytest.raises(Killed):
        train("pi0", POLICY, config, kill)
    shutil.rmtree(start)
    other = dataclasses.replace(settings(tmp_path / "data", tmp_path / "other"), seed=1)
    shutil.copytree(Checkpoint.read(train("pi0", POLICY, other)).path, start)
    with pytest.raises(CheckpointError, match="no longer the checkpoint that this training began with"):
        resume(config.out)
    shutil.rmtree(start)
    shutil.copytree(Checkpoint.read(base).path, start)
    resume(config.out)
    whole = train("pi0", POLICY, dataclasses.replace(config, out=tmp_path / "whole"))
    one, other_files = files(config.out, "model"), files(whole, "model")
    assert all(torch.equal(one[key], other_files[key]) for key in one)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"freeze": ("telepathy*",)}, "--freeze 'telepathy\\*' matches no parameter of the policy: they are "),
        ({"freeze": ("*",)}, "--freeze leaves nothing to train"),
        ({"init_except": ("telepathy*",)}, "--init-except 'telepathy\\*' matches no parameter"),
    ],
)
def test_a_pattern_that_means_nothing_is_told(base: Path, tmp_path: Path, changes: Any, told: str) -> None:
    data = write_other(tmp_path / "data", 2, "reach")
    with pytest.raises(ValueError, match=told):
        train("pi0", POLICY, settings(data, tmp_path / "run", init=base, **changes))
    assert not (tmp_path / "run").exists()
