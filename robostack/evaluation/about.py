"""What a checkpoint says of its training, as far as an evaluation asks: its data, its seeds, its settings, its log."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from robostack.common.files import read_text
from robostack.common.numbers import is_finite
from robostack.common.text import one_line, printable
from robostack.policies.checkpoint import Checkpoint, TrainedOn


def keep_apart(seeds: range, trained_on: Sequence[TrainedOn]) -> None:
    """Raises ValueError where a seed of the evaluation is one of the demonstrations that the policy was trained on.

    Warns where that cannot be known: data of other programs, of a robot, or of a conversion that lost them.
    """
    unknown = []
    for data in trained_on:
        if data.seeds is None:
            unknown.append(printable(data.path))
            continue
        first, last = data.seeds
        if max(first, seeds[0]) <= min(last, seeds[-1]):
            raise ValueError(
                f"the policy was trained on demonstrations of seeds {first} to {last}, and evaluation asked for "
                f"{seeds[0]} to {seeds[-1]}: choose a --seed above {last}"
            )
    if unknown:
        warnings.warn(
            f"{', '.join(unknown)} does not say of which seeds its demonstrations are: whether the policy has seen the "
            "starts that it is evaluated on is not checked",
            stacklevel=2,
        )


def describe_training(checkpoint: Checkpoint, parameters: int) -> dict[str, Any]:
    """What readers of a result ask of a policy's training, for the summary and the page."""
    config = checkpoint.training.config
    return {
        "checkpoint": str(checkpoint.path),
        "data": [
            {"path": of.path, "episodes": of.episodes, "frames": of.frames, "seeds": of.seeds and list(of.seeds)}
            for of in checkpoint.training.data
        ],
        "step": checkpoint.step,
        **{key: config.get(key) for key in ("steps", "batch", "optimizer", "learning_rate", "seed")},
        "chunk_len": checkpoint.config.chunk_len,
        "parameters": parameters,
    }


def name_checkpoint(file: Path) -> str:
    """The folder's name, and a hash of the file with which a checkpoint describes itself."""
    return f"{file.parent.name} {hashlib.sha256(read_text(file).encode()).hexdigest()[:16]}"


def read_log_beside(checkpoint: Path) -> tuple[list[Mapping[str, Any]], str]:
    """The lines of log.jsonl of the run that a checkpoint lies in, and what is to be said of it, or ""; a log that
    cannot be read is told in a warning, since a policy can be evaluated without its curves. A last line that a kill cut
    short is left out."""
    path = checkpoint.parent.parent / "log.jsonl"
    if checkpoint.parent.name != "checkpoints" or not path.exists():
        return [], ""
    lines = []
    try:
        *whole, _ = read_text(path).split("\n")
        for number, text in enumerate(whole, 1):
            lines.append(json.loads(text))
            if not isinstance(lines[-1], dict) or not is_finite(lines[-1].get("step")):
                raise ValueError(f"{path}, line {number} is no line of a training log")
    except (OSError, ValueError, RecursionError) as error:
        said = f"no training curves: {one_line(error)}"
        warnings.warn(said, stacklevel=2)
        return [], said
    return lines, ""
