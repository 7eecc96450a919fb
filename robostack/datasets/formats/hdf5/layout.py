"""What the arrays of HDF5 recordings are: their names, and the pictures and numbers that they hold.

    ALOHA, one file per episode      observations/qpos, observations/images/<cam>, action, ...
    robomimic, LIBERO, one group     data/demo_<k>/{actions, obs/<name>, rewards, dones, states}
    ManiSkill, one group             traj_<k>/{actions, obs/<group>/<name>, ...}, observations one row longer

Whatever else stands in an episode's group is a feature too, under its path with dots. Cameras are arrays of pictures
in any form, or encoded pictures, one per frame; depth is uint16, in millimetres.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Shaped

from robostack.datasets.episodes import IMAGES, DataError, Feature
from robostack.datasets.formats.hdf5.files import is_bytes, is_text, words
from robostack.datasets.formats.pictures import PictureForm, decode, decode_depth

if TYPE_CHECKING:
    import h5py

ARRAYS = {
    "observation.state": "observations/qpos",
    "observation.velocity": "observations/qvel",
    "observation.effort": "observations/effort",
    "action": "action",
}
JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")
ARM_NAMES = tuple(f"{side}_{joint}" for side in ("left", "right") for joint in JOINTS)
ARM_UNITS = (*("rad",) * 6, "0 closed .. 1 open") * 2
BASE_NAMES, BASE_UNITS = ("base_linear", "base_angular"), ("m/s", "rad/s")
BASE = "base_action"

OBSERVATIONS = ("observations", "observation", "obs")
ACTIONS = ("action", "actions")
_AS_OTHERS_NAME_THEM = {
    "qpos": "state", "qvel": "velocity", "reward": "next.reward", "rewards": "next.reward", "done": "next.done",
    "dones": "next.done", "success": "next.success", "terminated": "next.terminated", "truncated": "next.truncated",
}  # fmt: skip
_PICTURE_GROUPS = ("images", "image", "rgb", "cameras", "color")
_PICTURE_WORDS = ("image", "rgb", "cam", "color", "colour", "gray", "grey", "pixels")


def key_of(path: str) -> str:
    """The name of the feature whose array stands at `path` in an episode's group."""
    first, *rest = path.split("/")
    if path in ACTIONS:
        return "action"
    if first not in OBSERVATIONS or not rest:
        return _AS_OTHERS_NAME_THEM.get(path, path.replace("/", ".")) if not rest else ".".join((first, *rest))
    if len(rest) > 1 and "depth" in rest[0].lower():
        return f"{IMAGES}{'.'.join(rest[1:])}_depth"
    if len(rest) > 1 and rest[0] in _PICTURE_GROUPS:
        return IMAGES + ".".join(rest[1:])
    name = _AS_OTHERS_NAME_THEM.get(rest[0], rest[0]) if len(rest) == 1 else ".".join(rest)
    return f"observation.{name}"


