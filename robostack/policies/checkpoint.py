"""A checkpoint is a folder of safetensors and JSON, written whole and loaded strictly.

    checkpoint.json         format, policy name, its config, its processor (statistics, tokenizer), training step,
                            how it was trained, size and hash of the other files
    model.safetensors       the weights as they were trained
    average.safetensors     their exponential moving average, which evaluation and control use, where one was kept
    optimizer.safetensors   what only a resumed training needs
    tokenizer.model, .json  the tokenizer's file, where its tokens are not the words of the tasks

What is larger than a file should be lies in several, with an index (see `robostack.policies.shards`).
It is written under another name and renamed when it is complete: a folder with its final name is a whole checkpoint.
What a file says is not believed: kinds, bounds and the size of the model are checked before memory is taken, and the
hash of a file before its numbers are used. The hash costs about 1 s a GB when it is written and when it is read
(measured: 0.3 to 0.5 s for 0.4 GB, whose writing took 0.7 to 1.2 s).

A run has its checkpoints in RUN/checkpoints, and in RUN/run.json its settings from the start on, as a checkpoint of
step 0 without tensors: what is stopped before its first checkpoint can go on too.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from robostack.common.files import read_json, whole_folder, write_file
from robostack.common.numbers import check_bounds
from robostack.common.provenance import Training
from robostack.common.serialize import from_json, to_json
from robostack.common.tensors import Kind, Seal, differences, newest_checkpoint
from robostack.common.text import one_line
from robostack.core.text.files import FileTokenizer
from robostack.policies.formats import FORMAT, SEALED, current_tensors
from robostack.policies.processor import Processor
from robostack.policies.registry import POLICIES, config_class, policy_class
from robostack.policies.shards import SHARD_BYTES, Shards, index_of, write_tensors
from robostack.policies.weights import (
    OVERHEAD,
    CheckpointError,
    kinds_of_made,
    load_strictly,
    memory_bytes,
    without_weights,
)

Weights = Literal["average", "model"]
RUN_FILE = "run.json"
AVERAGED = ("observe.word.weight", "encoder.word.weight")
"""Weights of policies that did not know the order of words."""
LARGEST_DESCRIPTION = 64 << 20
"""Bytes of checkpoint.json; those of statistics, task words and settings are thousands."""


@dataclass(frozen=True)
class TrainedOn:
    """A data set that a policy was trained on."""

    path: str
    episodes: int
    frames: int
    seeds: tuple[int, int] | None
    """First and last seed of its demonstrations, which an evaluation stays out of; None where it does not say."""
    actions_sha256: str
    """Of its actions, in order; "" where an earlier robostack did not record it."""


@dataclass(frozen=True, kw_only=True)
class PolicyTraining(Training):
    """How a policy was trained, for resuming and for keeping evaluations apart too."""

    config: dict[str, Any]
    """The settings of the run, as JSON values: the trainer knows their types."""
    data: tuple[TrainedOn, ...]
    begun_from: dict[str, Seal] = field(default_factory=dict)
    """The files of the checkpoint whose weights it began with; none where it began from scratch."""


@dataclass(frozen=True)
class _Description:
    """checkpoint.json, and run.json."""

    format: str
    policy: str
    config: dict[str, Any]
    processor: Processor
    step: int
    training: PolicyTraining
    files: dict[str, Seal]

    def __post_init__(self) -> None:
        check_bounds(self, 0, 10**12, "step")


@dataclass(frozen=True)
class Checkpoint:
    """A policy as it stands on disk; `load` gives it with its weights."""

    path: Path
    policy: str
    config: Any
    processor: Processor
    step: int
    training: PolicyTraining
    files: Mapping[str, Seal] = field(default_factory=dict)
    """Size and hash of each of the folder's other files; none for a run that has only begun."""
    version: int = FORMAT.version
    """Of the format that it was written in."""

    @staticmethod
    def read(path: str | Path) -> Checkpoint:
        """Describes the checkpoint at `path`, or the newest of the run at `path`, without reading tensors.

        Raises CheckpointError where there is none, or it is damaged.
        """
        folder = checkpoint_folder(Path(path))
        checkpoint = _read(folder, folder / "checkpoint.json")
        if not checkpoint.files and checkpoint.sealed:
            raise CheckpointError(f"{folder}/checkpoint.json is not whole (it says no hash of a file): use another one")
        return checkpoint

    @property
    def sealed(self) -> bool:
        """False for one of an earlier robostack, which wrote no hashes: its files are read as they are."""
        return self.version >= SEALED

    @staticmethod
    def read_start(run: Path) -> Checkpoint | None:
        """A run as it began, without weights; None where there is no such run."""
        return _read(run, run / RUN_FILE) if (run / RUN_FILE).exists() else None

    def build(self) -> nn.Module:
        """The policy with fresh weights. Raises CheckpointError where they would not fit into memory."""
        self._kinds(memory_bytes())
        return self._make()

    @property
    def best(self) -> Weights:
        """What evaluation and control use: the average, where there is one."""
        averaged = {"average.safetensors", index_of("average")} & self.files.keys()
        return "average" if averaged or not self.sealed else "model"

    def load(
        self,
        weights: Weights | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> nn.Module:
        """The policy with the stored weights, by default the best, in evaluation mode, on `device` and in `dtype`, by
        default as stored.

        The weights are in memory once: none are drawn, and each tensor goes from the file to where it stays.
        """
        weights = weights or self.best
        self.check_fits(weights)
        policy = without_weights(self._make).to(dtype)
        load_strictly(policy, self.tensors(weights, device, dtype), self.file(weights), assign=True)
        return policy.to(device).eval()

    def check_fits(self, weights: Weights) -> None:
        """Raises CheckpointError where the stored weights are not those of this policy. Reads the files' headers."""
        found = self.kinds(weights)
        stored = sum(kind.bytes for kind in found.values())
        # A module may register a parameter twice; one of another size altogether is told as soon as it is seen.
        expected = self._kinds(2 * (stored + OVERHEAD * (len(found) + 1000)))
        if told := differences(expected, found):
            if any(name.endswith(AVERAGED) and name not in expected for name in found):
                told = "an earlier robostack trained it, whose policies averaged the words of a task: train it again"
            raise CheckpointError(f"{self.file(weights)} does not fit {POLICIES[self.policy].policy}: {told}")

    def file(self, name: str) -> Path:
        """That of the tensors of this name, or the index of theirs, as an error names it."""
        return self._shards(name).path

    def kinds(self, name: str) -> dict[str, Kind]:
        """Types and shapes of the tensors of this name, by the headers of their files."""
        with self._telling(name):
            return self._current(name, self._shards(name).kinds())

    def tensors(
        self, name: str, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
    ) -> dict[str, Tensor]:
        """The tensors of this name, fractions in `dtype`. Raises CheckpointError where a file is not what was
        written."""
        with self._telling(name):
            return self._current(name, self._shards(name).read(device, dtype))

    def _current(self, name: str, tensors: dict[str, Any]) -> dict[str, Any]:
        weights = name in get_args(Weights)
        return current_tensors(self.policy, self.version, self.config, tensors) if weights else tensors

    def _shards(self, name: str) -> Shards:
        return Shards(self.path, name, self.files if self.sealed else None)

    @contextmanager
    def _telling(self, name: str) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, SafetensorError) as error:
            told = f"{self.file(name)} cannot be read ({one_line(error)}): use another checkpoint"
            raise CheckpointError(told) from error

    def save(self, tensors: Mapping[str, Mapping[str, Tensor]], shard_bytes: int = SHARD_BYTES) -> None:
        """Writes the checkpoint with these tensors (name of a file to what is in it), all or nothing. What is larger
        than `shard_bytes` goes into several files, with an index."""
        with whole_folder(self.path) as folder:
            files = {}
            for name, values in tensors.items():
                files |= write_tensors(folder, name, values, shard_bytes)
            self._write_tokenizer(folder)
            (folder / "checkpoint.json").write_text(self._describe(files))

    def save_start(self, run: Path) -> None:
        """Writes what `read_start` reads."""
        self._write_tokenizer(run)
        write_file(run / RUN_FILE, self._describe({}))

    def _write_tokenizer(self, folder: Path) -> None:
        if isinstance(tokenizer := self.processor.tokenizer, FileTokenizer):
            write_file(folder / tokenizer.file, tokenizer.content)

    def _make(self) -> nn.Module:
        return policy_class(self.policy)(self.config, self.processor.interface)

    def _kinds(self, most_bytes: int) -> dict[str, Kind]:
        try:
            return kinds_of_made(self._make, most_bytes)
        except (ValueError, TypeError, ArithmeticError, RuntimeError) as error:  # torch's, of sizes beyond counting
            config = type(self.config).__name__
            raise CheckpointError(f"{self.path}: {config} does not fit ({one_line(error)}): use another one") from error

    def _describe(self, files: dict[str, Seal]) -> str:
        config = to_json(self.config)
        whole = _Description(str(FORMAT), self.policy, config, self.processor, self.step, self.training, files)
        return json.dumps(to_json(whole), indent=1)


