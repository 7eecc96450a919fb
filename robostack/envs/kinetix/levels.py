"""Levels: those that ship with kinetix, your own files, and random ones.

A level is a start state and the sizes and constants of its world. The package's own loader compiles as it reads
(5 s per level); this one reads the same file into the same numbers with numpy, in milliseconds.
"""

from __future__ import annotations

import difflib
import importlib.util
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from robostack.common.extras import require_extra
from robostack.common.files import read_json
from robostack.common.text import one_line

SIZES = ("s", "m", "l")
"""How many bodies a world has: see `RANDOM_WORLDS`."""

RANDOM_WORLDS: Mapping[str, Mapping[str, int]] = {
    "s": {"num_polygons": 5, "num_circles": 2, "num_joints": 1, "num_thrusters": 1},
    "m": {"num_polygons": 6, "num_circles": 3, "num_joints": 2, "num_thrusters": 2},
    "l": {"num_polygons": 12, "num_circles": 4, "num_joints": 6, "num_thrusters": 2},
}
"""The sizes of the shipped levels; four of the polygons are the floor, the walls and the ceiling."""

MOTORS, THRUSTERS = 4, 2  # numbers of an action, in this order
LARGEST_FILE = 16 << 20  # bytes; the largest shipped level has 52 kB
BOUNDS: Mapping[str, tuple[float, float]] = {
    "num_polygons": (1, 48),  # with the circles up to 64, which is what six bits of an entity can number
    "num_circles": (0, 16),
    "num_joints": (0, 64),
    "num_thrusters": (0, 64),
    "num_solver_iterations": (1, 100),
    "solver_batch_size": (1, 1024),
    "frame_skip": (1, 100),
    "dt": (1e-6, 1),
    "pixels_per_unit": (1, 1000),
}
"""What parameters of a file may be, so that a step is computed in memory and time that there are; others 0 to 1e9."""
ROLES = 4  # none, green, blue, red


@dataclass(frozen=True, eq=False)
class Level:
    """Where an episode starts, and in what world.

    `state` is a kinetix EnvState of numpy arrays in the very types that a step returns: with others, the second step
    would be compiled once more.
    """

    name: str
    state: Any
    static_params: Any  # StaticEnvParams
    params: Any  # EnvParams

    @property
    def task(self) -> str:
        """What to do, in words: the same in all levels, as policies know no words that they were not trained on."""
        return "Make the green shape touch the blue shape, and no red one."


def level_names() -> list[str]:
    """Every level that ships with kinetix, e.g. "s/h6_unicycle_right"; none where it is not installed.

    Only looks at file names: neither jax nor kinetix is imported.
    """
    folder = _shipped_folder()
    if folder is None:
        return []
    return [f"{size}/{path.stem}" for size in SIZES for path in sorted((folder / size).glob("*.json"))]


def load_level(name: str) -> Level:
    """A shipped level ("s/h6_unicycle_right"), a random one ("random/m/7": size, seed) or a file (anything in .json).

    Raises ValueError where there is no such level or its file is not one, MissingExtraError without kinetix.
    """
    require_extra("kinetix", "kinetix")
    if drawn := re.fullmatch(r"random/(\w+)/(\d{1,30})", name):
        return random_level(drawn[1], int(drawn[2]))
    if name.endswith(".json"):
        return _read_level(Path(name), Path(name).stem)
    if name not in (names := level_names()):
        # Often only the size or the number in front is wrong.
        endings = {re.sub(r"^\w/(h\d+_)?", "", known): known for known in names}
        near = difflib.get_close_matches(name, [*names, *endings], n=1)
        hint = f": did you mean {endings.get(near[0], near[0])!r}?" if near else ""
        raise ValueError(f"unknown Kinetix level {name!r}{hint}")
    folder = _shipped_folder()
    assert folder is not None
    return _read_level(folder / f"{name}.json", name)


def random_level(size: str, seed: int) -> Level:
    """A level from the package's own generator: the same seed gives the same level. Nobody knows if it can be solved.

    The first of a size takes as long as compiling does: some 25 s, or 12 s from the compile cache. Raises ValueError
    for an unknown size or a seed that does not fit 32 bits.
    """
    from robostack.envs.kinetix import package

    if size not in RANDOM_WORLDS:
        raise ValueError(f"unknown size {size!r} of a random level: known are {', '.join(RANDOM_WORLDS)}")
    if not 0 <= seed < 2**32:
        raise ValueError(f"expected a random level's number from 0 to {2**32 - 1}, got {reprlib.repr(seed)}")
    sizes: Any = RANDOM_WORLDS[size]
    static_params = package.StaticEnvParams(frame_skip=2, **sizes)
    drawn = package.draw_start(seed, static_params)
    state = package.jax.tree.map(lambda leaf, like: np.asarray(leaf, like.dtype), drawn, _empty_state(static_params))
    return Level(f"random/{size}/{seed}", state, static_params, package.EnvParams())


