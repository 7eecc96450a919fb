"""An expert and its training on disk: safetensors and JSON, written whole and loaded strictly.

    RUN/run.json                    settings of the run from its start on: as expert.json, of update 0
    RUN/log.jsonl                   one line per update
    RUN/checkpoints/update-00000008/
        expert.json                 format, settings, what the expert reaches, where it comes from, hashes of the files
        expert.safetensors          network and statistics: all that acting needs
        training.safetensors        optimiser, worlds and random key: what a resumed training needs besides

A checkpoint is written under another name and renamed when it is complete. It is read as a policy's: see
`robostack.policies.checkpoint`.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from robostack.common.files import read_json, whole_folder, write_file
from robostack.common.formats import Description, Format
from robostack.common.numbers import check_bounds
from robostack.common.provenance import Training
from robostack.common.serialize import from_json, to_json
from robostack.common.tensors import LARGEST_WEIGHT, Kind, Seal, differences, newest_checkpoint, read_kinds
from robostack.common.text import one_line
from robostack.envs.kinetix import package  # noqa: F401 (first of all: says in one line what is not installed)
from robostack.experts.ppo.algorithm import Learner
from robostack.experts.ppo.config import CHECKPOINTS, EXPERT_FILE, ExpertConfig
from robostack.experts.ppo.network import ActorCritic, RunningStatistics


def _from_1(values: Description) -> Description:
    """Nothing had a hash, and who resumed a training was not recorded."""
    return {**values, "files": {}, "training": {**values["training"], "resumed": []}}


def _from_2(values: Description) -> Description:
    """Who resumed a training did so at an "update"."""
    renamed = [
        {"step" if key == "update" else key: value for key, value in resumed.items()}
        for resumed in values["training"]["resumed"]
    ]
    return {**values, "training": {**values["training"], "resumed": renamed}}


FORMAT = Format("robostack-expert", {1: _from_1, 2: _from_2})
SEALED = 2
"""The version that began to write hashes."""
RUN_FILE = "run.json"
LARGEST_DESCRIPTION = 1 << 20
"""Bytes of expert.json."""


class ExpertError(ValueError):
    """The expert cannot be used; the message says what was expected, what was got and what to do."""


@dataclass(frozen=True)
class Played:
    """What `robostack.experts.ppo.acting.play` found."""

    episodes: int
    successes: int
    success: float
    success_interval: tuple[float, float]
    mean_return: float
    mean_length: float
    delay: int = 0


@dataclass(frozen=True, kw_only=True)
class ExpertTraining(Training):
    """What a training took so far, and where it was run."""

    cpu_s: float
    time_s: float


@dataclass(frozen=True)
class _ExpertFile:
    """expert.json, and run.json."""

    format: str
    config: ExpertConfig
    update: int
    observation: int
    used: tuple[bool, ...]
    evaluation: Played | None
    training: ExpertTraining
    files: dict[str, Seal]

    def __post_init__(self) -> None:
        check_bounds(self, 0, 10**9, "update")
        check_bounds(self, 1, 10**6, "observation")
        if not 0 < len(self.used) <= 1000:
            raise ValueError(f"used must say of each number of an action whether it moves, got {len(self.used)}")


@dataclass(frozen=True)
class ExpertCheckpoint:
    """An expert as it stands on disk."""

    path: Path
    config: ExpertConfig
    update: int
    """Updates made."""
    observation: int
    """Numbers in an observation."""
    used: tuple[bool, ...]
    """Which numbers of an action do anything in this level."""
    evaluation: dict[str, Any] | None
    """Success of the deterministic policy, with its interval: the fields of `Played`. None where the training was
    stopped at this update."""
    training: ExpertTraining
    files: dict[str, Seal] = field(default_factory=dict)
    sealed: bool = True
    """False for one of an earlier robostack, which wrote no hashes: its files are read as they are."""

    @staticmethod
    def read(path: str | Path) -> ExpertCheckpoint:
        """Describes the checkpoint at `path`, or the last of the run at `path`, without reading tensors.

        Raises ExpertError where there is none or it is damaged.
        """
        folder = newest_expert(Path(path))
        checkpoint = _read(folder, folder / EXPERT_FILE)
        if checkpoint.sealed and not checkpoint.files:
            raise ExpertError(f"{folder}/expert.json is not whole (it says no hash of a file): use another checkpoint")
        return checkpoint

    @staticmethod
    def read_start(run: Path) -> ExpertCheckpoint | None:
        """A run as it began, without weights; None where there is no such run."""
        return _read(run, run / RUN_FILE) if (run / RUN_FILE).exists() else None

    def save(self, learner: Learner) -> None:
        """Writes the checkpoint, all or nothing. Raises ExpertError for weights that are none."""
        acting, rest = (tensors_of(part) for part in _split(learner))
        if told := _what_is_no_weight(acting):
            raise ExpertError(f"the policy is no longer sound after update {self.update}: {told}")
        with whole_folder(self.path) as folder:
            files = {}
            for name, tensors in (("expert", acting), ("training", rest)):
                file = folder / f"{name}.safetensors"
                save_file(tensors, file)
                files[file.name] = Seal.of(file)
            (folder / EXPERT_FILE).write_text(replace(self, files=files)._describe())

    def save_start(self, run: Path) -> None:
        """Writes what `read_start` reads."""
        write_file(run / RUN_FILE, self._describe())

    def save_evaluation(self, evaluation: dict[str, Any]) -> None:
        """Says what a checkpoint reaches that was made when its training was stopped."""
        write_file(self.path / EXPERT_FILE, replace(self, evaluation=evaluation)._describe())

    def acting(self) -> tuple[ActorCritic, RunningStatistics]:
        """The network and its statistics. Raises ExpertError where the file does not hold exactly these."""
        ppo = self.config.ppo

        def empty() -> tuple[ActorCritic, RunningStatistics]:
            key = jax.random.PRNGKey(0)
            network = ActorCritic.initial(key, self.observation, len(self.used), ppo.widths, ppo.deviation)
            return network, RunningStatistics.initial(self.observation)

        return self._tensors("expert", jax.eval_shape(empty))

    def learner(self, like: Learner) -> Learner:
        """The whole state of training; `like` says of which shapes. Raises ExpertError where something differs."""
        acting, rest = _split(like)
        acting = self._tensors("expert", acting)
        rest = self._tensors("training", rest)
        return Learner(network=acting[0], statistics=acting[1], **rest)

    def _tensors(self, name: str, like: Any) -> Any:
        file = self.path / f"{name}.safetensors"
        if self.sealed and file.name not in self.files:
            raise ExpertError(f"{file} cannot be read (expert.json says no hash of it): use another checkpoint")
        found = read_tensors(file, like, self.files.get(file.name))
        if name == "expert" and (told := _what_is_no_weight(tensors_of(found))):
            raise ExpertError(f"{file}: {told}: use another checkpoint")
        return found

    def _describe(self) -> str:
        played = None if self.evaluation is None else from_json(Played, to_json(self.evaluation))
        whole = _ExpertFile(
            str(FORMAT), self.config, self.update, self.observation, self.used, played, self.training, self.files
        )
        return json.dumps(to_json(whole), indent=1) + "\n"


def _read(folder: Path, file: Path) -> ExpertCheckpoint:
    try:
        values = read_json(file, LARGEST_DESCRIPTION)
    except (OSError, ValueError) as error:
        raise ExpertError(f"{file} is not whole ({one_line(error)}): use another checkpoint") from error
    try:
        values, version = FORMAT.brought_up(values)
    except ValueError as error:
        raise ExpertError(f"{file}: {one_line(error)}") from error
    try:
        read = from_json(_ExpertFile, values, fill=True)
    except ValueError as error:
        raise ExpertError(
            f"{file} is not whole, or a later robostack wrote it ({one_line(error)}): use another checkpoint"
        ) from error
    played = None if read.evaluation is None else to_json(read.evaluation)
    sealed, training = version >= SEALED, read.training
    return ExpertCheckpoint(
        folder, read.config, read.update, read.observation, read.used, played, training, read.files, sealed
    )


def newest_expert(path: Path) -> Path:
    """The checkpoint folder at `path`: itself, or the one after most updates under `path`/checkpoints."""
    if found := newest_checkpoint(path, CHECKPOINTS, EXPERT_FILE):
        return found
    if (path / RUN_FILE).exists():
        raise ExpertError(
            f"no expert at {path} yet: its training was stopped before the first checkpoint; "
            f"{resume_expert_command(path)} goes on"
        )
    raise ExpertError(f"no expert at {path}: expected a run of `robostack expert` or one of its checkpoints")


def resume_expert_command(run: Path) -> str:
    """As it can be typed."""
    return f"robostack expert --resume {shlex.quote(str(run))}"


def tensors_of(tree: Any) -> dict[str, np.ndarray]:
    """The arrays of a structure by their paths, such as 0.actor.1.weight."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf) for path, leaf in leaves}


