"""Joint angles for a fingertip pose of an ALOHA arm, by damped least squares.

Each iteration solves Δq = Jᵀ (J Jᵀ + λ² I)⁻¹ e for the pose error e = (position, rotation) (Wampler 1986). The damping
λ keeps steps small near singular poses. Starting from the last answer makes successive ones a continuous branch.
"""

# mujoco is a binary module without stubs:
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import mujoco
import numpy as np

Side = Literal["left", "right"]

FINGERTIP = np.array([0.135, 0.0, 0.0])  # where the fingers hold, in the frame of gripper_link, metres
_JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")


@dataclass(frozen=True)
class Pose:
    """A fingertip pose in the world frame."""

    position: np.ndarray
    """(3,) metres."""
    rotation: np.ndarray
    """(3, 3); x points out of the gripper, the fingers move along y."""


@dataclass(frozen=True)
class Links:
    """The six links of an arm, from the base on, each turned by a hinge at its origin."""

    positions: np.ndarray
    """(6, 3) metres, in the frame of the link before at its angle 0; the first in the world frame."""
    rotations: np.ndarray
    """(6, 3, 3), likewise."""
    axes: np.ndarray
    """(6, 3) of the hinges, in their links' frames. The fingertip is at `FINGERTIP` in the last."""


class ArmKinematics:
    """Forward and inverse kinematics of one arm; does not touch any simulation's state."""

    def __init__(self, model: mujoco.MjModel, side: Side) -> None:
        self._model = model
        self._data = mujoco.MjData(model)
        joints = [model.joint(f"vx300s_{side}/{name}") for name in _JOINTS]
        self._qpos = np.array([joint.qposadr[0] for joint in joints])
        self._dofs = np.array([joint.dofadr[0] for joint in joints])
        self._low, self._high = np.array([joint.range for joint in joints]).T
        self._gripper = model.body(f"vx300s_{side}/gripper_link").id
        self._jacobian = np.zeros((6, model.nv))

    def links(self) -> Links:
        """The arm as a chain of hinges, to compute its kinematics elsewhere. Raises ValueError where a hinge of the
        model is off its link's origin."""
        joints = [self._model.jnt_dofadr.tolist().index(dof) for dof in self._dofs]
        if np.abs(self._model.jnt_pos[joints]).max() > 0.0:
            raise ValueError("expected hinges at their links' origins, got a model with others")
        self._data.qpos[self._qpos] = self._model.qpos0[self._qpos]
        mujoco.mj_kinematics(self._model, self._data)
        bodies = self._model.jnt_bodyid[joints]
        places = np.concatenate([np.zeros((1, 3)), self._data.xpos[bodies]])
        frames = np.concatenate([np.eye(3)[None], self._data.xmat[bodies].reshape(-1, 3, 3)])
        back = frames[:-1].transpose(0, 2, 1)
        return Links(
            positions=(back @ np.diff(places, axis=0)[..., None])[..., 0],
            rotations=back @ frames[1:],
            axes=self._model.jnt_axis[joints].copy(),
        )

    def forward(self, joints: np.ndarray) -> Pose:
        """The fingertip pose at six joint angles (radians)."""
        self._data.qpos[self._qpos] = joints
        mujoco.mj_kinematics(self._model, self._data)
        rotation = self._data.xmat[self._gripper].reshape(3, 3).copy()
        return Pose(self._data.xpos[self._gripper] + rotation @ FINGERTIP, rotation)

    def inverse(self, target: Pose, start: np.ndarray, tolerance: float = 1e-4, iterations: int = 100) -> np.ndarray:
        """Six joint angles (radians) within their limits that reach `target`, searched from the (6,) angles `start`.

        The answer lies on the branch of `start` if it is near. Errors up to `tolerance`, in metres and radians, count
        as reached. Raises ValueError where that takes more than `iterations`.
        """
        joints = np.array(start, dtype=np.float64)
        for _ in range(iterations):
            error = self._error(target, joints)
            if np.abs(error).max() < tolerance:
                return joints
            jacobian = self._fingertip_jacobian()
            step = jacobian.T @ np.linalg.solve(jacobian @ jacobian.T + 1e-4 * np.eye(6), error)
            joints = np.clip(joints + np.clip(step, -0.3, 0.3), self._low, self._high)
        error = np.abs(self._error(target, joints))
        raise ValueError(
            f"expected a reachable fingertip pose, got {np.round(target.position, 3).tolist()} m: after {iterations} "
            f"iterations {error[:3].max():.4f} m and {error[3:].max():.4f} rad are left"
        )

    def _error(self, target: Pose, joints: np.ndarray) -> np.ndarray:
        """(6,): position error in metres, then rotation error as a rotation vector in radians, world frame."""
        pose = self.forward(joints)
        quaternion, rotation = np.empty(4), np.empty(3)
        mujoco.mju_mat2Quat(quaternion, (target.rotation @ pose.rotation.T).ravel())
        mujoco.mju_quat2Vel(rotation, quaternion, 1.0)
        return np.concatenate([target.position - pose.position, rotation])

    def _fingertip_jacobian(self) -> np.ndarray:
        """(6, 6) at the joints last given to `forward`."""
        mujoco.mj_comPos(self._model, self._data)
        rotation = self._data.xmat[self._gripper].reshape(3, 3)
        point = self._data.xpos[self._gripper] + rotation @ FINGERTIP
        mujoco.mj_jac(self._model, self._data, self._jacobian[:3], self._jacobian[3:], point, self._gripper)
        return self._jacobian[:, self._dofs]
