"""The ALOHA tasks as a Gymnasium environment, directly on MuJoCo.

The same states follow from the same controls as in the gym_aloha package, bit for bit (see the tests); what differs
is around the physics: proper seeding, truthful spaces, text, stages, and pictures only when somebody asks for them.
"""

# mujoco is a binary module without stubs:
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, SupportsIndex

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium import spaces

from robostack.envs.aloha.cameras import CAMERAS, Camera, image_key
from robostack.envs.aloha.rendering import QUALITIES, Preset, Renderer
from robostack.envs.aloha.tasks import TASKS, StageReader, Task, load_model, sample_object_poses

CONTROL_HZ = 50
PHYSICS_STEPS = 10  # of 2 ms in one control step

# ALOHA's gripper convention: left finger position in metres, 0 at the first value and 1 at the second.
GRIPPER_CLOSED, GRIPPER_OPEN = 0.01844, 0.05800
_SPAN = GRIPPER_OPEN - GRIPPER_CLOSED
GRIPPERS = (6, 13)  # in the 14 numbers of a state or an action

# qpos and ctrl hold 8 numbers per arm: six joints, left finger, right finger (which mirrors the left one).
_QPOS_OF_STATE = np.array([0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14])
_ACTION_OF_CTRL = np.array([0, 1, 2, 3, 4, 5, 6, 6, 7, 8, 9, 10, 11, 12, 13, 13])
_CTRL_SCALE = np.array([1, 1, 1, 1, 1, 1, _SPAN, -_SPAN] * 2)
_CTRL_OFFSET = np.array([0, 0, 0, 0, 0, 0, GRIPPER_CLOSED, -GRIPPER_CLOSED] * 2)
_STATE_SCALE = np.array([1, 1, 1, 1, 1, 1, _SPAN] * 2)
_STATE_OFFSET = np.array([0, 0, 0, 0, 0, 0, GRIPPER_CLOSED] * 2)

JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")
ARM_NAMES = tuple(f"{side}_{joint}" for side in ("left", "right") for joint in JOINTS)
ARM_UNITS = (*("rad",) * 6, "0 closed .. 1 open") * 2
POSE_NAMES, POSE_UNITS = ("x", "y", "z", "qw", "qx", "qy", "qz"), ("m", "m", "m", "1", "1", "1", "1")

START_QPOS = np.array([0.0, -0.96, 1.16, 0.0, -0.3, 0.0, 0.02239, -0.02239] * 2)


