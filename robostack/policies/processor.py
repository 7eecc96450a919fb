"""From the keys, units and texts of a data set or robot to a policy's tensors, and back.

One object does it for training, evaluation and control. It lives in the checkpoint, statistics included, so that a
policy sees on the robot what it would have seen in training. Robots of other shapes share one state and one action
vector: each fills the entries that it has, and the rest is zero and not valid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from robostack.core.text.files import FileTokenizer
from robostack.core.text.prompt import Prompt
from robostack.core.text.words import Vocabulary
from robostack.datasets.episodes import IMAGES, DataError
from robostack.datasets.moments import Moments, Windows
from robostack.datasets.normalize import Normalizer
from robostack.datasets.statistics import Statistics
from robostack.policies.depth import bounded_depth
from robostack.policies.described import check_described
from robostack.policies.protocol import Interface, Observation, Text
from robostack.policies.settings import Scaling

STATE = "observation.state"
ENTITIES = "observation.entities"


@dataclass(frozen=True)
class Robot:
    """How one kind of robot fills the vectors that all robots of a policy share."""

    statistics: Mapping[str, Statistics]
    """Of its state keys and of `action`; of relative actions where they are relative."""
    smallest: Mapping[str, tuple[float, ...]]
    """The same keys: the least that each entry is divided by (see `smallest_scales`)."""
    places: Mapping[str, tuple[int, ...]]
    """Of its state keys and of `action`: where its entries stand in the shared vector."""
    cameras: tuple[str, ...]
    relative: tuple[bool, ...]
    """Which entries of its action are relative to its state."""
    depth: Mapping[str, float]
    """Of those of its cameras that measure depth: metres a count."""
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Of the entries of its state keys and of `action`, in its own order; no key where its data did not say."""
    units: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Of the same, such as rad and m."""

    def __post_init__(self) -> None:
        for key, floors in self.smallest.items():
            entries = len(self.statistics[key].mean) if key in self.statistics else len(floors)
            if len(floors) != entries or not all(0 < floor < math.inf for floor in floors):
                raise DataError(f"expected a smallest scale above 0 of each of {entries} entries of {key}")


@dataclass(frozen=True)
class Processor:
    """`state` maps the state keys, which are joined in this order, to the size of their shared vectors; `cameras` maps
    names to (height, width)."""

    state: Mapping[str, int]
    action_dim: int
    cameras: Mapping[str, tuple[int, int]]
    tokenizer: Vocabulary | FileTokenizer
    robots: Mapping[str, Robot]
    rate: float
    """Actions a second."""
    scaling: Scaling
    largest_return: float | None = None
    """Of the training data, in size; None for a policy that sees no returns."""
    entities: tuple[int, int] | None = None
    """(places, features) of the largest world trained on, where entities are observed. Smaller ones leave places empty;
    numbers stay as they are."""
    prompt: Prompt = field(default_factory=Prompt)
    """What `tokenizer` is given of a task."""

    def __post_init__(self) -> None:
        check_described(self)

    @property
    def interface(self) -> Interface:
        return Interface(
            state_dim=self._state_dim,
            action_dim=self.action_dim,
            words=self.tokenizer.length,
            vocabulary=self.tokenizer.size,
            cameras=self.cameras,
            entities=self.entities,
            depth=self.depth,
            told_state=self.prompt.tells_state,
        )

    @cached_property
    def depth(self) -> tuple[str, ...]:
        """Those of the cameras that measure depth."""
        return tuple(name for name in self.cameras if any(name in robot.depth for robot in self.robots.values()))

    @property
    def _state_dim(self) -> int:
        """At least one: layers of no numbers cannot be initialised, so that where there is no state it is a zero."""
        return max(1, sum(self.state.values()))

    @property
    def keys(self) -> tuple[str, ...]:
        """The observation keys in which data sets of one robot may not differ: all but the entities."""
        return (*self.state, *(IMAGES + name for name in self.cameras))

    def keys_of(self, robot: str) -> tuple[str, ...]:
        """The observation keys that a robot has to supply."""
        known = self.robots[robot]
        own = (*(key for key in self.state if key in known.places), *(IMAGES + name for name in known.cameras))
        own = own if self.entities is None else (*own, ENTITIES)
        return own if STATE in own or not any(known.relative) else (*own, STATE)

    def shapes_of(self, robot: str) -> dict[str, tuple[int, ...]]:
        """The same with their shapes."""
        places, planes = self.robots[robot].places, self.interface.planes
        shapes: dict[str, tuple[int, ...]] = {
            IMAGES + name: (*size, planes(name)) for name, size in self.cameras.items()
        }
        shapes[ENTITIES] = self.entities or ()
        return {
            key: shapes[key] if key in shapes else (len(places.get(key, places["action"])),)
            for key in self.keys_of(robot)
        }

    def choose(self, robot: str | None) -> str:
        """The robot to act for: the only one, or the one named. Raises DataError when it is not among those trained."""
        if robot is not None and robot in self.robots:
            return robot
        if len(self.robots) == 1:
            return next(iter(self.robots))
        raise DataError(f"the policy was trained on {', '.join(self.robots)}: expected one of them, got {robot}")

    @cached_property
    def _normalizers(self) -> dict[str, dict[str, Normalizer]]:
        for name, robot in self.robots.items():
            if missing := [key for key in robot.places if key not in robot.statistics or key not in robot.smallest]:
                raise DataError(
                    f"statistics of {', '.join(missing)} of {name} are missing: the checkpoint is not whole"
                )
        return {
            name: {
                key: Normalizer.of(robot.statistics[key], self.scaling.normalization, robot.smallest[key])
                for key in robot.places
            }
            for name, robot in self.robots.items()
        }

    def observe(
        self, moments: Moments, tasks: Sequence[str], robot: str, device: torch.device | str = "cpu"
    ) -> Observation:
        """What one robot saw at a batch of moments, with the batch's task texts, as a policy's observation.

        Raises DataError for a missing key, a wrong shape or values that are not finite.
        """
        known, (batch, steps) = self.robots[robot], moments.valid.shape
        states = [] if self.state else [np.zeros((batch, steps, self._state_dim), np.float32)]
        for key, size in self.state.items():
            if key not in known.places:
                states.append(np.zeros((batch, steps, size), np.float32))
                continue
            rows = self._checked(moments, key, (batch, steps, len(known.places[key]))).astype(np.float32, copy=False)
            unit = self._normalizers[robot][key].forward(rows)
            states.append(_spread(unit, known.places[key], size))
        state = np.concatenate(states, axis=2)
        images, present = {}, {}
        for name, size in self.cameras.items():
            shape = (batch, steps, *size, 1 if name in self.depth else 3)
            if name not in known.cameras:
                images[name] = np.zeros(shape, np.float32 if name in self.depth else np.uint8)
            elif name in known.depth:
                counts = self._checked(moments, IMAGES + name, shape, np.uint16)
                images[name] = bounded_depth(counts, known.depth[name])
            else:
                images[name] = self._checked(moments, IMAGES + name, shape, np.uint8)
            present[name] = torch.full((batch,), name in known.cameras, device=device)
        past = self.normalize_actions(moments.past_action, moments, robot, device)
        return Observation(
            state=torch.from_numpy(state).to(device),
            text=self._told(tasks, state[:, -1], device),
            images={name: torch.from_numpy(frames).to(device) for name, frames in images.items()},
            present=present,
            valid=torch.from_numpy(moments.valid).to(device),
            past_actions=past * torch.from_numpy(moments.acted).to(device)[..., None],
            returns_to_go=self._scaled_returns(moments, device),
            entities=self._placed_entities(moments, device),
        )

    def _told(self, tasks: Sequence[str], state: np.ndarray, device: torch.device | str) -> Text:
        """The prompts of a batch; of those that are the same one is tokenized."""
        if self.prompt.tells_state:
            prompts = [self.prompt.write(task, now) for task, now in zip(tasks, state, strict=True)]
        else:
            written = {task: self.prompt.write(task) for task in tasks}
            prompts = [written[task] for task in tasks]
        places = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
        which = [places[prompt] for prompt in prompts]
        ids, valid = (torch.from_numpy(values[which]).to(device) for values in self.tokenizer.encode([*places]))
        return Text(ids, valid)

    def _checked(
        self, moments: Moments, key: str, shape: tuple[int, ...], pixels: type[np.integer] | None = None
    ) -> np.ndarray:
        """The rows of a key: of this shape, pixels of this type or else finite numbers."""
        if key not in moments.observation:
            raise DataError(f"the policy observes {key}, got only {', '.join(moments.observation)}")
        rows = moments.observation[key]
        if len(shape) == 3 and rows.ndim != 3 and rows.size:  # a number is a state of one entry, a matrix of them all
            rows = rows.reshape(*rows.shape[:2], -1)
        if rows.shape != shape:
            raise DataError(f"{key}: expected shape {shape}, got {rows.shape}")
        if pixels is not None:
            if rows.dtype != pixels:
                expected = "pixels as uint8, 0 to 255" if pixels is np.uint8 else "depth as uint16"
                raise DataError(f"{key}: expected {expected}, got {rows.dtype}: convert them")
        elif rows.dtype.kind not in "biuf":
            raise DataError(f"{key}: expected numbers, got {rows.dtype}")
        elif rows.dtype.kind == "f" and not np.isfinite(rows).all():
            raise DataError(f"{key} is not finite: the sensor or the data is broken")
        return rows

    def _placed_entities(self, moments: Moments, device: torch.device | str) -> Tensor | None:
        if self.entities is None:
            return None
        got, (most, features) = moments.observation.get(ENTITIES, np.zeros(0)).shape, self.entities
        places = got[2] if len(got) == 4 else 0
        rows = self._checked(moments, ENTITIES, (*moments.valid.shape, places, features))
        if places > most:
            raise DataError(f"{ENTITIES}: the policy knows worlds of up to {most} entities, got {places}")
        placed = np.zeros((*moments.valid.shape, most, features), np.float32)
        placed[:, :, :places] = rows
        return torch.from_numpy(placed).to(device)

    def _scaled_returns(self, moments: Moments, device: torch.device | str) -> Tensor | None:
        if self.largest_return is None:
            return None
        if moments.returns_to_go is None:
            raise DataError("the policy is conditioned on the return-to-go, and got none: give a target return")
        return torch.from_numpy((moments.returns_to_go / self.largest_return).astype(np.float32)).to(device)

    def training_batch(
        self, parts: Sequence[tuple[str, Windows, Sequence[str]]], device: torch.device | str = "cpu"
    ) -> tuple[Observation, Float[Tensor, "batch chunk_len action_dim"], Bool[Tensor, "batch chunk_len action_dim"]]:
        """Windows of several robots, (robot, windows, task texts) each, as one batch: what the policy sees, the actions
        it should find, and which of these numbers are valid: those before the end of their episode, of joints that the
        robot has."""
        observations = [self.observe(windows, texts, robot, device) for robot, windows, texts in parts]
        actions = [self.normalize_actions(windows.action, windows, robot, device) for robot, windows, _ in parts]
        valid = []
        for robot, windows, _ in parts:
            has = torch.zeros(self.action_dim, dtype=torch.bool)
            has[list(self.robots[robot].places["action"])] = True
            valid.append((~torch.from_numpy(windows.is_pad)[..., None] & has).to(device))
        return Observation.concatenate(observations), torch.cat(actions), torch.cat(valid)

    def normalize_actions(
        self,
        actions: Shaped[np.ndarray, "batch steps entries"],
        moments: Moments,
        robot: str,
        device: torch.device | str = "cpu",
    ) -> Float[Tensor, "batch steps action_dim"]:
        """Actions in the robot's units to the policy's. `moments` is what was seen when the chunk began."""
        moved = actions.astype(np.float32, copy=False) - self._reference(moments, robot)
        unit = self._normalizers[robot]["action"].forward(moved)
        return torch.from_numpy(_spread(unit, self.robots[robot].places["action"], self.action_dim)).to(device)

    def denormalize_actions(
        self, actions: Float[Tensor, "batch steps action_dim"], moments: Moments, robot: str
    ) -> Shaped[np.ndarray, "batch steps entries"]:
        """The policy's actions in the robot's units; undoes `normalize_actions`."""
        unit = actions.float().cpu().numpy()[..., list(self.robots[robot].places["action"])]
        return self._normalizers[robot]["action"].inverse(unit) + self._reference(moments, robot)

    def _reference(self, moments: Moments, robot: str) -> np.ndarray:
        """What actions are relative to, the state now: (batch, 1, entries) or 0."""
        relative = self.robots[robot].relative
        if not any(relative):
            return np.zeros((), np.float32)
        if STATE not in moments.observation:
            raise DataError(f"relative actions need {STATE}, got only {', '.join(moments.observation)}")
        now = moments.observation[STATE][:, -1:].reshape(len(moments.valid), 1, -1).astype(np.float32, copy=False)
        return now * np.asarray(relative, np.float32)


def _spread(
    values: Shaped[np.ndarray, "*batch entries"], places: Sequence[int], size: int
) -> Shaped[np.ndarray, "*batch size"]:
    """A robot's entries at their places in the shared vector, zero elsewhere."""
    if tuple(places) == tuple(range(size)):
        return values
    shared = np.zeros((*values.shape[:-1], size), values.dtype)
    shared[..., list(places)] = values
    return shared
