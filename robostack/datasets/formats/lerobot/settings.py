"""What is written of a LeRobot data set and how: features, codecs, and the tables' types."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from robostack.datasets.episodes import BOOKKEEPING, DataError, Feature
from robostack.datasets.formats.lerobot.features import NUMBERS
from robostack.datasets.formats.video import COLOURS, Codec

if TYPE_CHECKING:
    import pyarrow as pa

Images = Literal["video", "png"]
CodecName = Literal["libsvtav1", "libx264", "libx264rgb"]

CODECS: dict[str, Codec] = {
    # LeRobot 0.6's own settings.
    "libsvtav1": Codec("libsvtav1", "yuv420p", {"crf": "30", "preset": "12", **COLOURS}, key_frames=2),
    "libx264": Codec("libx264", "yuv420p", {"crf": "23", "preset": "veryfast", "bf": "0", **COLOURS}, key_frames=2),
    # Lossless: RGB as it is.
    "libx264rgb": Codec("libx264rgb", "rgb24", {"crf": "0", "preset": "veryfast", "bf": "0"}, key_frames=2),
}
SMALLEST_AV1 = 32
"""Pixels a side. The encoder ends the process (a division by zero) on frames of 24×24 and of 64 rows by 16 columns."""
MEGABYTE = 1024**2
DATA_FILE, VIDEO_FILE, ROW_GROUP = 100 * MEGABYTE, 200 * MEGABYTE, 64 * MEGABYTE
"""Sizes at which a new file or row group is begun; the first two are LeRobot's."""


@dataclass(frozen=True)
class Settings:
    """What a data set is written with, fixed from its first episode to its last."""

    features: Mapping[str, Feature]
    fps: float
    robot: str | None
    images: Images
    codec: CodecName

    @property
    def columns(self) -> dict[str, Feature]:
        """The features and those that LeRobot adds, in the order of its tables."""
        added = {"timestamp": Feature((), "float32"), **{key: Feature((), "int64") for key in BOOKKEEPING}}
        return {**{key: feature for key, feature in self.features.items() if key not in added}, **added}

    @property
    def cameras(self) -> list[str]:
        return [key for key, feature in self.features.items() if feature.is_camera]

    @property
    def in_video(self) -> list[str]:
        """Depth is kept without loss, in pictures."""
        return [key for key in self.cameras if self.features[key].is_image] if self.images == "video" else []


def check_settings(settings: Settings) -> None:
    """Raises DataError for what LeRobot cannot hold."""
    if not (math.isfinite(settings.fps) and settings.fps >= 1):
        raise DataError(f"expected at least one frame a second, got {settings.fps}")
    for key, feature in settings.features.items():
        if "/" in key or key in (*BOOKKEEPING, "task", ""):
            raise DataError(f"LeRobot cannot hold a feature called {key!r}: rename it or leave it out")
        if feature.is_depth:
            continue
        if feature.is_image:
            height, width, _ = feature.shape
            if settings.images == "video" and settings.codec == "libsvtav1" and min(height, width) < SMALLEST_AV1:
                raise DataError(
                    f"{key}: libsvtav1 needs at least {SMALLEST_AV1} pixels a side, got {(height, width)}: "
                    "write images as png"
                )
            if settings.images == "video" and CODECS[settings.codec].halves_colour and (height % 2 or width % 2):
                raise DataError(
                    f"{key}: {settings.codec} needs an even height and width, got {(height, width)}: "
                    "choose codec libx264rgb, or write images as png"
                )
        elif feature.dtype not in NUMBERS or len(feature.shape) > 5 or 0 in feature.shape:
            raise DataError(f"{key}: LeRobot cannot hold {feature.dtype} of shape {feature.shape}")
    if "timestamp" in settings.features and settings.features["timestamp"] != Feature((), "float32"):
        raise DataError(f"timestamp: expected float32 of shape (), got {settings.features['timestamp']}")


def table_schema(settings: Settings) -> pa.Schema:
    """Of data/; its metadata is how Hugging Face's package knows pictures and matrices."""
    import pyarrow as pa

    fields, described = [], {}
    for key, feature in settings.columns.items():
        if key in settings.in_video:
            continue
        if feature.is_camera:
            fields.append(pa.field(key, pa.struct({"bytes": pa.binary(), "path": pa.string()})))
            described[key] = {"_type": "Image"}
            continue
        value = {"dtype": feature.dtype, "_type": "Value"}
        kind = arrow_column(np.zeros((1, *feature.shape), feature.dtype), feature).type
        fields.append(pa.field(key, kind))
        if feature.shape in ((), (1,)):
            described[key] = value
        elif len(feature.shape) == 1:
            described[key] = {"feature": value, "length": feature.shape[0], "_type": "List"}
        else:
            described[key] = {"shape": feature.shape, "dtype": feature.dtype, "_type": f"Array{len(feature.shape)}D"}
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": described}})})


def arrow_column(rows: np.ndarray, feature: Feature) -> pa.Array:
    """Rows (frames, *shape) as LeRobot keeps them: numbers, lists of one size, or lists of lists."""
    import pyarrow as pa

    values: pa.Array = pa.array(np.ascontiguousarray(rows).reshape(-1))
    if feature.shape in ((), (1,)):
        return values
    if len(feature.shape) == 1:
        return pa.FixedSizeListArray.from_arrays(values, feature.shape[0])
    for size in reversed(feature.shape):
        values = pa.ListArray.from_arrays(pa.array(np.arange(0, len(values) + 1, size, dtype=np.int32)), values)
    return values


def parquet_writer(path: Path, schema: pa.Schema) -> Any:
    """A `pq.ParquetWriter`; only columns that repeat themselves are worth a dictionary."""
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    repeats = [key for key in ("episode_index", "task_index") if key in schema.names]
    options: dict[str, Any] = {"compression": "snappy", "use_dictionary": repeats, "write_page_checksum": True}
    return pq.ParquetWriter(path, schema, **options)


def write_json(path: Path, content: Any) -> None:
    """Writes a file whole or not at all; info.json, which people read, indented."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=4 if path.name == "info.json" else None))
    partial.replace(path)
