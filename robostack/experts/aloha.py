"""Scripted experts for the ALOHA tasks, on the joint-controlled environment.

An expert looks once at where the objects lie and plans the whole episode: fingertip waypoints for both arms, knots
every 10 control steps between them, inverse kinematics at the knots (each from the one before, so that an arm stays on
one branch), and a smooth curve through the joint angles. Waypoints and their times vary from episode to episode, but
little: a policy sees joints and objects, no clock, and has to tell from them what comes next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np

from robostack.envs.aloha.cameras import image_key, parse_camera
from robostack.envs.aloha.env import GRIPPERS, START_QPOS, AlohaEnv
from robostack.envs.aloha.kinematics import ArmKinematics, Pose, Side
from robostack.envs.gl import require_gl
from robostack.experts import Asked, Look, Shapes

EPISODE_STEPS = 400
KNOT_STEPS = 10
OPEN, CLOSED = 1.0, 0.0  # a closed command on an object wider than nothing is what grips it
START_GRIPPER = 0.1
PICK_PITCH = np.radians(75)  # nearly straight down: at 60 degrees the wrist is nearly straight, where it flips
_BASES: dict[Side, np.ndarray] = {"left": np.array([-0.469, 0.5]), "right": np.array([0.469, 0.5])}  # x, y; metres
DISTURBANCE_STEPS = 50  # a disturbance changes over about a second: the hand drifts, it does not shake
# Where the arms end does not vary: a policy holds by asking for the pose that it learned. Had every demonstration a
# meeting place of its own, all poses near would be as good, and small errors would add up to a drift.
MEETING_PLACE = np.array([0.0, 0.5, 0.20])


@dataclass(frozen=True)
class Waypoint:
    """Where a fingertip is to be at a control step."""

    step: int
    """Control step at which it is reached."""
    position: np.ndarray
    """(3,) metres, world frame."""
    pitch: float
    """Radians, how far the gripper points down."""
    alignment: float
    """Heading of the gripper; 0 keeps it in the plane of the arm, where the wrist needs no twist, 1 turns it parallel
    to the world's x axis, as the objects lie."""
    roll: float
    """Radians about the gripper's own axis; 0 holds things between their sides, π/2 between top and bottom."""
    gripper: float
    """The command, 0 closed to 1 open."""


Plan = Callable[[np.ndarray, np.random.Generator], dict[Side, list[Waypoint]]]
"""Waypoints of both arms from the start poses of the objects (7 · objects,) and a source of variation."""


class AlohaExpert:
    """Plays a plan; noise disturbs the arms, in radians, and not the grippers."""

    plans = True

    def __init__(self, plan: Plan, asked: Asked) -> None:
        """Raises ValueError for observations that are asked for or an unknown camera, RuntimeError without OpenGL."""
        if asked.observe:
            raise ValueError("observe goes with --expert: a scripted expert records all, and --cameras")
        self._plan, self._asked = plan, asked
        self._actions: Iterator[np.ndarray] = iter(())
        cameras = [parse_camera(text) for text in asked.cameras]
        if cameras:
            require_gl()
        self.records: Shapes = {
            **{"observation.state": (), "observation.environment_state": ()},
            **{image_key(camera): (camera.height, camera.width) for camera in cameras},
        }

    def begin(self, worlds: Any, seeds: Sequence[int]) -> None:
        plans = [self._disturbed(env, seed) for env, seed in zip(worlds.envs, seeds, strict=True)]
        self._actions = iter(np.stack(plans, axis=1))

    def act(self, look: Look) -> np.ndarray:
        return next(self._actions)

    def plan_episode(self, env: gym.Env, seed: int) -> np.ndarray:
        """The (400, 14) float32 actions for the episode of `seed`, to which `env` has just been reset, undisturbed."""
        aloha = env.unwrapped
        if not isinstance(aloha, AlohaEnv):
            raise TypeError(f"expected an AlohaEnv, got {type(aloha).__name__}")
        # A stream of its own, so that the start of an episode does not depend on who plays it.
        waypoints = self._plan(aloha.data.qpos[16:].copy(), np.random.default_rng([seed, 1]))
        arms = [_arm_actions(ArmKinematics(aloha.model, side), side, waypoints[side]) for side in ("left", "right")]
        return np.concatenate(arms, axis=1).astype(np.float32)

    def _disturbed(self, env: gym.Env, seed: int) -> np.ndarray:
        actions, levels = self.plan_episode(env, seed), self._asked.noise
        if not levels or not (level := levels[(seed - self._asked.first) % len(levels)]):
            return actions
        arms = np.setdiff1d(np.arange(actions.shape[1]), GRIPPERS)
        actions[:, arms] += level * smooth_disturbance(len(actions), len(arms), np.random.default_rng([seed, 2]))
        assert isinstance(env.action_space, gym.spaces.Box)
        return actions.clip(env.action_space.low, env.action_space.high)


