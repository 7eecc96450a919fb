"""The ALOHA tasks as data: model file, object start poses, and how far a state has come (arXiv 2304.13705).

Both tasks count progress in stages 0 to 4, read from which geoms touch; the reward is the stage.
"""

# mujoco is a binary module without stubs:
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import mujoco
import numpy as np

from robostack.common.extras import require_extra

if mujoco.get_mju_user_warning() is None:  # MuJoCo's own way leaves a MUJOCO_LOG.TXT in whatever folder is current
    mujoco.set_mju_user_warning(logging.getLogger("mujoco").warning)

# One finger of each arm, as in gym_aloha: a touch of the other one alone does not count.
LEFT_FINGER = ("vx300s_left/10_left_gripper_finger",)
RIGHT_FINGER = ("vx300s_right/10_right_gripper_finger",)
TABLE = ("table",)
SOCKET_WALLS = ("socket-1", "socket-2", "socket-3", "socket-4")


@dataclass(frozen=True)
class ObjectStart:
    """Where an object may lie at the start, drawn uniformly; its orientation is the identity.

    `low` and `high` are corners (x, y, z) in metres, world frame.
    """

    name: str
    low: tuple[float, float, float]
    high: tuple[float, float, float]


@dataclass(frozen=True)
class Touch:
    """True when any geom of `first` is in contact with any geom of `second`."""

    first: tuple[str, ...]
    second: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """One manipulation task."""

    name: str
    """As in gym_aloha."""
    text: str
    """The instruction for language-conditioned policies."""
    model_file: str
    """MuJoCo model in gym_aloha's assets."""
    objects: tuple[ObjectStart, ...]
    """The free objects, in the order of their poses in qpos[16:]."""
    touches: tuple[Touch, ...]
    """The contacts that the stage depends on."""
    stage: Callable[..., int]
    """The stage (0 to 4) as a function of those contacts, one bool each."""
    stage_names: tuple[str, ...]
    """What has happened at each stage, for people."""


def transfer_cube_stage(right: bool, left: bool, on_table: bool) -> int:
    """1: the right arm touches the cube, 2: lifts it; 3: the left arm touches it, 4: has it in the air."""
    if left:
        return 3 if on_table else 4
    if right:
        return 1 if on_table else 2
    return 0


def insertion_stage(right: bool, left: bool, peg_on_table: bool, socket_on_table: bool, met: bool, pin: bool) -> int:
    """1: each arm touches its object, 2: lifts it; 3: peg and socket meet in the air, 4: the peg reaches the pin."""
    if pin:
        return 4
    in_air = not (peg_on_table or socket_on_table)
    if met and in_air:
        return 3
    if left and right:
        return 2 if in_air else 1
    return 0


TASKS: Mapping[str, Task] = MappingProxyType(
    {
        task.name: task
        for task in (
            Task(
                name="transfer_cube",
                text="Pick up the cube with the right arm and transfer it to the left arm.",
                model_file="bimanual_viperx_transfer_cube.xml",
                objects=(ObjectStart("cube", (0.0, 0.4, 0.05), (0.2, 0.6, 0.05)),),
                touches=(
                    Touch(("red_box",), RIGHT_FINGER),
                    Touch(("red_box",), LEFT_FINGER),
                    Touch(("red_box",), TABLE),
                ),
                stage=transfer_cube_stage,
                stage_names=("nothing", "touched", "lifted", "touched by the left arm", "handed over"),
            ),
            Task(
                name="insertion",
                text="Insert the peg into the socket.",
                model_file="bimanual_viperx_insertion.xml",
                objects=(
                    ObjectStart("peg", (0.1, 0.4, 0.05), (0.2, 0.6, 0.05)),
                    ObjectStart("socket", (-0.2, 0.4, 0.05), (-0.1, 0.6, 0.05)),
                ),
                touches=(
                    Touch(("red_peg",), RIGHT_FINGER),
                    Touch(SOCKET_WALLS, LEFT_FINGER),
                    Touch(("red_peg",), TABLE),
                    Touch(SOCKET_WALLS, TABLE),
                    Touch(("red_peg",), SOCKET_WALLS),
                    Touch(("red_peg",), ("pin",)),
                ),
                stage=insertion_stage,
                stage_names=("nothing", "both touched", "both lifted", "met in the air", "inserted"),
            ),
        )
    }
)


def load_model(task: Task) -> mujoco.MjModel:
    """Compiles the task's MuJoCo model from the files that the gym_aloha package ships.

    The package is located, not imported: importing it would load dm_control. Raises MissingExtraError without it.
    """
    require_extra("gym_aloha", "aloha")
    spec = importlib.util.find_spec("gym_aloha")
    assert spec is not None and spec.origin is not None
    return mujoco.MjModel.from_xml_path(str(Path(spec.origin).parent / "assets" / task.model_file))


def sample_object_poses(task: Task, generator: np.random.Generator) -> np.ndarray:
    """Start poses of the task's objects: (7 · objects,) float64, each x, y, z in metres and w, x, y, z."""
    poses = [(*generator.uniform(start.low, start.high), 1.0, 0.0, 0.0, 0.0) for start in task.objects]
    return np.concatenate(poses)


class StageReader:
    """Reads the stage of a task from the contacts of a simulation state."""

    def __init__(self, task: Task, model: mujoco.MjModel) -> None:
        # Which touches two geoms in contact mean, as bits. Dictionaries, since a state has about seven contacts: numpy
        # takes three times as long for them.
        self._touch_bits: list[dict[int, int]] = [{} for _ in range(model.ngeom)]
        for bit, touch in enumerate(task.touches):
            for first in touch.first:
                for second in touch.second:
                    i, j = model.geom(first).id, model.geom(second).id
                    for one, other in ((i, j), (j, i)):
                        self._touch_bits[one][other] = self._touch_bits[one].get(other, 0) | 1 << bit
        count = len(task.touches)
        self._stages = tuple(task.stage(*(bool(bits >> bit & 1) for bit in range(count))) for bits in range(1 << count))

    def __call__(self, data: mujoco.MjData) -> int:
        """The stage, 0 to 4. The contacts must be those of the current positions (`mj_step1` has run)."""
        touches = 0
        for one, other in data.contact.geom.tolist():
            touches |= self._touch_bits[one].get(other, 0)
        return self._stages[touches]
