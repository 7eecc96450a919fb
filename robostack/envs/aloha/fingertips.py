"""Where ALOHA's fingertips are as a differentiable function of its joint angles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from robostack.envs.aloha.kinematics import FINGERTIP, ArmKinematics, Side
from robostack.envs.aloha.tasks import TASKS, load_model


class Fingertips:
    """Where ALOHA's fingertips are, as a differentiable function of its state or action."""

    def __init__(self, sides: Sequence[Side] = ("left", "right")) -> None:
        self._arms = []
        for side in sides:
            links = ArmKinematics(load_model(TASKS["transfer_cube"]), side).links()
            parts = (links.positions, links.rotations, links.axes, FINGERTIP)
            joints = slice(0, 6) if side == "left" else slice(7, 13)
            self._arms.append((joints, Chain(*(torch.from_numpy(part).float() for part in parts))))

    def __call__(self, numbers: Float[Tensor, "*batch 14"]) -> Float[Tensor, "*batch arms 3"]:
        """World positions in metres, of the sides in their order."""
        return torch.stack([chain.forward(numbers[..., joints]) for joints, chain in self._arms], dim=-2)


@dataclass(frozen=True)
class Chain:
    """Links from the base on, each turned by the hinge at its origin, and a tip in the last link's frame.

    Lengths in metres. A link's frame at angle 0 is `rotation`, `position` in the frame of the link before it; the
    first link's is in the world.
    """

    positions: Float[Tensor, "links 3"]
    rotations: Float[Tensor, "links 3 3"]
    axes: Float[Tensor, "links 3"]
    """Unit vectors of the hinges, in their links' frames."""
    tip: Float[Tensor, "3"]

    def forward(self, angles: Float[Tensor, "*batch links"]) -> Float[Tensor, "*batch 3"]:
        """World position of the tip at joint angles in radians, in metres."""
        turns = rotation(self.axes, angles)
        point = self.tip.expand(*angles.shape[:-1], 3)
        for link in reversed(range(len(self.axes))):
            turned = (turns[..., link, :, :] @ point[..., None])[..., 0]
            point = self.positions[link] + turned @ self.rotations[link].T
        return point


def rotation(axes: Float[Tensor, "*axes 3"], angles: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch 3 3"]:
    """Rotation by `angles` (radians) about unit `axes`, which broadcast: 1 + sin θ K + (1 − cos θ) K² (Rodrigues).

    K v = axis × v.
    """
    x, y, z = axes.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))
    sine, cosine = angles.sin()[..., None, None], angles.cos()[..., None, None]
    return torch.eye(3, dtype=axes.dtype, device=axes.device) + sine * cross + (1.0 - cosine) * (cross @ cross)
