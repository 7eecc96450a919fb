"""Constraints that a policy was not trained with, as energies that are added to its own at run time.

A constraint is a cost of a robot's chunk of actions, in its units; `composed_agent` makes it an energy of a policy's
normalised chunks and gives it to `Energy.sample`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from robostack.core.energy import barrier
from robostack.datasets.normalize import Normalizer
from robostack.policies.checkpoint import Checkpoint
from robostack.policies.energy import ChunkEnergy, Energy
from robostack.policies.processor import Processor
from robostack.policies.protocol import Observation
from robostack.runtime.agent import Agent

Cost = Callable[[Tensor], Tensor]
"""Chunks (*batch, chunk_len, action_dim) in a robot's units ↦ energies (*batch,), 0 where the constraint is kept."""


Points = Callable[[Tensor], Tensor]
"""States or actions (*batch, numbers) ↦ world positions (*batch, points, 3) in metres, differentiable."""


@runtime_checkable
class Region(Protocol):
    """Where fingertips are not to be."""

    def depth(self, points: Float[Tensor, "*batch 3"]) -> Float[Tensor, " *batch"]:
        """How deep points of the world frame lie in it, in metres; negative outside."""
        ...


@dataclass(frozen=True)
class Below:
    """All that is below a height, as a tray or a table top."""

    height: float
    """Metres."""

    def depth(self, points: Float[Tensor, "*batch 3"]) -> Float[Tensor, " *batch"]:
        return self.height - points[..., 2]


@dataclass(frozen=True)
class Sphere:
    """A ball."""

    centre: tuple[float, float, float]
    """World frame, metres."""
    radius: float
    """Metres."""

    def depth(self, points: Float[Tensor, "*batch 3"]) -> Float[Tensor, " *batch"]:
        # Never quite 0 under the root: its gradient is infinite there.
        return self.radius - ((points - points.new_tensor(self.centre)).square().sum(-1) + 1e-12).sqrt()


def keep_out(region: Region, fingertips: Points, clearance: float, softness: float, pace: float = 1e-3) -> Cost:
    """Σ_t b(depth_t + clearance) √(1 + (‖Δp_t‖ / pace)²) over the fingertips' ways p, in metres; b is `barrier`.

    The root makes it a cost along the way where a fingertip moves faster than `pace` a step (CHOMP, Ratliff et al.
    2009, equation 3): counted in time alone, the cheapest way leads straight through the region, and fast.
    """

    def cost(actions: Tensor) -> Tensor:
        points = fingertips(actions)
        (moved,) = torch.gradient(points, dim=-3)
        length = (1.0 + moved.square().sum(-1) / pace**2).sqrt()
        return (barrier(region.depth(points) + clearance, softness) * length).sum((-1, -2))

    return cost


def limits(low: Float[Tensor, " action_dim"], high: Float[Tensor, " action_dim"], softness: float) -> Cost:
    """Σ b(a − high) + b(low − a) over all numbers a of a chunk, each with its own limits; b is `barrier`."""
    return lambda actions: (barrier(actions - high, softness) + barrier(low - actions, softness)).sum((-1, -2))


def chunk_energy(processor: Processor, robot: str, cost: Cost) -> ChunkEnergy:
    """The cost as an energy of normalised chunks (*batch, chunk_len, action_dim).

    Raises ValueError for a policy of relative actions: what they are relative to is not in the chunk.
    """
    known, scaling = processor.robots[robot], processor.scaling
    if any(known.relative):
        raise ValueError("an energy of actions needs a policy of absolute actions, this one's are relative")
    normalizer = Normalizer.of(known.statistics["action"], scaling.normalization, known.smallest["action"])
    places = list(known.places["action"])
    return lambda chunk: cost(normalizer.inverse(chunk[..., places]))


def composed_agent(run: Path, robot: str, cost: Cost) -> Agent:
    """The energy policy of `run` with the cost's energy added to its own."""
    checkpoint = Checkpoint.read(run)
    if checkpoint.policy != "energy":
        raise ValueError(f"{run} holds a policy of {checkpoint.policy}: energies add to an energy")
    added = chunk_energy(checkpoint.processor, robot, cost)
    return Agent.load(checkpoint.path, sampler=partial(_sample_with, added))


def _sample_with(added: ChunkEnergy, policy: Energy, observation: Observation, generator: torch.Generator) -> Tensor:
    return policy.sample(observation, generator, added)