class AlohaEnv(gym.Env[dict[str, np.ndarray], np.ndarray]):
    """Two ViperX arms at a table, controlled at 50 Hz by joint targets.

    Observation (dict):
        observation.state: (14,) float32; left then right arm, each six joints in radians and the gripper, 0 closed
            and 1 open. Of a gripper the left finger is read.
        observation.environment_state: (7 · objects,) float32; x, y, z in metres and w, x, y, z of every object.
        observation.images.<camera>: (height, width, 3) uint8, for every camera asked for.
    Action: (14,) absolute targets, laid out like the state. Targets out of range are clipped by MuJoCo.
    Reward: the task's stage, 0 to 4. `info` has `task` (text), `stage`, `success` (stage 4 reached at this or an
        earlier step) and `diverged`. A success ends nothing: it can be lost again, and that is worth knowing.

    Targets that jump from one end of the action space to the other, as sampled ones do, can ask for more than the
    physics resolves in its steps of 2 ms. Numbers that become infinite end the episode: `terminated` and
    `info["diverged"]` are true, stage and reward are 0, `success` is false, and the observation is that before the
    step. Until the next reset every further step says the same.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": CONTROL_HZ}  # noqa: RUF012 (Gymnasium's own name)
    highest_stage: int = 4

    def __init__(
        self,
        task: str = "transfer_cube",
        cameras: Sequence[Camera] = (),
        object_poses: bool = True,
        render_mode: str | None = None,
        render_view: Camera | None = None,
        render_height: int = 480,
        render_width: int = 640,
        model: mujoco.MjModel | None = None,
    ) -> None:
        """Builds the simulation of a task in `TASKS`.

        `cameras` are rendered into every observation; `render_camera` gives single frames without that cost. With
        `object_poses` observations hold `observation.environment_state`. `render` shows `render_view`, by default the
        scene from the front. `model` is the task's, to share it with another environment; by default one is compiled.
        """
        if task not in TASKS:
            raise ValueError(f"unknown ALOHA task {task!r}: known are {', '.join(TASKS)}")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"expected render_mode None or 'rgb_array', got {render_mode!r}")
        if len({camera.name for camera in cameras}) < len(cameras):
            raise ValueError(f"expected cameras of different names, got {[camera.name for camera in cameras]}")
        self._task: Task = TASKS[task]
        self.task: str = self._task.text
        self.stage_names: tuple[str, ...] = self._task.stage_names
        self.robot = "aloha"
        self.feature_names, self.feature_units = _described(len(self._task.objects))
        self.cameras = tuple(cameras)
        self.render_mode = render_mode
        self._render_view = replace(render_view or CAMERAS["angle"], height=render_height, width=render_width)
        self._observe_objects = object_poses

        self.model = model or load_model(self._task)
        self.data = mujoco.MjData(self.model)
        self._read_stage = StageReader(self._task, self.model)
        self._renderers: dict[str, Renderer] = {}
        self._look_into_data()
        self.succeeded = False
        """The highest stage was reached, at the last step or an earlier one of the episode."""

        self.action_space = _action_space(self.model)
        self.observation_space = _observation_space(self._task, self.cameras, object_poses)

    def reset(
        self, *, seed: SupportsIndex | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Starts an episode at the start pose of the arms. `seed` fixes it; without, `np_random` goes on where it is.

        `options` may hold `object_poses`, the (7 · objects,) start poses to use instead of drawn ones. Raises
        ValueError for another option, or poses of another shape, not finite, or without a unit quaternion.
        """
        super().reset(seed=None if seed is None else operator.index(seed))  # Gymnasium takes no integers of numpy's
        options = dict(options or {})
        poses = options.pop("object_poses", None)
        if options:
            raise ValueError(f"unknown reset options {sorted(options)}: known is object_poses")
        poses = sample_object_poses(self._task, self.np_random) if poses is None else self._checked_poses(poses)

        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:16] = START_QPOS
        self.data.qpos[16:] = poses
        self.data.ctrl[:] = START_QPOS
        # As dm_control does after a reset: the controls must not act before the first step.
        flags = self.model.opt.disableflags
        try:
            self.model.opt.disableflags = flags | mujoco.mjtDisableBit.mjDSBL_ACTUATION
            mujoco.mj_forward(self.model, self.data)
        finally:
            self.model.opt.disableflags = flags

        self.succeeded = False
        return self.observe(), self._info(0, False)

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Advances 20 ms. Raises ValueError for an action of another shape or one that is not finite."""
        action = np.asarray(action, dtype=np.float64)
        if action.shape != (14,):
            raise ValueError(f"expected an action of shape (14,), got {action.shape}")
        if not math.isfinite(action @ action) and (bad := np.flatnonzero(~np.isfinite(action)).tolist()):
            raise ValueError(f"expected a finite action, got nan or inf in dimensions {bad}")
        self.command(controls(action))
        self.advance()
        stage, diverged = self.outcome()
        return self.observe(), float(stage), diverged, False, self._info(stage, diverged)

    # A step in its three parts, for whoever steps many environments: only `advance` takes long.

    def command(self, ctrl: np.ndarray) -> None:
        """Sets what the motors are told, (16,): see `controls`."""
        self._before[:] = self._qpos
        self._ctrl[:] = ctrl

    def advance(self) -> None:
        """20 ms of physics. MuJoCo releases the GIL meanwhile."""
        # A step is mj_step1 (positions, contacts) then mj_step2 (forces, integration). The first half of every
        # control step was done at the end of the one before, where the reward needed its contacts.
        mujoco.mj_step2(self.model, self.data)
        mujoco.mj_step(self.model, self.data, PHYSICS_STEPS - 1)
        mujoco.mj_step1(self.model, self.data)

    def outcome(self) -> tuple[int, bool]:
        """The stage that the step led to, and whether it diverged."""
        if np.count_nonzero(self._warnings):
            # MuJoCo has counted a warning and silently gone back to the model's own start pose.
            self._qpos[:] = self._before
            self.data.qvel[:] = 0
            mujoco.mj_forward(self.model, self.data)
            self.succeeded = False
            return 0, True
        stage = self._read_stage(self.data)
        self.succeeded |= stage == self.highest_stage
        return stage, False

    def observe(self) -> dict[str, np.ndarray]:
        """The observation of the current state."""
        observation = observed(self._qpos, self._observe_objects)
        for camera in self.cameras:
            observation[image_key(camera)] = self.render_camera(camera)
        return observation

    def render_camera(self, camera: Camera, preset: Preset = "fast") -> np.ndarray:
        """One frame of the current state, on demand: (height, width, 3) uint8.

        `fast` leaves out shadows and multisampling (ten times as fast in software); `pretty` is for people.
        """
        if preset not in QUALITIES:
            raise ValueError(f"unknown render preset {preset!r}: known are {', '.join(QUALITIES)}")
        if preset not in self._renderers:
            self._renderers[preset] = Renderer(self.model, QUALITIES[preset])
        return self._renderers[preset].render(self.data, camera)

    def render(self) -> np.ndarray | None:  # pyright: ignore[reportIncompatibleMethodOverride] (no frame lists)
        """The scene for people: (render_height, render_width, 3) uint8, or None without a render mode."""
        if self.render_mode is None:
            return None
        return self.render_camera(self._render_view, preset="pretty")

    def close(self) -> None:
        """Frees the OpenGL contexts."""
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()

    def __getstate__(self) -> dict[str, Any]:
        # OpenGL contexts belong to this process; views of `data` would become arrays of their own.
        left = {"_renderers": {}, "_qpos": None, "_ctrl": None, "_warnings": None}
        return self.__dict__ | left

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        self._look_into_data()

    def _look_into_data(self) -> None:
        """Views of MuJoCo's memory, which are slow to make."""
        self._qpos, self._ctrl = self.data.qpos, self.data.ctrl
        self._warnings = self.data.warning.number  # MuJoCo counts up in it
        self._before = self._qpos.copy()

    def _info(self, stage: int, diverged: bool) -> dict[str, Any]:
        return {"task": self.task, "stage": stage, "success": self.succeeded, "diverged": diverged}

    def _checked_poses(self, poses: Any) -> np.ndarray:
        poses = np.asarray(poses, dtype=np.float64)
        expected = (7 * len(self._task.objects),)
        if poses.shape != expected:
            raise ValueError(f"expected object_poses of shape {expected}, got {poses.shape}")
        # nan compares false, so this also catches poses that are not finite.
        norms = np.linalg.norm(poses.reshape(-1, 7)[:, 3:], axis=1)
        if not (np.isfinite(poses).all() and (np.abs(norms - 1) < 1e-3).all()):
            raise ValueError(f"expected finite object_poses with unit quaternions, got {poses.tolist()}")
        return poses


