"""Training is a function of its settings: the same bits when run again, interrupted or resumed."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support import write_reaching_data

from robostack.common.serialize import from_json
from robostack.datasets.store import EpisodeStore
from robostack.policies.checkpoint import Checkpoint, CheckpointError, checkpoint_folder
from robostack.policies.pi0 import Pi0, Pi0Config
from robostack.policies.protocol import Observation
from robostack.policies.settings import Scaling
from robostack.training import state
from robostack.training.batches import Batches
from robostack.training.config import TrainConfig
from robostack.training.log import read_training_log
from robostack.training.preparation import prepare
from robostack.training.source import Source
from robostack.training.trainer import TrainingError, resume, schedule, train

POLICY = Pi0Config(chunk_len=4, execute_len=2, actions_per_token=2, expert_width=32, prefix_width=16, depth=2, heads=2)


def settings(tmp_path: Path, **changes) -> TrainConfig:
    data = tmp_path / "data"
    if not data.exists():
        write_reaching_data(data)
    base = TrainConfig((data,), tmp_path / "run", steps=40, batch=16, warmup_steps=5, log_every=5, checkpoint_every=20)
    return dataclasses.replace(base, threads=1, **changes)


def tensors(run: Path) -> dict[str, torch.Tensor]:
    folder = checkpoint_folder(run)
    names = ("model", "average", "optimizer")
    return {
        f"{name}/{key}": value for name in names for key, value in load_file(folder / f"{name}.safetensors").items()
    }


def same(one: Path, other: Path) -> bool:
    a, b = tensors(one), tensors(other)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_the_same_seed_gives_the_same_bits(tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        train("pi0", POLICY, settings(tmp_path, out=tmp_path / name, seed=seed))
    assert same(tmp_path / "one", tmp_path / "two") and not same(tmp_path / "one", tmp_path / "other")


def test_a_killed_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    """N steps == some steps + kill −9 + resume, over processes as a user would do it."""
    whole = settings(tmp_path, out=tmp_path / "whole")
    train("pi0", POLICY, whole)
    flags = {"steps": 40, "batch": 16, "warmup-steps": 5, "log-every": 5, "checkpoint-every": 20, "threads": 1}
    policy = {key: value for key, value in dataclasses.asdict(POLICY).items() if not isinstance(value, dict | bool)}
    flags |= {f"policy.{key.replace('_', '-')}": value for key, value in policy.items()}
    arguments = [text for key, value in flags.items() for text in (f"--{key}", str(value))]
    command = [sys.executable, "-c", "from robostack.cli import main; raise SystemExit(main())", "train", "pi0"]
    run = tmp_path / "killed"
    process = subprocess.Popen(
        # A pause at step 30, past the checkpoint of step 20, so that the kill falls where it is wanted.
        [sys.executable, "-c", PAUSED, "train", "pi0", "--data", str(whole.data[0]), "--out", str(run), *arguments],
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not any(line["step"] >= 30 for line in read_training_log(run)):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert checkpoint_folder(run).name == "step-00000020"
    subprocess.run([*command, "--resume", str(run)], check=True, stderr=subprocess.DEVNULL)
    assert same(run, tmp_path / "whole")
    assert [line["step"] for line in read_training_log(run)] == [
        line["step"] for line in read_training_log(tmp_path / "whole")
    ]
    losses = [[line["loss"] for line in read_training_log(folder)] for folder in (run, tmp_path / "whole")]
    assert losses[0] == losses[1]


PAUSED = """
import time
from robostack.training.log import TrainingLog
write = TrainingLog.write
def slow(self, step, *rest):
    report = write(self, step, *rest)
    if step == 30:
        time.sleep(600)
    return report
