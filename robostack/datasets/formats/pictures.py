"""Pictures in every form that data sets hold, as uint8 RGB (height, width, 3) or, of depth, uint16 (height, width, 1).

Arrays may be gray, gray with a last axis of one, RGB or RGBA, channels first or last, of 8 or 16 bits, or of floats in
0..1 or 0..255. Encoded ones (PNG, JPEG, ...) may have any mode of Pillow's.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Shaped, UInt8, UInt16

from robostack.common.text import one_line
from robostack.datasets.episodes import DataError

LARGEST_PICTURE = 1 << 26
"""Pixels of the largest picture that is decoded: 8192×8192. A PNG of half a megabyte can unpack to gigabytes."""
CHANNELS = (1, 3, 4)
_CHANNEL_NAMES = ("channel", "channels", "c", "rgb", "rgba", "bgr", "color", "colour", "colors", "colours")

Scale = Literal["as it is", "0..1", "16 bit"]


@dataclass(frozen=True)
class PictureForm:
    """How an array of pictures, without the axis of frames, is to be read."""

    shape: tuple[int, ...]
    channel_axis: int | None
    """None for gray pictures of two axes."""
    scale: Scale

    @staticmethod
    def of(shape: Sequence[int], dtype: np.dtype, names: Sequence[str] = ()) -> PictureForm | None:
        """The form of pictures of this shape and type; `names` of the axes decide where sizes do not. None where it
        cannot be a picture. Floats are taken for 0..255 until `seen` has met them."""
        sizes = tuple(int(size) for size in shape)
        if dtype.kind not in "uf" or (dtype.kind == "u" and dtype.itemsize > 2) or min(sizes, default=0) < 1:
            return None
        scale: Scale = "16 bit" if dtype == np.uint16 else "as it is"
        if len(sizes) == 2:
            return PictureForm(sizes, None, scale)
        if len(sizes) != 3:
            return None
        axis = channel_axis(sizes, names)
        return None if axis is None else PictureForm(sizes, axis, scale)

    def seen(self, pictures: np.ndarray) -> PictureForm:
        """The same, with the scale of floats by what an episode of them holds: up to 1, they span 0..1."""
        if pictures.dtype.kind != "f":
            return self
        known = pictures[np.isfinite(pictures)]
        return PictureForm(self.shape, self.channel_axis, "0..1" if known.size and known.max() <= 1.0 else "as it is")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        height, width = (size for axis, size in enumerate(self.shape) if axis != self.channel_axis)
        return height, width

    def rgb(self, picture: Shaped[np.ndarray, "..."]) -> UInt8[np.ndarray, "height width 3"]:
        """One picture. Raises DataError for values that are no colours, such as NaN or 300."""
        values = picture[..., None] if self.channel_axis is None else np.moveaxis(picture, self.channel_axis, -1)
        values = values[..., :3]  # what is transparent has a colour too
        if values.dtype.kind == "f":
            values = np.rint(values * 255.0) if self.scale == "0..1" else np.rint(values)
            if not np.all((values >= 0) & (values <= 255)):
                span = "0..1" if self.scale == "0..1" else "0..255"
                raise DataError(f"expected colours in {span}, got others or values that are not finite")
        elif self.scale == "16 bit":
            values = values >> 8
        colours = values.astype(np.uint8)
        return np.ascontiguousarray(np.broadcast_to(colours, (*colours.shape[:2], 3)))


def channel_axis(shape: Sequence[int], names: Sequence[str] = ()) -> int | None:
    """The axis of colours of a picture with three axes: that whose name says so, else the last or first of size 1, 3
    or 4. None where there is none."""
    if len(names) == len(shape):
        named = [axis for axis, name in enumerate(names) if str(name).lower() in _CHANNEL_NAMES]
        if len(named) == 1 and shape[named[0]] in CHANNELS:
            return named[0]
    return next((axis for axis in (2, 0) if shape[axis] in CHANNELS), None)


def decode(data: bytes, formats: tuple[str, ...] | None = None) -> UInt8[np.ndarray, "height width 3"]:
    """An encoded picture as RGB. Raises DataError where it is damaged or larger than `LARGEST_PICTURE`."""
    return _rgb(*_decoded(data, formats))


def decode_depth(data: bytes, factor: float = 1.0) -> UInt16[np.ndarray, "height width 1"]:
    """An encoded picture of one channel of 8 or 16 bits, or of floats, times `factor`, to whole numbers; what is not
    finite was not measured and is 0. Raises DataError as `decode`, and for colours."""
    pixels, mode = _decoded(data, None)
    if mode == "F" or factor != 1.0:
        pixels = np.rint(np.nan_to_num(pixels.astype(np.float64) * factor, nan=0.0, posinf=0.0, neginf=0.0))
    if mode not in ("F", *_GRAYS) or pixels.min(initial=0) < 0 or pixels.max(initial=0) > 65535:
        raise DataError(f"expected a depth picture of one channel of 16 bits, got mode {mode}")
    return pixels.astype(np.uint16)[..., None]


_GRAYS = ("L", "I", "I;16", "I;16B", "I;16L")


class Header(NamedTuple):
    """What an encoded picture says of itself."""

    height: int
    width: int
    is_deep: bool
    """Whether it has one channel of more than 8 bits."""


def header(data: bytes) -> Header:
    """The header of an encoded picture, without its pixels. Raises DataError as `decode`."""
    from PIL import Image

    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data)) as picture:
            return Header(picture.height, picture.width, picture.mode == "F" or picture.mode in _GRAYS[1:])
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _damaged(error) from error


def _decoded(data: bytes, formats: tuple[str, ...] | None) -> tuple[np.ndarray, str]:
    """The pixels, of RGB, gray or 16 bit gray, and Pillow's name of their mode."""
    from PIL import Image

    try:
        # Reads the size, not yet the pixels; Pillow's own warning about large ones is our error.
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=formats) as picture:
            if picture.width * picture.height > LARGEST_PICTURE:
                size = f"{picture.width}×{picture.height}"
                raise DataError(f"the picture has {size} pixels, more than the {LARGEST_PICTURE:,} allowed")
            if picture.mode in ("RGB", "F", *_GRAYS):
                return np.array(picture), picture.mode
            return np.array(picture.convert("RGBA").convert("RGB")), "RGB"
    # Pillow's word for a broken PNG is SyntaxError.
    except (OSError, SyntaxError, ValueError, TypeError, EOFError, Image.DecompressionBombError) as error:
        if isinstance(error, DataError):
            raise
        raise _damaged(error) from error


def _damaged(error: Exception) -> DataError:
    return DataError(f"the picture is damaged ({one_line(error).partition(' <_io')[0]})")


def _rgb(pixels: np.ndarray, mode: str) -> np.ndarray:
    if mode == "RGB":
        return pixels
    if mode == "F":
        return PictureForm(pixels.shape, None, "as it is").seen(pixels).rgb(pixels)
    gray = pixels if mode == "L" else np.clip(pixels >> 8, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(gray[..., None], (*gray.shape, 3)))