def smooth_disturbance(steps: int, dimensions: int, generator: np.random.Generator) -> np.ndarray:
    """Gaussian processes (steps, dimensions) of deviation 1 and, for moments Δ steps apart, covariance exp(−Δ² / 4w²),
    w = DISTURBANCE_STEPS. They come up from 0 in the first w steps, so that an episode starts without a jump.
    """
    w = DISTURBANCE_STEPS
    kernel = np.exp(-0.5 * (np.arange(-3 * w, 3 * w + 1) / w) ** 2)
    kernel /= np.linalg.norm(kernel)
    white = generator.standard_normal((steps + len(kernel) - 1, dimensions))
    smooth = np.stack([np.convolve(column, kernel, mode="valid") for column in white.T], axis=1)
    return smooth * np.minimum(np.arange(steps) / w, 1.0)[:, None]


def plan_transfer_cube(objects: np.ndarray, generator: np.random.Generator) -> dict[Side, list[Waypoint]]:
    """The right arm lifts the cube and holds it out; the left arm takes it from the other side, above and below."""
    cube = np.array([*objects[:2], 0.02])
    above, over, grasp, closed, lifted, offered, met, left_closed, released, apart = _times(
        generator, (55, 25, 18, 18, 25, 45, 30, 18, 14, 40)
    )
    meet = MEETING_PLACE + np.array([0, 0, 0.05])
    hover = cube + np.array([0, 0, 0.10]) + generator.uniform(-0.01, 0.01, 3)
    pick = cube + generator.uniform(-0.003, 0.003, 3)
    take = meet + np.array([0.008, 0, 0])  # a little deeper than the middle: a firmer grip
    wait = meet + np.array([-0.10, 0, 0]) + generator.uniform(-0.01, 0.01, 3)

    def right(step: int, position: np.ndarray, gripper: float, alignment: float = 1.0) -> Waypoint:
        return Waypoint(step, position, PICK_PITCH, alignment, 0.0, gripper)

    def left(step: int, position: np.ndarray, gripper: float) -> Waypoint:
        return Waypoint(step, position, 0.0, 0.0, np.pi / 2, gripper)

    return {
        "right": [
            right(above, hover, OPEN, alignment=0.0),
            right(over, pick + np.array([0, 0, 0.05]), OPEN),  # from here straight down
            right(grasp, pick, OPEN),
            right(closed, pick, CLOSED),
            right(lifted, pick + np.array([0, 0, 0.12]), CLOSED),
            right(offered, meet, CLOSED),
            right(left_closed, meet, CLOSED),
            right(released, meet, OPEN),
            right(apart, meet + np.array([0.12, 0, 0.06]), OPEN),
        ],
        "left": [
            left(grasp, wait, OPEN),
            left(offered, wait, OPEN),  # between the right arm's fingers is room only once they stand still
            left(met, take, OPEN),
            left(left_closed, take, CLOSED),
            left(released, take, CLOSED),
            left(apart, meet + np.array([-0.08, 0, 0]), CLOSED),
        ],
    }


def plan_insertion(objects: np.ndarray, generator: np.random.Generator) -> dict[Side, list[Waypoint]]:
    """The right arm takes the peg, the left arm the socket; they meet in the air and push together."""
    above, over, grasp, closed, lifted, facing, inserted = _times(generator, (55, 25, 18, 18, 25, 45, 50))
    meet = MEETING_PLACE

    def arm(lying: np.ndarray, grip: np.ndarray, outward: np.ndarray) -> list[Waypoint]:
        """Takes an object at `grip` from its centre, so that its centre comes to where the two meet."""
        grip = grip + generator.uniform(-1, 1, 3) * [0.001, 0.001, 0.002]
        pick = lying + grip
        hover = pick + np.array([0, 0, 0.10]) + generator.uniform(-0.01, 0.01, 3)
        path = (
            (above, hover, 0.0, OPEN),
            (over, pick + np.array([0, 0, 0.05]), 1.0, OPEN),  # from here straight down: 13 mm are free on each side
            (grasp, pick, 1.0, OPEN),
            (closed, pick, 1.0, CLOSED),
            (lifted, pick + np.array([0, 0, 0.12]), 1.0, CLOSED),
            (facing, meet + grip + 0.10 * outward, 1.0, CLOSED),
            # The peg meets the pin at 0.05. A tremor of the hands would part them again, so both go on pressing,
            # slowly: the peg slides through its fingers meanwhile, and after 3 cm would be out of them.
            (inserted, meet + grip + 0.048 * outward, 1.0, CLOSED),
            (EPISODE_STEPS, meet + grip + 0.039 * outward, 1.0, CLOSED),
        )
        return [
            Waypoint(step, position, PICK_PITCH, alignment, 0.0, gripper) for step, position, alignment, gripper in path
        ]

    peg, socket = np.array([*objects[:2], 0.01]), np.array([*objects[7:9], 0.022])
    return {
        # The peg is thin: between the tips it holds, 1 cm deeper in the hand the fingers close without it.
        "right": arm(peg, grip=np.array([0, 0, 0.018]), outward=np.array([1, 0, 0])),
        "left": arm(socket, grip=np.array([0, 0, -0.002]), outward=np.array([-1, 0, 0])),
    }


