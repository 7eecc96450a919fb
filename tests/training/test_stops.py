"""Whatever stops a run, what it says is kept is kept, and the command that it names goes on bit for bit."""

import dataclasses
import json
import os
import resource
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support import write_reaching_data

from robostack.cli import main
from robostack.common.interrupt import Interrupted, Terminated
from robostack.policies.act import ActConfig
from robostack.policies.checkpoint import RUN_FILE, Checkpoint, checkpoint_folder
from robostack.policies.pi0 import Pi0, Pi0Config
from robostack.policies.weights import CheckpointError
from robostack.training import trainer
from robostack.training.config import TrainConfig
from robostack.training.log import read_training_log
from robostack.training.trainer import TrainingError, resume, train

POLICY = Pi0Config(chunk_len=4, execute_len=2, actions_per_token=2, expert_width=32, prefix_width=16, depth=1, heads=2)
FLAGS = "--batch 8 --warmup-steps 5 --threads 1 --policy.chunk-len 4 --policy.execute-len 2 "
FLAGS += "--policy.actions-per-token 2 --policy.expert-width 32 --policy.prefix-width 16 --policy.depth 1"
COMMAND = "from robostack.cli import main; raise SystemExit(main())"


def settings(tmp_path: Path, **changes: Any) -> TrainConfig:
    data = tmp_path / "data"
    if not data.exists():
        write_reaching_data(data)
    base = TrainConfig((data,), tmp_path / "run", steps=20, batch=8, warmup_steps=5, log_every=1, checkpoint_every=10)
    return dataclasses.replace(base, threads=1, **changes)


def at_step(step: int, act: Callable[[], None]) -> Callable[[Any], None]:
    return lambda report: act() if report.step == step else None


