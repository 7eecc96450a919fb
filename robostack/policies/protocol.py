"""What a policy is to training, evaluation and control: an observation type and two functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from robostack.datasets.moments import History


@dataclass(frozen=True)
class Text:
    """The task texts of a batch as token ids, in order."""

    ids: Int[Tensor, "batch words"]
    valid: Bool[Tensor, "batch words"]
    """False behind the end of a text, where the id is 0 and means nothing."""

    def __getitem__(self, rows: slice | Tensor) -> Text:
        return Text(self.ids[rows], self.valid[rows])

    def distinct(self) -> tuple[Text, Int[Tensor, " batch"]]:
        """Each different text once, and which of them each row has: a batch mostly has a few."""
        if len(self.ids) == 1 or not self.ids.shape[1]:
            return self[:1], torch.zeros(len(self.ids), dtype=torch.long, device=self.ids.device)
        ids, which = torch.unique(self.ids.masked_fill(~self.valid, -1), dim=0, return_inverse=True)
        return Text(ids.clamp(min=0), ids >= 0), which


@dataclass(frozen=True)
class Observation:
    """What a policy sees, for a batch of B moments. Numbers are normalised, colours are as the camera gave them, and
    depth is z / (1 + z) with z in metres, 0 where nothing was measured.

    A moment has several observation steps, oldest first, as the policy's `History` asks; most have one, the present.
    """

    state: Float[Tensor, "batch obs_steps state_dim"]
    text: Text
    """What to do."""
    images: Mapping[
        str, UInt8[Tensor, "batch obs_steps height width 3"] | Float[Tensor, "batch obs_steps height width 1"]
    ]
    """Camera name to frames."""
    present: Mapping[str, Bool[Tensor, " batch"]]
    """Camera name to whether the robot has it; where it does not, the frame is black and must not be looked at."""
    valid: Bool[Tensor, "batch obs_steps"]
    """False for a step before the start of the episode, which repeats the first one."""
    past_actions: Float[Tensor, "batch past action_dim"]
    """The actions run between the first observation step and the present; zero before the start of the episode."""
    returns_to_go: Float[Tensor, "batch obs_steps"] | None = None
    """What is still to be earned, in parts of the largest return of the training data; for a `History` that asks."""
    entities: Float[Tensor, "batch obs_steps places features"] | None = None
    """What a world is made of, in any order: a row of numbers each, of which the first is 1; not normalised. Rows of
    zeros are empty places."""

    @staticmethod
    def concatenate(parts: Sequence[Observation]) -> Observation:
        """Several batches as one."""
        if len(parts) == 1:
            return parts[0]
        returns = [part.returns_to_go for part in parts if part.returns_to_go is not None]
        entities = [part.entities for part in parts if part.entities is not None]
        return Observation(
            state=torch.cat([part.state for part in parts]),
            text=Text(torch.cat([part.text.ids for part in parts]), torch.cat([part.text.valid for part in parts])),
            images={name: torch.cat([part.images[name] for part in parts]) for name in parts[0].images},
            present={name: torch.cat([part.present[name] for part in parts]) for name in parts[0].present},
            valid=torch.cat([part.valid for part in parts]),
            past_actions=torch.cat([part.past_actions for part in parts]),
            returns_to_go=torch.cat(returns) if returns else None,
            entities=torch.cat(entities) if entities else None,
        )


@dataclass(frozen=True)
class Given:
    """What of the next chunk is committed already, since it is run while the chunk is computed: normalised actions, of
    which the first `length` hold."""

    actions: Float[Tensor, "batch chunk_len action_dim"]
    length: Int[Tensor, " batch"]

    def check(self, most: int) -> None:
        """Raises ValueError where more actions are given than `most`, with which the policy was trained."""
        if (longest := int(self.length.max())) > most:
            raise ValueError(
                f"the policy takes up to {most} actions of a chunk as given, got {longest}: train it with a larger "
                "--policy.given"
            )


@dataclass(frozen=True)
class Interface:
    """The sizes that a policy takes from its data and robot: they are not a user's choice."""

    state_dim: int
    action_dim: int
    words: int
    """Length of a task text, in tokens."""
    vocabulary: int
    """Number of word ids, padding included."""
    cameras: Mapping[str, tuple[int, int]]
    """Camera name to (height, width) in pixels."""
    entities: tuple[int, int] | None = None
    """(places, features) of the worlds' entities, where they are observed."""
    depth: tuple[str, ...] = ()
    """Those of the cameras that measure depth."""
    told_state: bool = False
    """Whether the text tells the state."""

    def planes(self, camera: str) -> int:
        """Values that a pixel of a camera has."""
        return 1 if camera in self.depth else 3

    @property
    def views(self) -> int:
        """What has an encoder of its own beside the state: cameras, and the entities."""
        return len(self.cameras) + (self.entities is not None)


