"""Who demonstrates: experts that act in an environment, scripted or trained. Imports none of them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from robostack.common.tensors import newest_checkpoint

Shapes = Mapping[str, tuple[int, ...]]
Look = Callable[[Shapes], Mapping[str, np.ndarray]]
"""Gives those of the observations wanted, key to shape of a row, that the environment has at this control step, with
one row per episode. Cameras are rendered only when it is called."""

EXPERTS: Mapping[str, str] = {
    "aloha-transfer-cube": "robostack.experts.aloha:transfer_cube",
    "aloha-insertion": "robostack.experts.aloha:insertion",
}
"""By environment, what makes its scripted expert from an `Asked`: module:name."""
TRAINED = "robostack.experts.ppo.acting:PpoExperts"
"""What makes one of the checkpoints of `robostack expert`, likewise."""


@dataclass(frozen=True)
class Asked:
    """What a collection asks of an expert. Each expert says which of it it can do."""

    checkpoints: tuple[Path, ...] = ()
    """Trained experts, by run or checkpoint. Of n, number (s − first) mod n plays the episode of seed s."""
    noise: tuple[float, ...] = ()
    """Levels of a disturbance of its actions. Of n, the episode of seed s has level (s − first) mod n."""
    cameras: tuple[str, ...] = ()
    """Cameras to record, as NAME or NAME:HEIGHTxWIDTH."""
    observe: tuple[str, ...] = ()
    """Observations to record; when empty, those that the environment gives by default."""
    first: int = 0
    """The seed from which those take turns."""


@runtime_checkable
class Expert(Protocol):
    """Acts in the rows of a vector environment, one episode each. What it does follows from seed and observations."""

    @property
    def plans(self) -> bool:
        """Whether it decides on all actions of an episode at its start; else it looks at every step."""
        ...

    @property
    def records(self) -> Shapes:
        """Which observations make a demonstration of it, key to shape of a row, in order."""
        ...

    def begin(self, worlds: Any, seeds: Sequence[int]) -> None:
        """Called after `worlds` were reset with `seeds`, one per row."""
        ...

    def act(self, look: Look) -> np.ndarray:
        """Actions (rows, action_dim) float32 of this control step, in the environment's units."""
        ...


def make_expert(name: str, asked: Asked = Asked()) -> Expert:
    """The expert of an environment, by its command-line name or gym id; with checkpoints, those.

    Raises ValueError where the environment is unknown, nobody is scripted for it or the expert cannot do what is asked.
    """
    from robostack.envs import ENVIRONMENTS, resolve

    gym_id = resolve(name)
    if asked.checkpoints:
        return _find(TRAINED)(asked)
    for scripted, place in EXPERTS.items():
        if gym_id == ENVIRONMENTS[scripted]:
            return _find(place)(asked)
    raise ValueError(f"no expert is scripted for {name!r}: train one with `robostack expert --env {name}`")


def trained_expert(path: Path) -> Path | None:
    """The file in which a trained expert describes itself: of the checkpoint at `path`, or of the newest in the run
    there. None where there is no such expert."""
    from robostack.experts.ppo.config import CHECKPOINTS, EXPERT_FILE

    folder = newest_checkpoint(path, CHECKPOINTS, EXPERT_FILE)
    return None if folder is None else folder / EXPERT_FILE


def _find(place: str) -> Callable[[Asked], Expert]:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