def _read(folder: Path, file: Path) -> Checkpoint:
    try:
        values = read_json(file, LARGEST_DESCRIPTION)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} is not whole ({one_line(error)}): use another one") from error
    try:
        values, version = FORMAT.brought_up(values)
    except ValueError as error:
        raise CheckpointError(f"{file}: {one_line(error)}") from error
    if (policy := values.get("policy")) not in [*POLICIES]:
        raise CheckpointError(f"{folder} holds the policy {_short(policy)}; this version knows {', '.join(POLICIES)}")
    try:
        read = from_json(_Description, values, fill=True)
        config = from_json(config_class(read.policy), read.config, fill=True)
    except ValueError as error:
        raise CheckpointError(
            f"{file} is not whole, or a later robostack wrote it ({one_line(error)}): use another one"
        ) from error
    processor = read.processor
    if isinstance(tokenizer := processor.tokenizer, FileTokenizer):
        try:
            processor = replace(processor, tokenizer=tokenizer.at(folder / tokenizer.file))
        except (OSError, ValueError) as error:
            told = f"{folder / tokenizer.file} cannot be read ({one_line(error)}): use another checkpoint"
            raise CheckpointError(told) from error
    return Checkpoint(folder, read.policy, config, processor, read.step, read.training, read.files, version)


def checkpoint_folder(path: Path) -> Path:
    """The checkpoint folder at `path`: itself, or the one with the highest step under `path`/checkpoints."""
    if found := newest_checkpoint(path, "step-*", "checkpoint.json"):
        return found
    if (path / RUN_FILE).exists():
        raise CheckpointError(
            f"no checkpoint at {path} yet: its training was stopped before the first; {resume_command(path)} goes on"
        )
    raise CheckpointError(f"no checkpoint at {path}: expected a run of `robostack train` or one of its checkpoints")


def resume_command(run: Path) -> str:
    """As it can be typed."""
    return f"robostack train --resume {shlex.quote(str(run))}"


def _short(value: Any) -> str:
    return one_line(ValueError(repr(value)), 60)