TrainingLog.write = slow
from robostack.cli import main
raise SystemExit(main())
"""


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    config = settings(tmp_path)
    train("pi0", POLICY, config)
    before = tensors(config.out)
    resume(config.out, "pi0")
    assert all(torch.equal(value, before[key]) for key, value in tensors(config.out).items())


def test_what_cannot_be_resumed_is_told(tmp_path: Path) -> None:
    config = settings(tmp_path)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        resume(config.out)
    train("pi0", POLICY, config)
    with pytest.raises(CheckpointError, match="is a run of pi0, expected act"):
        resume(config.out, "act")
    with pytest.raises(FileExistsError, match="--resume"):
        train("pi0", POLICY, config)
    (checkpoint_folder(config.out) / "optimizer.safetensors").unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        resume(config.out)


def test_the_loss_falls_and_everything_is_logged(tmp_path: Path) -> None:
    config = settings(tmp_path, steps=150, log_every=10, batch=64)
    seen = []
    train("pi0", POLICY, config, seen.append)
    log = read_training_log(config.out)
    assert [line["step"] for line in log] == list(range(10, 151, 10)) and len(seen) == len(log)
    assert log[-1]["loss"] < 0.6 * log[0]["loss"]
    assert all(math.isfinite(value) for line in log for value in line.values())
    assert log[-1]["learning_rate"] < 0.01 * config.learning_rate < log[0]["learning_rate"]
    assert all(0 <= line["data_wait"] < 1 for line in log)
    assert any((config.out / "tensorboard").iterdir())
    training = Checkpoint.read(config.out).training
    (data,) = training.data
    assert (data.path, data.episodes, data.frames, data.seeds) == (str(config.data[0]), 8, 192, (0, 7))
    assert len(data.actions_sha256) == 64 and training.commit and not training.resumed


def test_a_loss_that_is_not_finite_stops_with_the_last_checkpoint_kept(tmp_path: Path) -> None:
    config = settings(tmp_path, learning_rate=1e30, gradient_clip=1e30, checkpoint_every=1, log_every=1)
    with pytest.raises(TrainingError, match=r"is nan|is inf"):
        train("pi0", POLICY, config)


def test_schedule_rises_and_falls() -> None:
    values = [schedule(step, 10, 110) for step in range(111)]
    assert values[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert values[60] == pytest.approx(0.5) and values[110] == pytest.approx(0.0)
    assert all(a >= b for a, b in pairwise(values[10:]))


def test_the_average_follows_the_weights(tmp_path: Path) -> None:
    """After one step with decay min(0.999, 1/11): average = 1/11 · initial + 10/11 · stepped."""
    config = settings(tmp_path, steps=1, log_every=1)
    train("pi0", POLICY, config)
    stored = tensors(config.out)
    checkpoint = Checkpoint.read(config.out)
    torch.manual_seed(config.seed)
    initial = checkpoint.build().state_dict()
    for key, value in initial.items():
        expected = value / 11 + stored[f"model/{key}"] * 10 / 11
        torch.testing.assert_close(stored[f"average/{key}"], expected)


def test_the_average_has_the_buffers_of_the_weights() -> None:
    policy = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    average = {name: value.clone() for name, value in policy.state_dict().items()}
    policy[0].weight.requires_grad_(False)
    weight = average["0.weight"].clone()
    for _ in range(3):
        policy(torch.randn(8, 3))
    with torch.no_grad():
        policy[0].bias.add_(1.0)
    bias = average["0.bias"].clone()
    state.follow(average, policy, 0.9)
    assert average["1.num_batches_tracked"] == 3
    assert all(torch.equal(average[name], value) for name, value in policy.named_buffers())
    torch.testing.assert_close(average["0.bias"], bias + 0.1)
    assert torch.equal(average["0.weight"], weight)


def test_without_an_average_the_weights_are_what_they_are_with_one(tmp_path: Path) -> None:
    plain, without = (settings(tmp_path, out=tmp_path / str(i), average_decay=0.999 * i) for i in (1, 0))
    for config in (plain, without):
        train("pi0", POLICY, config)
    assert not (checkpoint_folder(without.out) / "average.safetensors").exists()
    expected = load_file(checkpoint_folder(plain.out) / "model.safetensors")
    read = Checkpoint.read(without.out)
    assert read.best == "model"
    assert all(torch.equal(value, expected[name]) for name, value in read.load().state_dict().items())
    resume(without.out)


def test_each_process_of_a_training_draws_its_own_batches_and_the_first_what_one_alone_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(tmp_path)
    stores = [EpisodeStore(config.data[0])]
    processor = prepare(stores, POLICY.chunk_len)
    source = Source.of(stores, processor, POLICY, config)

    def drawn(rank: int | None) -> tuple[torch.Tensor, int]:
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: rank is not None)
        monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
        with Batches(source, processor, config, torch.device("cpu")) as batches:
            (batch,) = batches.at(7)
        return batch.actions, batch.seed

    rng = np.random.default_rng([config.seed, 7])
    actions = processor.training_batch(source.draw(config.batch, rng))[1]
    for rank in (None, 0):
        assert torch.equal(drawn(rank)[0], actions) and drawn(rank)[1] == drawn(None)[1]
    assert drawn(None)[1] == int(rng.integers(2**63))
    assert not torch.equal(drawn(1)[0], actions) and drawn(1)[1] != drawn(2)[1]


def test_batches_prepared_ahead_are_those_prepared_when_asked_for(tmp_path: Path) -> None:
    config = settings(tmp_path, accumulate=2)
    stores = [EpisodeStore(config.data[0])]
    processor = prepare(stores, POLICY.chunk_len)
    source = Source.of(stores, processor, POLICY, config)
    with (
        Batches(source, processor, config, torch.device("cpu")) as ahead,
        Batches(source, processor, config, torch.device("cpu"), ahead=False) as asked,
    ):
        for step in range(5, 9):
            for one, other in zip(ahead.at(step), asked.at(step), strict=True):
                assert torch.equal(one.actions, other.actions) and torch.equal(one.valid, other.valid)
                assert torch.equal(one.observation.state, other.observation.state)
                assert (one.seed, one.share) == (other.seed, other.share)


def test_accumulated_batches_are_one_step_of_all_their_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step's loss is the mean over the valid numbers of all its batches, not that of the batches' means."""

    def size(self: Pi0, observation: Observation, actions: torch.Tensor, valid: torch.Tensor, _: Any) -> torch.Tensor:
        first = next(iter(self.parameters()))
        return (actions.square() * valid).sum() / valid.sum() + 0.0 * first.sum()

    monkeypatch.setattr(Pi0, "loss", size)
    config = settings(tmp_path, steps=1, batch=4, accumulate=3, log_every=1)
    long = dataclasses.replace(POLICY, chunk_len=20)
    train("pi0", long, config)
    stores = [EpisodeStore(config.data[0])]
    processor = prepare(stores, long.chunk_len)
    source = Source.of(stores, processor, long, config)
    batches = Batches(source, processor, config, torch.device("cpu"), ahead=False).at(0)
    actions, valid = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("actions", "valid"))
    assert len({batch.share for batch in batches}) > 1
    expected = (actions.square() * valid).sum() / valid.sum()
    assert read_training_log(config.out)[0]["loss"] == pytest.approx(expected.item(), rel=1e-6)


