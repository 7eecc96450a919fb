"""Differentiable forward kinematics of a serial chain of hinges: a fingertip's place as a function of joint angles."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


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