@dataclass(frozen=True)
class StoredPictures:
    """How the pictures of an array are read."""

    kind: Literal["encoded", "colour", "depth"]
    form: PictureForm | None
    """Of arrays of colours."""
    turned: bool
    """Whether channels are in reverse once decoded."""

    @staticmethod
    def of(path: str, array: h5py.Dataset, is_aloha: bool) -> StoredPictures | None:
        """None for what holds no pictures."""
        lower, shape, dtype = path.lower(), array.shape[1:], array.dtype
        is_named = key_of(path).startswith(IMAGES) or any(word in lower for word in _PICTURE_WORDS)
        is_depth = "depth" in lower
        if is_bytes(array) or dtype.kind == "S":
            return StoredPictures(_kind(array, is_depth), None, is_aloha) if not shape and is_named else None
        if dtype.kind in "iu" and dtype.itemsize == 2 and (is_depth or is_named) and _flat(shape) is not None:
            return StoredPictures("depth", None, False)
        if is_depth and dtype.kind == "f":  # in metres, or whatever else: numbers as they are
            return None
        if dtype == np.uint8 and len(shape) == 1 and is_named:
            return StoredPictures(_kind(array, is_depth), None, is_aloha)
        form = PictureForm.of(shape, dtype)
        if form is None or not (is_named or (dtype == np.uint8 and len(shape) == 3)):
            return None
        return StoredPictures("colour", form, False)

    def one(self, picture: Any) -> Shaped[np.ndarray, "height width channels"]:
        """A picture as `Frames` have it. Raises DataError where it is damaged, or not what it is said to be."""
        if self.kind == "colour":
            assert self.form is not None
            return self.form.rgb(picture)
        if self.kind == "depth":
            if isinstance(picture, np.ndarray) and picture.ndim > 1:
                return _depth(picture)
            return decode_depth(_bytes(picture))
        frame = decode(_bytes(picture))
        return np.ascontiguousarray(frame[..., ::-1]) if self.turned else frame

    def all(self, array: h5py.Dataset) -> Iterator[Any]:
        """Every picture as it is stored, in turn."""
        block = array.chunks[0] if array.chunks else 1
        for start in range(0, len(array), block):
            yield from array[start : start + block]

    def scaled(self, array: h5py.Dataset) -> StoredPictures:
        """The same, with the scale of floats by all that the array holds."""
        if self.form is None or array.dtype.kind != "f":
            return self
        forms = (self.form.seen(picture) for picture in self.all(array))
        form = next((form for form in forms if form.scale != "0..1"), None)
        return StoredPictures(self.kind, form or self.form.seen(np.zeros(1)), self.turned)


def _kind(array: h5py.Dataset, is_depth: bool) -> Literal["encoded", "depth"]:
    """Whether encoded pictures are of depth: those called so, unless they are of colours."""
    if is_depth and array.shape[0]:
        try:
            decode_depth(_bytes(array[0]))
            return "depth"
        except DataError:
            pass
    return "encoded"


def _flat(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """(height, width) of pictures of one channel."""
    if len(shape) == 3 and 1 in (shape[0], shape[2]):
        shape = shape[:2] if shape[2] == 1 else shape[1:]
    return shape if len(shape) == 2 else None


def _depth(picture: np.ndarray) -> np.ndarray:
    if picture.min(initial=0) < 0:
        raise DataError(f"expected a depth of at least 0, got {picture.min()}")
    size = _flat(picture.shape)
    assert size is not None
    return np.ascontiguousarray(picture.reshape(*size, 1).astype(np.uint16))


def _bytes(row: Any) -> bytes:
    if isinstance(row, str):
        return row.encode("utf-8", "surrogateescape")
    if not isinstance(row, (bytes, np.ndarray)):
        raise DataError(f"expected an encoded picture, got {type(row).__name__}")
    return row if isinstance(row, bytes) else row.astype(np.uint8, copy=False).tobytes()


def feature_of(path: str, array: h5py.Dataset, is_aloha: bool, peek: Callable[[StoredPictures], np.ndarray]) -> Feature:
    """What an array holds; `peek` gives the first of its pictures. Raises DataError for what cannot be kept."""
    if (pictures := StoredPictures.of(path, array, is_aloha)) is not None:
        first = peek(pictures)
        return Feature(first.shape, first.dtype.name, units=("mm",) if pictures.kind == "depth" else ())
    if is_text(array) or array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
        raise DataError(f"expected numbers (frames, entries), got {array.shape} {array.dtype}")
    feature = Feature(array.shape[1:], array.dtype.newbyteorder("=").name)
    known, units = words(array, "names"), words(array, "units")
    if is_aloha and path in ARRAYS.values() and feature.shape == (len(ARM_NAMES),):
        known = known or ARM_NAMES
        if known == ARM_NAMES and path in (ARRAYS["observation.state"], ARRAYS["action"]):
            units = units or ARM_UNITS  # no recorder writes them; the robot's driver has no others
    fits = [found if len(found) == feature.entries else () for found in (known, units)]
    return Feature(feature.shape, feature.dtype, *fits)


def with_base(arm: Feature, base: Feature) -> Feature:
    """The action of arms and a base, whose two entries come last."""
    names = (*arm.names, *BASE_NAMES) if arm.names else ()
    units = (*arm.units, *(base.units or BASE_UNITS)) if arm.units else ()
    return Feature((arm.entries + base.entries,), np.result_type(arm.dtype, base.dtype).name, names, units)
