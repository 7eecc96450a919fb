"""Pictures on their way into an encoder: cropped, resized, centred and cut into patches.

All are as a camera gives them, (batch, height, width, 3) of 8 bits, or depth as (batch, height, width, 1) in 0..1.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

Size = tuple[int, int]
"""(height, width) in pixels."""
Pictures = UInt8[Tensor, "batch height width 3"] | Float[Tensor, "batch height width 1"]
"""Colours of 8 bits, or depth in 0..1."""
Colour = tuple[float, float, float]
"""Red, green and blue in 0..1."""
Fit = Literal["pad", "stretch"]
"""Into another shape: whole and undistorted between black bars, or stretched."""
Interpolation = Literal["bilinear", "bicubic"]


def centred(values: Shaped[Tensor, "*any"], dtype: torch.dtype) -> Float[Tensor, "*any"]:
    """Colours of 0..255, or depth of 0..1, as −1..1."""
    half = 127.5 if values.dtype == torch.uint8 else 0.5
    return values.to(dtype) / half - 1.0


def centre_crop(
    images: Shaped[Tensor, "batch height width channels"], size: Size | None
) -> Shaped[Tensor, "batch cropped_height cropped_width channels"]:
    """The middle of the pictures; of an odd margin the larger part is cut at the bottom and right.

    The middle of a wide picture is a narrow one: n of N pixels of a field of view φ show 2 atan(n/N · tan(φ/2)).
    """
    if size is None:
        return images
    top, left = (images.shape[1] - size[0]) // 2, (images.shape[2] - size[1]) // 2
    return images[:, top : top + size[0], left : left + size[1]]


def resize(
    images: Shaped[Tensor, "batch height width channels"],
    size: Size,
    fit: Fit = "pad",
    interpolation: Interpolation = "bilinear",
) -> Shaped[Tensor, "batch resized_height resized_width channels"]:
    """Pictures of (height, width) = `size`, in the type that they had, on their device.

    They are smoothed before they shrink, as PIL and jax.image.resize do it: openpi's `resize_with_pad` is `pad` and
    `bilinear`, OpenVLA's is `stretch` and `bicubic`. Of an odd margin the larger bar is at the bottom and right.
    """
    height, width = images.shape[1:3]
    if (height, width) == size:
        return images
    ratio = max(height / size[0], width / size[1])
    inner = size if fit == "stretch" else (max(int(height / ratio), 1), max(int(width / ratio), 1))
    is_colour, values = images.dtype == torch.uint8, images.permute(0, 3, 1, 2)
    for shape in ((height, inner[1]), inner):  # first along the rows, and whole levels in between, as PIL
        if shape != values.shape[2:]:
            values = F.interpolate(values.float() if is_colour else values, shape, mode=interpolation, antialias=True)
            values = (values + 0.5).clamp_(0.0, 255.0).to(torch.uint8) if is_colour else values
    top, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    bars = (left, size[1] - inner[1] - left, top, size[0] - inner[0] - top)
    return F.pad(values, bars).permute(0, 2, 3, 1)


def normalized(
    images: Shaped[Tensor, "batch height width channels"], mean: Colour, deviation: Colour, dtype: torch.dtype
) -> Float[Tensor, "batch height width 3"]:
    """(x − mean) / deviation of colours in 0..1; depth is shown as grey."""
    exact = images.to(torch.promote_types(dtype, torch.float32)).expand(-1, -1, -1, 3)
    colours = (exact / 255.0 if images.dtype == torch.uint8 else exact).unbind(-1)
    # Scalars, not tensors: those of a module would be rounded to its type.
    return torch.stack([(c - m) / d for c, m, d in zip(colours, mean, deviation, strict=True)], dim=-1).to(dtype)


def patchify(
    images: Shaped[Tensor, "batch height width channels"], patch: int
) -> Shaped[Tensor, "batch patches patch_numbers"]:
    """Squares of `patch` pixels, row by row, each as one vector."""
    return images.unflatten(2, (-1, patch)).unflatten(1, (-1, patch)).transpose(2, 3).flatten(3).flatten(1, 2)