transfer_cube, insertion = partial(AlohaExpert, plan_transfer_cube), partial(AlohaExpert, plan_insertion)


def _times(generator: np.random.Generator, durations: Sequence[int]) -> list[int]:
    """The control steps at which phases of about these durations end, each up to a tenth shorter or longer."""
    varied = np.array(durations) * generator.uniform(0.9, 1.1, len(durations))
    return np.cumsum(varied).round().astype(int).tolist()


def _arm_actions(arm: ArmKinematics, side: Side, waypoints: list[Waypoint]) -> np.ndarray:
    """(400, 7): joint targets and gripper commands that pass the waypoints, and then hold the last one."""
    joints = START_QPOS[:6]
    start = arm.forward(joints)
    pitch = float(np.arcsin(-start.rotation[2, 0]))
    passed = Waypoint(0, start.position, pitch, alignment=0.0, roll=0.0, gripper=START_GRIPPER)
    steps, knots = [0], [np.append(joints, START_GRIPPER)]
    for waypoint in waypoints:
        count = max(1, round((waypoint.step - passed.step) / KNOT_STEPS))
        for fraction in np.arange(1, count + 1) / count:
            between = _interpolate(passed, waypoint, fraction)
            joints = arm.inverse(_pose(between, side), start=joints)
            steps.append(between.step)
            knots.append(np.append(joints, between.gripper))
        passed = waypoint
    return monotone_cubic(np.array(steps), np.array(knots), np.arange(1, EPISODE_STEPS + 1))


def _interpolate(first: Waypoint, last: Waypoint, fraction: float) -> Waypoint:
    """The waypoint between two; the hand sets off and arrives gently, the gripper moves evenly."""
    eased = fraction**2 * (3 - 2 * fraction)
    return replace(
        last,
        step=round(first.step + fraction * (last.step - first.step)),
        position=first.position + eased * (last.position - first.position),
        pitch=first.pitch + eased * (last.pitch - first.pitch),
        alignment=first.alignment + eased * (last.alignment - first.alignment),
        roll=first.roll + eased * (last.roll - first.roll),
        gripper=first.gripper + fraction * (last.gripper - first.gripper),
    )


def _pose(waypoint: Waypoint, side: Side) -> Pose:
    """The fingertip pose: heading about the vertical, then down by the pitch, then about the gripper's own axis."""
    reach = waypoint.position[:2] - _BASES[side]
    facing = 0.0 if side == "left" else np.pi  # the arms face each other
    outward = np.array([np.cos(facing), np.sin(facing)])
    in_plane = np.arctan2(outward[0] * reach[1] - outward[1] * reach[0], outward @ reach)
    heading, pitch, roll = facing + (1 - waypoint.alignment) * in_plane, waypoint.pitch, waypoint.roll
    about_z = np.array([[np.cos(heading), -np.sin(heading), 0], [np.sin(heading), np.cos(heading), 0], [0, 0, 1]])
    about_y = np.array([[np.cos(pitch), 0, np.sin(pitch)], [0, 1, 0], [-np.sin(pitch), 0, np.cos(pitch)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(roll), -np.sin(roll)], [0, np.sin(roll), np.cos(roll)]])
    return Pose(waypoint.position, about_z @ about_y @ about_x)


def monotone_cubic(times: np.ndarray, values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Smooth curves through knots that never overshoot them (Fritsch & Carlson 1980); constant outside.

    From increasing times (knots,), values (knots, dimensions) and the times to evaluate at (points,) to
    (points, dimensions).
    """
    width = np.diff(times)[:, None]
    secant = np.diff(values, axis=0) / width
    # Slope at an inner knot: the harmonic mean of the secants on both sides, or 0 where they change direction.
    product, total = secant[:-1] * secant[1:], secant[:-1] + secant[1:]
    inner = np.where(product > 0, 2 * product / np.where(product > 0, total, 1), 0.0)
    slope = np.concatenate([np.zeros_like(values[:1]), inner, np.zeros_like(values[:1])])
    i = np.clip(np.searchsorted(times, at, side="right") - 1, 0, len(width) - 1)
    h = width[i]
    s = np.clip((at[:, None] - times[i, None]) / h, 0, 1)
    return (
        values[i] * (1 + 2 * s) * (1 - s) ** 2
        + values[i + 1] * s**2 * (3 - 2 * s)
        + h * slope[i] * s * (1 - s) ** 2
        - h * slope[i + 1] * s**2 * (1 - s)
    )
