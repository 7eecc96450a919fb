"""An expert and its training on disk: safetensors and JSON, written whole and loaded strictly.

    RUN/log.jsonl                   one line an update
    RUN/checkpoints/update-00000008/
        expert.json                 format, settings, what the expert reaches, where it comes from
        expert.safetensors          network and statistics: all that acting needs
        training.safetensors        optimiser, worlds and random key: what a resumed training needs besides

A checkpoint is written under another name and renamed when it is complete.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from robostack.envs.kinetix import package  # noqa: F401 (first of all: says in one line what is not installed)
from robostack.experts.actor_critic import ActorCritic, Statistics
from robostack.experts.ppo import Learner
from robostack.experts.ppo_config import ExpertConfig
from robostack.serialize import from_json, to_json

FORMAT = "robostack-expert-1"


class ExpertError(ValueError):
    """The expert cannot be used; the message says what was expected, what came and what to do."""


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
    evaluation: dict[str, Any]
    """Success of the deterministic policy, with its interval."""
    training: dict[str, Any]
    """CPU seconds so far, command, commit, machine."""

    @staticmethod
    def read(path: str | Path) -> ExpertCheckpoint:
        """Describes the checkpoint at `path`, or the last of the run at `path`, without reading tensors.

        Raises ExpertError where there is none or it is damaged.
        """
        folder = newest(Path(path))
        try:
            values = json.loads((folder / "expert.json").read_text())
            if values["format"] != FORMAT:
                raise ExpertError(f"{folder}: expected format {FORMAT!r}, got {values['format']!r}")
            return ExpertCheckpoint(
                folder,
                from_json(ExpertConfig, values["config"]),
                values["update"],
                values["observation"],
                tuple(values["used"]),
                values["evaluation"],
                values["training"],
            )
        except ExpertError:
            raise
        except (OSError, KeyError, TypeError, ValueError) as error:
            line = " ".join(str(error).split())
            raise ExpertError(f"{folder}/expert.json is not whole ({line}): use another checkpoint") from error

    def save(self, learner: Learner) -> None:
        """Writes the checkpoint, all or nothing."""
        partial = self.path.with_name(f".{self.path.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        acting, rest = _split(learner)
        save_file(tensors_of(acting), partial / "expert.safetensors")
        save_file(tensors_of(rest), partial / "training.safetensors")
        description = {
            "format": FORMAT,
            "config": to_json(self.config),
            "update": self.update,
            "observation": self.observation,
            "used": list(self.used),
            "evaluation": self.evaluation,
            "training": self.training,
        }
        (partial / "expert.json").write_text(json.dumps(description, indent=1) + "\n")
        os.replace(partial, self.path)

    def acting(self) -> tuple[ActorCritic, Statistics]:
        """The network and its statistics. Raises ExpertError where the file does not hold exactly these."""
        ppo = self.config.ppo

        def empty() -> tuple[ActorCritic, Statistics]:
            key = jax.random.PRNGKey(0)
            network = ActorCritic.initial(key, self.observation, len(self.used), ppo.widths, ppo.deviation)
            return network, Statistics.initial(self.observation)

        return read_tensors(self.path / "expert.safetensors", jax.eval_shape(empty))

    def learner(self, like: Learner) -> Learner:
        """The whole state of training; `like` says of which shapes. Raises ExpertError where something differs."""
        acting, rest = _split(like)
        acting = read_tensors(self.path / "expert.safetensors", acting)
        rest = read_tensors(self.path / "training.safetensors", rest)
        return Learner(network=acting[0], statistics=acting[1], **rest)


def newest(path: Path) -> Path:
    """The checkpoint folder at `path`: itself, or the one after most updates under `path`/checkpoints."""
    if (path / "expert.json").is_file():
        return path
    found = sorted(path.glob("checkpoints/update-*/expert.json"))
    if not found:
        raise ExpertError(f"no expert at {path}: expected a run of `robostack expert` or one of its checkpoints")
    return found[-1].parent


def tensors_of(tree: Any) -> dict[str, np.ndarray]:
    """The arrays of a structure by their paths, such as 0.actor.1.weight."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf) for path, leaf in leaves}


def read_tensors(file: Path, like: Any) -> Any:
    """The structure `like` with the arrays of a file.

    Raises:
        ExpertError: the file cannot be read, or an array is missing, left over, or of another shape or type.
    """
    try:
        tensors: Mapping[str, np.ndarray] = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ExpertError(f"{file} cannot be read ({error}): use another checkpoint") from error
    paths, structure = jax.tree_util.tree_flatten_with_path(like)
    expected = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in paths}
    problems = [f"{name} missing" for name in expected if name not in tensors]
    problems += [f"{name} unknown" for name in tensors if name not in expected]
    problems += [
        f"{name} is {tensors[name].dtype} {tensors[name].shape}, expected {leaf.dtype} {leaf.shape}"
        for name, leaf in expected.items()
        if name in tensors and (tensors[name].shape != leaf.shape or tensors[name].dtype != leaf.dtype)
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ExpertError(f"{file} does not fit: {'; '.join(problems[:3])}{more}: use another checkpoint")
    return jax.tree.unflatten(structure, [jnp.asarray(tensors[name]) for name in expected])


def _split(learner: Learner) -> tuple[tuple[ActorCritic, Statistics], dict[str, Any]]:
    rest = learner._asdict()
    return (rest.pop("network"), rest.pop("statistics")), rest
