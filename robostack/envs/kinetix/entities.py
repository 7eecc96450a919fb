"""Entities as one matrix of tokens, whose columns are the same in worlds of every size.

Rows: circles, polygons, joints (each twice, once from either side), thrusters; a row of zeros is an empty place.
Columns:
    0        1 where there is something
    1:5      which kind: circle, polygon, joint, thruster
    5:32     the package's features of that kind, padded with zeros to the 27 of a polygon
    32:38    a shape's own number, or that of the shape a joint comes from or a thruster sits on: six bits, lowest first
    38:44    the number of the shape a joint leads to
    44:48    of the shape in 32:38, for joints and thrusters: x, y in metres, sine and cosine of its rotation
    48:52    the same of the shape in 38:44
Polygons are numbered before circles, as in the package. Of its observation only the attention masks are left out.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

KINDS = ("circle", "polygon", "joint", "thruster")
_PADDED = 27
_BITS = 6  # worlds of up to 64 shapes
_POSE = np.array([0, 1, 12, 13])  # in the package's features of a shape


def entity_tokens(seen: Any) -> Array:
    """(tokens, 52) float32 of the package's EntityObservation."""
    polygons, circles = len(seen.polygons), len(seen.circles)
    poses = jnp.concatenate([seen.polygons[:, _POSE], seen.circles[:, _POSE]])
    own = jnp.arange(polygons + circles)

    def rows(kind: str, features: Array, present: Array, first: Array, second: Array | None, posed: bool) -> Array:
        count = len(features)
        kind_code = jax.nn.one_hot(jnp.full(count, KINDS.index(kind)), len(KINDS))
        nothing = jnp.zeros((count, _BITS)), jnp.zeros((count, len(_POSE)))
        second_bits, second_pose = nothing if second is None else (_bits(second), poses[second])
        first_pose = poses[first] if posed else nothing[1]
        columns = [
            jnp.ones((count, 1)),
            kind_code,
            jnp.pad(features, ((0, 0), (0, _PADDED - features.shape[1]))),
            _bits(first),
            second_bits,
            first_pose,
            second_pose,
        ]
        return jnp.where(present[:, None], jnp.concatenate(columns, axis=1), 0.0)

    tokens = [
        rows("circle", seen.circles, seen.circle_mask, own[polygons:], None, posed=False),
        rows("polygon", seen.polygons, seen.polygon_mask, own[:polygons], None, posed=False),
        rows("joint", seen.joints, seen.joint_mask, seen.joint_indexes[:, 0], seen.joint_indexes[:, 1], posed=True),
        rows("thruster", seen.thrusters, seen.thruster_mask, seen.thruster_indexes, None, posed=True),
    ]
    return jnp.nan_to_num(jnp.float32(jnp.concatenate(tokens)))


def _bits(numbers: Array) -> Array:
    return jnp.float32((numbers[:, None] >> jnp.arange(_BITS)) & 1)
