"""A checkpoint is a folder of safetensors and JSON, written whole and loaded strictly.

    checkpoint.json         format, policy name, its config, its processor (statistics, vocabulary), training step
    model.safetensors       the weights as they were trained
    average.safetensors     their exponential moving average, which evaluation and control use
    optimizer.safetensors   what only a resumed training needs

It is written under another name and renamed when it is complete: a folder with its final name is a whole checkpoint.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from robostack.policies.act import Act, ActConfig
from robostack.policies.decision_transformer import DecisionTransformer, DecisionTransformerConfig
from robostack.policies.diffusion import Diffusion, DiffusionConfig
from robostack.policies.energy import Energy, EnergyConfig
from robostack.policies.pi0 import Pi0, Pi0Config
from robostack.policies.processor import Processor
from robostack.serialize import from_json, to_json

FORMAT = "robostack-checkpoint-5"
BEFORE_DEPTH = "robostack-checkpoint-4"

POLICIES: Mapping[str, tuple[type[Any], type[nn.Module]]] = {
    "pi0": (Pi0Config, Pi0),
    "act": (ActConfig, Act),
    "diffusion": (DiffusionConfig, Diffusion),
    "decision_transformer": (DecisionTransformerConfig, DecisionTransformer),
    "energy": (EnergyConfig, Energy),
}
"""Policy name to its config and its module."""


class CheckpointError(ValueError):
    """The checkpoint cannot be used; the message says what was expected, what came and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """A policy as it stands on disk; `load` gives it with its weights."""

    path: Path
    policy: str
    config: Any
    processor: Processor
    step: int
    training: dict[str, Any]
    """How it was trained: settings, command, commit, machine. For people and for resuming."""

    @staticmethod
    def read(path: str | Path) -> Checkpoint:
        """Describes the checkpoint at `path`, or the newest of the run at `path`, without reading tensors."""
        folder = newest(Path(path))
        try:
            values = json.loads((folder / "checkpoint.json").read_text())
            if values["format"] == BEFORE_DEPTH:  # whose cameras were all of colour
                for robot in dict(values["processor"]["robots"]).values():
                    robot |= {"depth": {}}
            elif values["format"] != FORMAT:
                raise CheckpointError(f"{folder}: expected format {FORMAT!r}, got {values['format']!r}")
            if values["policy"] not in POLICIES:
                known = ", ".join(POLICIES)
                raise CheckpointError(f"{folder} holds the policy {values['policy']!r}; this version knows {known}")
            config_type, _ = POLICIES[values["policy"]]
            return Checkpoint(
                folder,
                values["policy"],
                from_json(config_type, values["config"]),
                from_json(Processor, values["processor"]),
                values["step"],
                values["training"],
            )
        except CheckpointError:
            raise
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{folder}/checkpoint.json is not whole ({error!r}): use another one") from error

    def build(self) -> nn.Module:
        """The policy with fresh weights."""
        return POLICIES[self.policy][1](self.config, self.processor.interface)

    def load(self, weights: Literal["average", "model"] = "average") -> nn.Module:
        """The policy with the stored weights, in evaluation mode."""
        policy = self.build()
        load_strictly(policy, self.tensors(weights), self.path / f"{weights}.safetensors")
        return policy.eval()

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of one of the folder's safetensors files."""
        file = self.path / f"{name}.safetensors"
        try:
            return load_file(file)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{file} cannot be read ({error}): use another checkpoint") from error

    def save(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Writes the checkpoint with these tensor files (name to tensors), all or nothing."""
        partial = self.path.with_name(f".{self.path.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name, values in tensors.items():
            save_file({key: value.contiguous() for key, value in values.items()}, partial / f"{name}.safetensors")
        description = {
            "format": FORMAT,
            "policy": self.policy,
            "config": to_json(self.config),
            "processor": to_json(self.processor),
            "step": self.step,
            "training": self.training,
        }
        (partial / "checkpoint.json").write_text(json.dumps(description, indent=1))
        for file in partial.iterdir():
            _flush(file)
        os.replace(partial, self.path)
        _flush(self.path.parent)


def newest(path: Path) -> Path:
    """The checkpoint folder at `path`: itself, or the one with the highest step under `path`/checkpoints."""
    if (path / "checkpoint.json").is_file():
        return path
    found = sorted(path.glob("checkpoints/step-*/checkpoint.json"))
    if not found:
        raise CheckpointError(f"no checkpoint at {path}: expected a run of `robostack train` or one of its checkpoints")
    return found[-1].parent


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Loads `tensors` into `module`. Raises CheckpointError, before anything is changed, if one is missing, left over
    or of another shape."""
    own = module.state_dict()
    problems = [f"{key} missing" for key in own if key not in tensors]
    problems += [f"{key} unknown" for key in tensors if key not in own]
    problems += [
        f"{key} is {tuple(tensors[key].shape)}, expected {tuple(own[key].shape)}"
        for key in own
        if key in tensors and tensors[key].shape != own[key].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(f"{source} does not fit {type(module).__name__}: {'; '.join(problems[:3])}{more}")
    module.load_state_dict(dict(tensors))


def _flush(path: Path) -> None:
    """Brings a file or folder to the disk, so that a power cut after the rename finds it whole."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