def controls(actions: np.ndarray) -> np.ndarray:
    """(..., 16) what MuJoCo's motors get for actions of shape (..., 14)."""
    return actions.take(_ACTION_OF_CTRL, axis=-1) * _CTRL_SCALE + _CTRL_OFFSET


def observed(qpos: np.ndarray, objects: bool) -> dict[str, np.ndarray]:
    """What is observed, without pictures, of joint positions (..., 16 + 7 · objects)."""
    state = (qpos.take(_QPOS_OF_STATE, axis=-1) - _STATE_OFFSET) / _STATE_SCALE
    observation = {"observation.state": state.astype(np.float32)}
    if objects:
        observation["observation.environment_state"] = qpos[..., 16:].astype(np.float32)
    return observation


def _described(objects: int) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    """Names and units of the entries of each feature but cameras."""
    arms = ("observation.state", "action")
    poses = tuple(f"object{i}_{name}" for i in range(objects) for name in POSE_NAMES)
    return (
        dict.fromkeys(arms, ARM_NAMES) | {"observation.environment_state": poses},
        dict.fromkeys(arms, ARM_UNITS) | {"observation.environment_state": POSE_UNITS * objects},
    )


def _action_space(model: mujoco.MjModel) -> spaces.Box:
    """What the motors can be told: joint ranges in radians, grippers from 0 (closed) to 1 (open)."""
    low, high = model.actuator_ctrlrange[_QPOS_OF_STATE].T.astype(np.float32)
    low[list(GRIPPERS)], high[list(GRIPPERS)] = 0.0, 1.0
    return spaces.Box(low, high, dtype=np.float32)


def _observation_space(task: Task, cameras: tuple[Camera, ...], objects: bool) -> spaces.Space[Any]:
    # Joint limits are springs in MuJoCo: random targets were seen to force a wrist 12 rad past its own. An object may
    # be thrown anywhere. Bounded is only what cannot be otherwise.
    parts: dict[str, spaces.Space[Any]] = {"observation.state": spaces.Box(-np.inf, np.inf, (14,), dtype=np.float32)}
    if objects:
        bound = np.array([np.inf] * 3 + [1.0] * 4, dtype=np.float32)
        bound = np.tile(bound, len(task.objects))
        parts["observation.environment_state"] = spaces.Box(-bound, bound, dtype=np.float32)
    parts |= {image_key(camera): image_space(camera) for camera in cameras}
    return spaces.Dict(parts)


def image_space(camera: Camera) -> spaces.Box:
    """What its frames are: (height, width, 3) uint8."""
    return spaces.Box(0, 255, (camera.height, camera.width, 3), dtype=np.uint8)