def test_data_is_checked_before_anything_is_written(tmp_path: Path) -> None:
    config = settings(tmp_path)
    for change, message in (
        ({"data": (tmp_path / "nowhere",)}, "not a robostack data set"),
        ({"observe": ("observation.images.top",)}, "lacks observation.images.top"),
    ):
        with pytest.raises(ValueError, match=message):
            train("pi0", POLICY, dataclasses.replace(config, **change))
    with pytest.raises(ValueError, match="too few frames for a chunk of 40"):
        train("pi0", Pi0Config(), config)
    assert not config.out.exists()
    store = EpisodeStore(config.data[0])
    assert json.dumps(store.provenance) and np.isfinite(store.fps)


def test_a_mixture_resumes_at_the_sample(tmp_path: Path) -> None:
    write_reaching_data(tmp_path / "more", episodes=3, length=30)
    both = (tmp_path / "data", tmp_path / "more")
    mixed = settings(tmp_path, data=both, weights=(1.0, 2.0))
    whole = dataclasses.replace(mixed, out=tmp_path / "whole")
    train("pi0", POLICY, whole)

    class Killed(Exception):
        pass

    def kill(report) -> None:
        if report.step == 30:
            raise Killed

    with pytest.raises(Killed):
        train("pi0", POLICY, mixed, kill)
    resume(mixed.out)
    assert same(mixed.out, whole.out)
    losses = [[(line["step"], line["loss"]) for line in read_training_log(folder)] for folder in (mixed.out, whole.out)]
    assert losses[0] == losses[1]

    other = settings(tmp_path, data=both, weights=(2.0, 1.0), out=tmp_path / "other")
    train("pi0", POLICY, other)
    assert not same(other.out, whole.out)
    assert from_json(TrainConfig, Checkpoint.read(mixed.out).training.config) == mixed


def test_every_scaling_trains_and_is_in_the_checkpoint(tmp_path: Path) -> None:
    for normalization in ("min_max", "quantiles"):
        config = settings(tmp_path, out=tmp_path / normalization, scaling=Scaling(normalization))
        train("pi0", POLICY, config)
        assert Checkpoint.read(config.out).processor.scaling.normalization == normalization
        assert read_training_log(config.out)[-1]["loss"] < read_training_log(config.out)[0]["loss"]