def raises_signal(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def same(one: Path, other: Path) -> bool:
    """Equal weights, average and optimiser state in the last checkpoints, and equal losses in the logs."""
    files = [
        {file.name: file.read_bytes() for file in checkpoint_folder(run).glob("*.safetensors")} for run in (one, other)
    ]
    losses = [[(line["step"], line["loss"]) for line in read_training_log(run)] for run in (one, other)]
    return files[0] == files[1] and len(files[0]) == 3 and losses[0] == losses[1]


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return train("pi0", POLICY, settings(tmp_path, out=tmp_path / "whole"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [1, 7, 10, 13])
def test_an_interrupt_leaves_a_checkpoint_that_goes_on_bit_for_bit(
    tmp_path: Path, whole: Path, number: int, step: int
) -> None:
    config = settings(tmp_path)
    with pytest.raises(Interrupted) as told:
        train("pi0", POLICY, config, at_step(step, raises_signal(number)))
    assert isinstance(told.value.__cause__, Terminated) == (number == signal.SIGTERM)
    assert f"step-{step:08d} is kept, and robostack train --resume {config.out} goes on" in str(told.value)
    assert checkpoint_folder(config.out).name == f"step-{step:08d}"
    resume(config.out)
    assert same(config.out, whole)


def test_a_second_interrupt_is_not_held_back(tmp_path: Path) -> None:
    config = settings(tmp_path)

    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="step-00000003 is kept"):
        train("pi0", POLICY, config, at_step(3, twice))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_outside_the_main_thread_a_run_trains_too(tmp_path: Path) -> None:
    config = settings(tmp_path)
    thread = threading.Thread(target=train, args=("pi0", POLICY, config))
    thread.start()
    thread.join()
    assert checkpoint_folder(config.out).name == "step-00000020"


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_from_step_0(
    tmp_path: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings(tmp_path)

    class Killed(Exception):
        pass

    def kill() -> None:
        raise Killed

    with pytest.raises(Killed):
        train("pi0", POLICY, config, at_step(6, kill))
    with pytest.raises(CheckpointError, match=f"robostack train --resume {config.out} goes on"):
        Checkpoint.read(config.out)
    with pytest.raises(FileExistsError, match=f"robostack train --resume {config.out} goes on"):
        train("pi0", POLICY, config)
    assert main(["train", "--resume", str(config.out)]) == 0
    assert same(config.out, whole)
    (resumed,) = Checkpoint.read(config.out).training.resumed
    assert resumed.step == 0 and resumed.commit


def test_resuming_needs_no_policy_and_no_working_directory(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Data are found again that were named relative to where the run was begun."""
    monkeypatch.chdir(tmp_path)
    config = settings(tmp_path, data=(Path("data"),))
    with pytest.raises(Interrupted):
        train("pi0", POLICY, config, at_step(12, raises_signal(signal.SIGINT)))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["train", "--resume", "../run"]) == 0
    assert same(config.out, whole)
    training = Checkpoint.read(config.out).training
    assert [(one.step, bool(one.commit)) for one in training.resumed] == [(12, True)]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda data: write_reaching_data(data, episodes=9), "8 episodes, now 9, 192 frames, now 216"),
        (lambda data: write_reaching_data(data, length=30), "192 frames, now 240"),
        (lambda data: write_reaching_data(data, seed=1), "other actions than it has now"),
        (lambda data: None, "does not exist"),
    ],
)
def test_a_run_does_not_go_on_with_other_data(tmp_path: Path, change: Callable[[Path], Any], told: str) -> None:
    config = settings(tmp_path)
    with pytest.raises(Interrupted):
        train("pi0", POLICY, config, at_step(3, raises_signal(signal.SIGINT)))
    config.data[0].rename(tmp_path / "away")
    change(config.data[0])
    with pytest.raises(CheckpointError, match="was trained on") as caught:
        resume(config.out)
    assert told in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["pi0", "--device", "cuda:99"], "cuda:99"),
        (["pi0", "--device", "abacus"], "unknown device"),
        (["pi0", "--policy.chunk-len", "400"], "too few frames"),
        (["energy", "--batch", "1"], "expected a batch of at least 2"),
        (["pi0", "--observe", "observation.gone"], "lacks observation.gone"),
        (["diffusion", "--optimizer", "muon", "--policy.network", "unet", "--policy.chunk-len", "8"], "use adamw"),
        (["pi0", "--policy.expert-width", "100000", "--policy.prefix-width", "16"], "bytes"),
    ],
)
@pytest.mark.parametrize("there", [False, True])
def test_a_refused_run_leaves_no_folder(
    tmp_path: Path, arguments: list[str], told: str, there: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor takes one that was there and empty; the mended command then works."""
    data, out = write_reaching_data(tmp_path / "data"), tmp_path / "run"
    if there:
        out.mkdir()
    if "--policy.chunk-len" not in arguments:
        arguments = [*arguments, "--policy.chunk-len", "20"]
    command = ["train", *arguments, "--data", str(data), "--out", str(out), "--steps", "1"]
    assert main(command) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and told in lines[0], lines
    assert sorted(path.name for path in tmp_path.iterdir()) == (["data", "run"] if there else ["data"])
    assert not there or not list(out.iterdir())
    if there and "cuda:99" in arguments:
        mended = [text if text != "cuda:99" else "cpu" for text in command]
        assert main([*mended, "--batch", "8", "--policy.depth", "1"]) == 0


def test_what_is_taken_is_refused_whatever_it_is(tmp_path: Path) -> None:
    config = settings(tmp_path)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "todo.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("notes", "file", "link"):
        with pytest.raises(FileExistsError, match=f"{name} already exists: choose another folder, or remove it first"):
            train("pi0", POLICY, dataclasses.replace(config, out=tmp_path / name))
    assert (tmp_path / "notes" / "todo.txt").read_text() == "mine"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("at", [0, 6, 9, 10, 13, 19])
@pytest.mark.parametrize("late", [False, True])
def test_a_gradient_that_is_not_finite_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float, at: int, late: bool
) -> None:
    """Between logs and checkpoints too, and where it is seen a step late, as on a GPU: the step is not taken, what is
    kept is sound and goes on."""
    monkeypatch.setattr(trainer, "_is_asked_late", lambda _: late)
    config, calls, loss = settings(tmp_path, log_every=20), [0], Pi0.loss

    def poisoned(self: Pi0, *arguments: Any) -> torch.Tensor:
        calls[0] += 1
        found = loss(self, *arguments)
        return found if calls[0] != at + 1 else found * torch.tensor(value)

    monkeypatch.setattr(Pi0, "loss", poisoned)
    with pytest.raises(TrainingError, match=r"is nan|is inf") as told:
        train("pi0", POLICY, config)
    assert f"at step {at + 1}, which is not taken" in str(told.value)
    if at == 0:
        assert not config.out.exists()
        return
    kept = "step-00000010 is kept" if at > 10 else "no checkpoint was made yet"
    assert kept in str(told.value) and f"robostack train --resume {config.out}" in str(told.value)
    monkeypatch.setattr(Pi0, "loss", loss)
    resume(config.out)
    assert same(config.out, train("pi0", POLICY, settings(tmp_path, log_every=20, out=tmp_path / "whole")))


@pytest.mark.parametrize(("policy", "config"), [("pi0", POLICY), ("act", ActConfig(chunk_len=4, execute_len=2))])
def test_weights_that_became_absurd_are_no_checkpoint(tmp_path: Path, policy: str, config: Any) -> None:
    """With a loss whose gradient stays finite too."""
    told = settings(tmp_path, learning_rate=1e30, gradient_clip=1e30, checkpoint_every=1)
    with pytest.raises(TrainingError, match=r"is nan|is inf|no longer sound"):
        train(policy, config, told)
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        Checkpoint.read(told.out)


@pytest.mark.parametrize("name", ["model", "average", "optimizer"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf"), 2e29])
def test_a_run_does_not_go_on_from_unsound_weights(tmp_path: Path, name: str, value: float) -> None:
    config = settings(tmp_path, steps=10)
    train("pi0", POLICY, config)
    folder = checkpoint_folder(config.out)
    tensors = load_file(folder / f"{name}.safetensors")
    key = next(key for key in tensors if "action_out.weight" in key)
    tensors[key][0, 0] = value
    rewrite(folder, name, tensors)
    if (name, value) == ("optimizer", 2e29):
        return
    with pytest.raises(CheckpointError, match=r"action_out\.weight.* (holds|is not finite)"):
        resume(config.out)
    if name == "average":
        with pytest.raises(CheckpointError, match="holds"):
            Checkpoint.read(config.out).load()


def rewrite(folder: Path, name: str, tensors: dict[str, torch.Tensor]) -> None:
    """Other numbers in a file, with a hash that fits."""
    checkpoint = Checkpoint.read(folder)
    rest = {file.stem: load_file(file) for file in folder.glob("*.safetensors")}
    for file in folder.iterdir():
        file.unlink()
    checkpoint.save({**rest, name: tensors})


def run_limited(command: Sequence[str], largest_file: int, cwd: Path) -> subprocess.CompletedProcess[str]:
    """In a process whose files may not grow beyond a size, as on a full disk."""
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))  # noqa: E731
    return subprocess.run(
        [sys.executable, "-c", COMMAND, *command], preexec_fn=limit, capture_output=True, text=True, cwd=cwd
    )


@pytest.mark.parametrize(
    ("largest_file", "flags", "kept"),
    [
        (300, "", None),  # nothing can be begun
        (20_000, "--steps 12 --checkpoint-every 10 --log-every 100", ""),  # the first checkpoint
        # The log or the curves, after checkpoints.
        pytest.param(0, "--steps 4000 --checkpoint-every 5 --log-every 1", "step-", marks=pytest.mark.slow),
    ],
)
def test_a_full_disk_is_one_line_and_keeps_the_last_checkpoint(
    tmp_path: Path, largest_file: int, flags: str, kept: str | None
) -> None:
    out, base = tmp_path / "run", ["train", "pi0", "--data", str(write_reaching_data(tmp_path / "data"))]
    if not largest_file:  # such that a checkpoint just fits
        assert main([*base, "--out", str(tmp_path / "one"), "--steps", "1", *shlex.split(FLAGS)]) == 0
        largest_file = max(file.stat().st_size for file in checkpoint_folder(tmp_path / "one").iterdir()) + 1
    done = run_limited([*base, "--out", str(out), *shlex.split(f"{FLAGS} {flags}")], largest_file, tmp_path)
    lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("training")]
    assert done.returncode == 1 and len(lines) == 1, done.stderr
    assert lines[0].startswith("robostack train: the disk is full at") and "make room" in lines[0]
    if kept is None:
        assert not out.exists()
        return
    assert f"robostack train --resume {out}" in lines[0] and kept in lines[0]
    assert not list(out.rglob(".*.new"))
    if kept:
        Checkpoint.read(out).load()
        assert checkpoint_folder(out).name in lines[0]
    else:
        assert (out / RUN_FILE).is_file()
        assert main(["train", "--resume", str(out)]) == 0


def test_a_log_that_was_cut_is_read_and_garbage_is_told(tmp_path: Path) -> None:
    config = settings(tmp_path, steps=10)
    train("pi0", POLICY, config)
    whole = (config.out / "log.jsonl").read_text()
    lines = read_training_log(config.out)
    (config.out / "log.jsonl").write_text(whole[:-9])
    assert read_training_log(config.out) == lines[:-1]
    line = json.loads(whole.splitlines()[0])
    for garbage in ("no JSON", "3", "[]", "{}", '{"step": 1}', "[" * 100_000, json.dumps({**line, "loss": "3"}),
                    json.dumps({**line, "loss": float("nan")}), json.dumps({**line, "loss": [1]})):  # fmt: skip
        (config.out / "log.jsonl").write_text(f"{garbage}\n{whole}")
        with pytest.raises(ValueError, match=r"log\.jsonl, line 1 is no report") as told:
            read_training_log(config.out)
        assert "\n" not in str(told.value) and len(str(told.value)) < 600