@cache
def _shipped_folder() -> Path | None:
    spec = importlib.util.find_spec("kinetix")  # of a top-level package: looked for, not imported
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "levels"


def _read_level(path: Path, name: str) -> Level:
    try:
        document = read_json(path, LARGEST_FILE)
    except FileNotFoundError:
        raise ValueError(f"level file {path} does not exist") from None
    except OSError as error:
        raise ValueError(f"level file {path} cannot be read: {one_line(error)}") from None
    except ValueError as error:
        raise ValueError(f"level file {one_line(error)}") from None
    try:
        return _parse(document, name)
    except _Malformed as error:
        raise ValueError(f"level file {path}: {error}") from None


class _Malformed(Exception):
    """What is wrong in a level file, and where."""


def _parse(document: Any, name: str) -> Level:
    from robostack.envs.kinetix import package

    world = _at(document, "env_state", "")
    static_params = _parameters(_at(document, "static_env_params", ""), package.StaticEnvParams())
    params = _parameters(_at(document, "env_params", ""), package.EnvParams())
    params = params.replace(max_timesteps=package.EnvParams().max_timesteps)
    for key, expected in (("num_motor_bindings", MOTORS), ("num_thruster_bindings", THRUSTERS)):
        if (found := getattr(static_params, key)) != expected:
            raise _Malformed(f"expected static_env_params.{key} {expected}, got {found}")
    if static_params.max_polygon_vertices != 4:
        raise _Malformed(f"expected polygons of up to 4 vertices, got {static_params.max_polygon_vertices}")
    if not 1 <= static_params.num_static_fixated_polys <= static_params.num_polygons:
        raise _Malformed("static_env_params.num_static_fixated_polys is not between 1 and num_polygons")
    lists = {kind: _at(world, kind, "env_state.") for kind in ("polygon", "circle", "joint", "thruster")}
    for kind, entries in lists.items():
        if not isinstance(entries, list) or len(entries) != getattr(static_params, f"num_{kind}s"):
            count = getattr(static_params, f"num_{kind}s")
            raise _Malformed(f"expected env_state.{kind} a list of {count} entries (static_env_params.num_{kind}s)")

    empty = _empty_state(static_params)
    parts: dict[str, Any] = {}
    for kind in ("polygon", "circle"):
        parts[kind] = _batch(lists[kind], getattr(empty, kind), f"env_state.{kind}")
        parts[f"{kind}_shape_roles"] = _column(lists[kind], "role", np.int32, f"env_state.{kind}", below=ROLES)
        parts[f"{kind}_densities"] = _column(lists[kind], "density", np.float32, f"env_state.{kind}")
    shapes = static_params.num_polygons + static_params.num_circles
    for kind, binding, controls, links in (
        ("joint", "motor_binding", MOTORS, ("a_index", "b_index")),
        ("thruster", "thruster_binding", THRUSTERS, ("object_index",)),
    ):
        parts[kind] = _batch(lists[kind], getattr(empty, kind), f"env_state.{kind}")
        parts[f"{binding}s"] = _column(lists[kind], binding, np.int32, f"env_state.{kind}", below=controls)
        for link in links:
            _column(lists[kind], link, np.int32, f"env_state.{kind}", below=shapes)
    for kind in ("acc_rr_manifolds", "acc_cr_manifolds", "acc_cc_manifolds"):
        parts[kind] = _batch(_at(world, kind, "env_state."), getattr(empty, kind), f"env_state.{kind}")
    parts["collision_matrix"] = _collisions(parts["joint"], shapes)
    gravity = _column([world], "gravity", np.float32, "env_state", shape=(2,))[0]  # the package takes −9.81 for all
    # Not in the files, or (highlights) not read from them by the package either.
    zeros = package.jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), empty)
    state = zeros.replace(
        **parts,
        gravity=gravity,
        last_distance=np.array(-1.0, np.float32),
    )
    return Level(name, state, static_params, params)


