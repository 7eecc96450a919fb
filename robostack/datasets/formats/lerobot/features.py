"""LeRobot's features in our terms, and their columns in a table as rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Shaped, UInt16

from robostack.datasets.episodes import IMAGES, DataError, Feature, FeatureError, unique_names
from robostack.datasets.formats.lerobot.values import real, shown, whole
from robostack.datasets.formats.pictures import PictureForm, channel_axis

if TYPE_CHECKING:
    import pyarrow as pa

NUMBERS = ("bool", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)), "float32", "float64")
"""The dtypes of numbers that are read and written; float16 is read too, as float32."""
_DEEPEST_NAMES = 8


@dataclass(frozen=True)
class DepthCodes:
    """How LeRobot writes depth in the 12 bits of a video; metres."""

    depth_min: float = 0.01
    depth_max: float = 10.0
    shift: float = 3.5
    use_log: bool = True

    def millimetres(self, codes: UInt16[np.ndarray, "height width"]) -> UInt16[np.ndarray, "height width 1"]:
        """Depth of codes 0..4095, even steps of log(depth + shift), or of depth, from depth_min to depth_max."""
        lowest, highest = self.depth_min, self.depth_max
        if self.use_log:
            lowest, highest = math.log(lowest + self.shift), math.log(highest + self.shift)
        depth = lowest + np.arange(4096) * (highest - lowest) / 4095
        depth = np.clip(np.exp(depth) - self.shift if self.use_log else depth, self.depth_min, self.depth_max)
        return np.clip(np.rint(depth * 1000), 0, 65535).astype(np.uint16)[np.minimum(codes, 4095)][..., None]


@dataclass(frozen=True)
class StoredFeature:
    """A feature and how it is kept."""

    feature: Feature
    kind: Literal["numbers", "array", "pictures", "video"]
    """Rows of numbers, pictures as arrays of numbers, encoded pictures in the table, or frames of a video."""
    stored: Feature | None = None
    """Numbers and arrays as they are in the table."""
    form: PictureForm | None = None
    """Of colour pictures that are arrays."""
    depth_factor: float = 1.0
    """By which an encoded depth picture becomes the unit of the feature."""
    depth_codes: DepthCodes | None = None
    is_gray: bool = False
    """Whether it was declared with one channel, which may turn out to be depth."""
    remarks: tuple[str, ...] = ()

    def resized(self, height: int, width: int, remark: str) -> StoredFeature:
        """The same for pictures of another size."""
        feature = replace(self.feature, shape=(height, width, self.feature.shape[2]))
        return replace(self, feature=feature, remarks=(*self.remarks, remark))

    def as_depth(self) -> StoredFeature:
        """A gray camera whose pictures turn out to have 16 bits, which are millimetres where nothing else is said."""
        return replace(self, feature=Feature((*self.feature.shape[:2], 1), "uint16", (), ("mm",)))


def read_source(key: str, described: Any) -> StoredFeature:
    """What info.json says of a feature. Raises DataError, saying of what kind it is, for one that is not read."""
    if not isinstance(described, Mapping):
        raise DataError(f"is described by {shown(described)}")
    dtype, shape = described.get("dtype"), _shape(described.get("shape"))
    if not isinstance(dtype, str):
        raise DataError(f"dtype {shown(dtype)}")
    names = flat_names(described.get("names"))
    if dtype in ("image", "video"):
        info = described.get("info") or described.get("video_info")
        return _camera(dtype, shape, names, info if isinstance(info, Mapping) else {})
    if dtype not in (*NUMBERS, "float16"):
        raise DataError(f"dtype {shown(dtype)[1:-1]}")
    stored = Feature(shape, "float32" if dtype == "float16" else dtype)
    if _is_depth(key, stored):
        height, width = (size for axis, size in enumerate(shape) if len(shape) == 2 or axis != channel_axis(shape))
        return StoredFeature(Feature((height, width, 1), "uint16", (), ("mm",)), "array", stored)
    if _is_picture(key, stored, names) and (form := PictureForm.of(shape, np.dtype(stored.dtype), names)):
        return StoredFeature(Feature((*form.size, 3), "uint8"), "array", stored, form)
    if key == "timestamp" and shape == (1,):
        stored = Feature((), stored.dtype)
    remarks: tuple[str, ...] = ()
    if names and len(names) != stored.entries:
        if len(names) != len(shape):  # else they are of the axes
            remarks = (f"{key} has {len(names)} names for {stored.entries} entries: its names are left out",)
        names = []
    return StoredFeature(replace(stored, names=unique_names(names)), "numbers", stored, remarks=remarks)


def _camera(dtype: str, shape: tuple[int, ...], names: Sequence[str], info: Mapping[str, Any]) -> StoredFeature:
    axis = channel_axis(shape, names) if len(shape) == 3 else None
    if len(shape) != 2 and axis is None:
        raise DataError(f"{dtype} of shape {shape}, which has no axis of 1, 3 or 4 colours")
    height, width = (size for index, size in enumerate(shape) if index != axis)
    is_depth = bool(info.get("is_depth_map") or info.get("video.is_depth_map"))
    kind: Literal["pictures", "video"] = "pictures" if dtype == "image" else "video"
    if not is_depth or (kind == "video" and "video.depth_min" not in info):
        remarks = ("a depth map in a video of colours is read as the colours",) if is_depth else ()
        is_gray = axis is None or shape[axis] == 1
        return StoredFeature(Feature((height, width, 3), "uint8"), kind, is_gray=is_gray, remarks=remarks)
    unit = info.get("depth_unit") or "mm"
    if kind == "video":
        described = {name: info.get(f"video.{name}") for name in ("depth_min", "depth_max", "shift")}
        said: dict[str, Any] = {name: real(value, name) for name, value in described.items() if value is not None}
        codes = DepthCodes(**said, use_log=info.get("video.use_log") is not False)
        if not codes.depth_min < codes.depth_max or (codes.use_log and codes.depth_min + codes.shift <= 0):
            raise DataError(f"depth from {codes.depth_min} to {codes.depth_max} m, shifted by {codes.shift} m")
        return StoredFeature(Feature((height, width, 1), "uint16", (), ("mm",)), kind, depth_codes=codes)
    feature = Feature((height, width, 1), "uint16", (), ("mm" if unit == "m" else str(unit),))
    remarks = ("depth in metres is kept in whole millimetres",) if unit == "m" else ()
    return StoredFeature(feature, kind, depth_factor=1000.0 if unit == "m" else 1.0, remarks=remarks)


def _shape(value: Any) -> tuple[int, ...]:
    if isinstance(value, list | tuple) and len(value) <= 8:
        return tuple(whole(size, "a size of its shape", least=1) for size in value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return (whole(value, "its shape", least=1),)
    raise DataError(f"has the shape {shown(value)}")


def _is_depth(key: str, stored: Feature) -> bool:
    """uint16 of one channel is depth by its form; of two axes or channels first, where its name says so."""
    shape = stored.shape
    if stored.dtype != "uint16" or len(shape) not in (2, 3) or (len(shape) == 3 and 1 not in (shape[0], shape[2])):
        return False
    return stored.is_depth or "depth" in key.lower()


def _is_picture(key: str, stored: Feature, names: Sequence[str]) -> bool:
    """Bytes of three channels are pictures; other arrays where their name or that of an axis says so, else what looks
    like one could be a map of touch or the pose of a camera."""
    if stored.dtype == "uint8" and len(stored.shape) == 3 and 3 in (stored.shape[0], stored.shape[2]):
        return True
    named = key.startswith(IMAGES) or "image" in key.lower()
    if len(stored.shape) == 2:
        return named and (key.startswith(IMAGES) or stored.dtype == "uint8")
    colours = {"channel", "channels", "rgb", "rgba", "colour", "color"} & {name.lower() for name in names}
    return len(stored.shape) == 3 and (named or "rgb" in key.lower() or bool(colours))


def flat_names(names: Any, depth: int = 0) -> list[str]:
    """Names of entries in one list, in the forms that people write: a list; {"motors": [...]}, whose one heading says
    nothing; one list a group, whose heading goes before its names (left.waist); or {name: place}."""
    if depth > _DEEPEST_NAMES:
        return []
    if isinstance(names, Mapping):
        places = list(names.values())
        if places and all(type(place) is int for place in places):
            return [str(name) for name in sorted(names, key=lambda name: names[name])]
        groups = [(str(heading), flat_names(some, depth + 1)) for heading, some in names.items()]
        if len(groups) == 1:
            return groups[0][1]
        return [f"{heading}.{name}" for heading, some in groups for name in some]
    if isinstance(names, list | tuple):
        return [name for some in names for name in (flat_names(some, depth + 1) if not _is_name(some) else [str(some)])]
    return [str(names)] if _is_name(names) else []


def _is_name(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def numbers(table: pa.Table | pa.RecordBatch, key: str, feature: Feature) -> Shaped[np.ndarray, "frames ..."]:
    """A column of a table as (frames, *shape). Raises FeatureError where it is ragged, missing or of another type."""
    import pyarrow as pa

    if key not in table.schema.names:
        raise FeatureError(key, "is not in the table: the file lacks the column")
    column: Any = table.column(key)
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(column, pa.ExtensionArray):  # LeRobot's matrices, where its package has told pyarrow of them
        column = column.storage
    shape: list[int] = []
    while isinstance(column, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray):
        lengths = column.value_lengths() if not isinstance(column, pa.FixedSizeListArray) else [column.type.list_size]
        if column.null_count or len(distinct := np.unique(np.asarray(lengths))) != 1:
            raise FeatureError(key, f"is missing or ragged: expected {feature.shape} in every frame")
        shape.append(int(distinct[0]))
        column = column.flatten()
    kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
    if column.null_count or not any(of_kind(column.type) for of_kind in kinds):
        what = f"{column.type}, of which {column.null_count} are missing"
        raise FeatureError(key, f"is not as declared: expected {feature.dtype}, got {what}")
    if tuple(shape) != feature.shape and not (tuple(shape) in ((), (1,)) and feature.shape in ((), (1,))):
        raise FeatureError(key, f"is not as declared: expected shape {feature.shape}, got {tuple(shape)}")
    values = column.to_numpy(zero_copy_only=False)
    # As LeRobot does, a number is taken as the type that info.json says; a float64 may lose digits by it, no other.
    with np.errstate(over="ignore", invalid="ignore"):
        cast = values.astype(feature.dtype)
    if not values.dtype.kind == cast.dtype.kind == "f" and not np.array_equal(cast, values):
        raise FeatureError(key, f"is not as declared: expected {feature.dtype}, got {values.dtype} that does not fit")
    return cast.reshape(len(table), *feature.shape)
