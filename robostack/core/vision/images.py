"""Pictures on their way into an encoder: cut, cropped and centred.

All are as a camera gives them, (batch, height, width, 3) of 8 bits, or depth as (batch, height, width, 1) in 0..1.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

Size = tuple[int, int]
"""(height, width) in pixels."""
Pictures = UInt8[Tensor, "batch height width 3"] | Float[Tensor, "batch height width 1"]
"""Colours of 8 bits, or depth in 0..1."""


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


def patchify(
    images: Shaped[Tensor, "batch height width channels"], patch: int
) -> Shaped[Tensor, "batch patches patch_numbers"]:
    """Squares of `patch` pixels, row by row, each as one vector."""
    return images.unflatten(2, (-1, patch)).unflatten(1, (-1, patch)).transpose(2, 3).flatten(3).flatten(1, 2)