@cache
def _empty_state(static_params: Any) -> Any:
    """An EnvState of the shapes and types in a world of this size; nothing is computed."""
    from robostack.envs.kinetix import package

    return package.jax.eval_shape(lambda: package.create_empty_env(static_params))


def _parameters(values: Any, defaults: Any) -> Any:
    kind = "static_env_params" if hasattr(defaults, "frame_skip") else "env_params"
    found: dict[str, Any] = {}
    for field in fields(defaults):
        default = getattr(defaults, field.name)
        if field.name in ("screen_dim", "downscale"):  # of pictures: the package keeps its defaults, too
            continue
        value = _at(values, field.name, f"{kind}.")
        if isinstance(value, bool) != isinstance(default, bool) or not isinstance(value, int | float):
            raise _Malformed(f"expected {kind}.{field.name} like {default}, got {reprlib.repr(value)}")
        low, high = BOUNDS.get(field.name, (0, 1e9))
        if not low <= value <= high or (isinstance(default, int) and value != int(value)):  # nan is never within
            told = f"{kind}.{field.name} like {default}, from {low} to {high:.6g}"
            raise _Malformed(f"expected {told}, got {reprlib.repr(value)}")
        found[field.name] = type(default)(value)  # other types would be compiled anew
    return defaults.replace(**found)


def _batch(entries: Any, like: Any, where: str) -> Any:
    """A list of JSON objects as one structure of arrays."""
    columns = {}
    for field in fields(like):
        leaf = getattr(like, field.name)
        columns[field.name] = _column(entries, field.name, leaf.dtype, where, shape=leaf.shape[1:], count=leaf.shape[0])
    return type(like)(**columns)


def _column(
    entries: Any,
    key: str,
    dtype: Any,
    where: str,
    shape: tuple[int, ...] = (),
    count: int | None = None,
    below: int | None = None,
) -> np.ndarray:
    if not isinstance(entries, list) or (count is not None and len(entries) < count):
        raise _Malformed(f"expected {where} a list of {count} entries")
    values = np.zeros((len(entries) if count is None else count, *shape), dtype)
    for i in range(len(values)):
        place = f"{where}[{i}].{key}"
        try:
            value = np.array(_unfold(_at(entries[i], key, f"{where}[{i}].")))
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            raise _Malformed(f"{place} is not an array of numbers") from None
        if value.dtype.kind not in "bif":
            raise _Malformed(f"{place} is not an array of numbers")
        if not np.isfinite(value).all():
            raise _Malformed(f"{place} is not finite")
        # The two contact points of a pair of polygons share the first one's numbers, as in the package's loader.
        if value.shape != shape[len(shape) - value.ndim :] or (value.ndim < len(shape) and "_rr_" not in where):
            raise _Malformed(f"expected {place} of shape {shape}, got {value.shape}")
        # Empty places may hold anything: two of the shipped levels do.
        if below is not None and entries[i].get("active", True) and not (0 <= value < below):
            raise _Malformed(f"expected {place} from 0 to {below - 1}, got {value}")
        with np.errstate(all="ignore"):
            values[i] = value
        if not np.isfinite(values[i]).all() or (values.dtype.kind in "iu" and (values[i] != value).any()):
            raise _Malformed(f"expected {place} as {values.dtype}, got {reprlib.repr(value.tolist())}")
    return values


def _unfold(value: Any) -> Any:
    """Arrays are written as {"0": …, "1": …}."""
    return [_unfold(value[str(i)]) for i in range(len(value))] if isinstance(value, dict) else value


def _at(holder: Any, key: str, where: str) -> Any:
    if not isinstance(holder, dict) or key not in holder:
        raise _Malformed(f"{where}{key} is missing")
    return holder[key]


def _collisions(joints: Any, shapes: int) -> np.ndarray:
    """(shapes, shapes) bool, which may collide: not with themselves, nor with what they are jointed to.

    In the order of jax2d.engine.calculate_collision_matrix, since the result depends on it.
    """
    matrix = ~np.eye(shapes, dtype=bool)
    joined = [(a, b) for a, b, active in zip(joints.a_index, joints.b_index, joints.active, strict=True) if active]
    for _ in range(len(joints.active)):
        for a, b in joined:
            both = matrix[a] & matrix[b] & matrix[:, a] & matrix[:, b]
            matrix[a] = both
            matrix[:, b] = both
            matrix[b] = both
            matrix[:, a] = both
    return matrix
