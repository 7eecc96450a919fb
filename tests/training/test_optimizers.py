"""A run with Muon learns, resumes bit for bit, and takes its state from a checkpoint strictly or not at all."""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import write_reaching_data

from robostack.common.serialize import from_json
from robostack.policies.checkpoint import Checkpoint, CheckpointError, checkpoint_folder
from robostack.policies.pi0 import Pi0Config
from robostack.training.config import TrainConfig
from robostack.training.log import read_training_log
from robostack.training.trainer import resume, train

POLICY = Pi0Config(chunk_len=4, execute_len=2, actions_per_token=2, expert_width=32, prefix_width=16, depth=2, heads=2)


def settings(tmp_path: Path, **changes) -> TrainConfig:
    data = tmp_path / "data"
    if not data.exists():
        write_reaching_data(data)
    base = TrainConfig((data,), tmp_path / "run", optimizer="muon", steps=40, batch=16, warmup_steps=5, log_every=5)
    return dataclasses.replace(base, checkpoint_every=20, threads=1, **changes)


def tensors(run: Path) -> dict[str, torch.Tensor]:
    files = checkpoint_folder(run).glob("*.safetensors")
    return {f"{file.stem}/{key}": value for file in files for key, value in load_file(file).items()}


def test_muon_learns(tmp_path: Path) -> None:
    config = settings(tmp_path, steps=150, log_every=2, batch=64)
    train("pi0", POLICY, config)
    losses = [line["loss"] for line in read_training_log(config.out)]
    assert sum(losses[-20:]) / 20 < 0.6 * losses[0]
    stored = load_file(checkpoint_folder(config.out) / "optimizer.safetensors")
    of_muon = {key for key in stored if key.endswith(".momentum_buffer")}
    # Of the last prefix layer only keys and values are used: two streams × two layers × four matrices, less three.
    assert len(of_muon) == 13 and all(".projections." in key or ".feed_forwards." in key for key in of_muon)


class Killed(Exception):
    pass


def test_a_muon_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    whole, broken = settings(tmp_path, out=tmp_path / "whole"), settings(tmp_path)
    train("pi0", POLICY, whole)

    def kill(report) -> None:
        if report.step == 30:
            raise Killed

    with pytest.raises(Killed):
        train("pi0", POLICY, broken, kill)
    assert checkpoint_folder(broken.out).name == "step-00000020"
    resume(broken.out)
    one, other = tensors(broken.out), tensors(whole.out)
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert from_json(TrainConfig, Checkpoint.read(broken.out).training.config) == broken


def test_optimizer_state_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    config = settings(tmp_path, steps=20)
    train("pi0", POLICY, config)
    file = checkpoint_folder(config.out) / "optimizer.safetensors"
    whole = load_file(file)
    matrix, rest = "transformer.layers.0.projections.1.output.weight.momentum_buffer", "action_out.weight.exp_avg"
    for changed, message in (
        ({**whole, matrix: torch.zeros(2, 2)}, r"output.weight.momentum_buffer is \(2, 2\), expected \(32, 64\)"),
        ({key: value for key, value in whole.items() if key != rest}, "action_out.weight.exp_avg is missing"),
        ({**whole, "action_out.weight.momentum_buffer": torch.zeros(1)}, "belongs to no parameter of this run"),
    ):
        save_file(changed, file)
        with pytest.raises(CheckpointError, match=message):
            resume(config.out)
    save_file(whole, file)
    resume(config.out)