def read_tensors(file: Path, like: Any, seal: Seal | None) -> Any:
    """The structure `like` with the arrays of a file. Raises ExpertError where that cannot be read, is not the one of
    the seal, or an array is missing, left over, or of another shape or type."""
    paths, structure = jax.tree_util.tree_flatten_with_path(like)
    expected = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in paths}
    try:
        kinds = {name: Kind(str(leaf.dtype), tuple(leaf.shape)) for name, leaf in expected.items()}
        if told := differences(kinds, read_kinds(file)):
            raise ExpertError(f"{file} does not fit: {told}: use another checkpoint")
        if seal is not None:
            seal.check(file)
        tensors = load_file(file)
    except ExpertError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        raise ExpertError(f"{file} cannot be read ({one_line(error)}): use another checkpoint") from error
    return jax.tree.unflatten(structure, [jnp.asarray(tensors[name]) for name in expected])


def _what_is_no_weight(tensors: dict[str, np.ndarray]) -> str:
    for name, values in tensors.items():
        if values.dtype.kind == "f" and not (np.abs(values) <= LARGEST_WEIGHT).all():
            return f"{name} holds {values.flat[np.argmax(~(np.abs(values) <= LARGEST_WEIGHT))]:.3g}"
    return ""


def _split(learner: Learner) -> tuple[tuple[ActorCritic, RunningStatistics], dict[str, Any]]:
    rest = learner._asdict()
    return (rest.pop("network"), rest.pop("statistics")), rest