@runtime_checkable
class PolicyConfig(Protocol):
    """Architecture only. `chunk_len` actions are predicted, `execute_len` of them are run before it observes
    again, and `history` says what of the past it sees."""

    @property
    def chunk_len(self) -> int: ...
    @property
    def execute_len(self) -> int: ...
    @property
    def history(self) -> History: ...


MOST_ACTIONS = 10_000
"""Of a chunk: more than three minutes at 50 Hz."""


class AtMost(int):
    """A setting's default that gives way: so much, or as much as a shorter chunk has. What a user gives stays, and is
    refused where it does not fit."""


def fit_to_chunk(config: PolicyConfig, *names: str) -> None:
    """Brings the settings of these names that nobody gave within chunk_len; for a frozen config's `__post_init__`."""
    for name in names:
        if isinstance(value := getattr(config, name), AtMost):
            object.__setattr__(config, name, min(int(value), config.chunk_len))


def check_lengths(chunk_len: int, execute_len: int) -> None:
    """Raises ValueError unless a chunk holds the actions that are run of it, and is one that anybody means."""
    if chunk_len > MOST_ACTIONS:
        raise ValueError(f"chunk_len must be at most {MOST_ACTIONS:,}, got {chunk_len}")
    if not 0 < execute_len <= chunk_len:
        raise ValueError(f"execute_len must lie in 1..chunk_len = {chunk_len}, got {execute_len}")


def check_multiple(name: str, value: int, of: str, divisor: int, settable: bool = True) -> None:
    """Raises ValueError, which says what would fit, unless `value` is a multiple of `divisor`, a setting by default."""
    if divisor < 1:
        raise ValueError(f"{of} must be at least 1, got {divisor}")
    if value % divisor:
        near = [str(fits) for fits in (value // divisor * divisor, -(-value // divisor) * divisor) if fits > 0]
        divisors = ", ".join(str(fits) for fits in range(1, value + 1) if value % fits == 0)
        other = f", or {of} of {divisors}" if settable else ""
        raise ValueError(f"{name} {value} is not a multiple of {of} {divisor}: take {' or '.join(near)}{other}")


class Policy(Protocol):
    """A module with a loss and a sampler. Actions are normalised, (batch, chunk_len, action_dim)."""

    def loss(
        self,
        observation: Observation,
        actions: Float[Tensor, "batch chunk_len action_dim"],
        valid: Bool[Tensor, "batch chunk_len action_dim"],
        generator: torch.Generator,
    ) -> Float[Tensor, ""]:
        """The training loss over the valid numbers: the others lie past the end of their episode, or belong to a
        joint that the robot does not have."""
        ...

    def sample(
        self, observation: Observation, generator: torch.Generator
    ) -> Float[Tensor, "batch chunk_len action_dim"]:
        """A chunk of actions; the same generator state gives the same chunk."""
        ...

    def state_dict(self) -> dict[str, Any]: ...
