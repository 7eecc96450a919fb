"""What tests of policies share: an interface and observations of random numbers that fit it."""

from collections.abc import Mapping
from dataclasses import replace

import torch

from robostack.datasets.moments import History
from robostack.policies.protocol import Interface, Observation, Text

Cameras = Mapping[str, tuple[int, int]]


def interface(cameras: Cameras | None = None) -> Interface:
    return Interface(state_dim=5, action_dim=3, words=4, vocabulary=9, cameras=cameras or {})


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_observation(
    batch: int, cameras: Cameras | None = None, history: History | None = None, seed: int = 1
) -> Observation:
    """Everything is there and was seen; the task of every other row has two words only."""
    history, g = history or History(), seeded(seed)
    text = torch.randint(1, 9, (batch, 4), generator=g)
    text[1::2, 2:] = 0
    images = {
        name: torch.randint(0, 256, (batch, history.length, *size, 3), generator=g, dtype=torch.uint8)
        for name, size in (cameras or {}).items()
    }
    return Observation(
        state=torch.randn(batch, history.length, 5, generator=g),
        text=as_text(text),
        images=images,
        present={name: torch.ones(batch, dtype=torch.bool) for name in images},
        valid=torch.ones(batch, history.length, dtype=torch.bool),
        past_actions=torch.randn(batch, history.steps, 3, generator=g),
        returns_to_go=torch.rand(batch, history.length, generator=g) if history.returns else None,
    )


def as_text(ids: torch.Tensor) -> Text:
    """0 is no word."""
    return Text(ids, ids > 0)


def rows(observation: Observation, index: slice) -> Observation:
    returns = observation.returns_to_go
    return replace(
        observation,
        state=observation.state[index],
        text=observation.text[index],
        images={name: frames[index] for name, frames in observation.images.items()},
        present={name: has[index] for name, has in observation.present.items()},
        valid=observation.valid[index],
        past_actions=observation.past_actions[index],
        returns_to_go=None if returns is None else returns[index],
    )
