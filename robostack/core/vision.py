"""Image encoders that train from scratch: a picture becomes a few tokens.

All take pictures as a camera gives them, (batch, height, width, 3) of 8 bits, or depth as (batch, height, width, 1) in
0..1, and cut out the middle first when told.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor, nn

from robostack.core.transformer import plain_transformer

Size = tuple[int, int]
"""(height, width) in pixels."""
Pictures = UInt8[Tensor, "batch height width 3"] | Float[Tensor, "batch height width 1"]
"""Colours of 8 bits, or depth in 0..1."""


class KeypointEncoder(nn.Module):
    """A small ConvNet whose last maps each vote for one image point: an image becomes one token of coordinates.

    The expected position under a softmax over each map (spatial softmax, arXiv 1504.00702, section 4.2) keeps where
    things are to a fraction of a pixel, which pooling loses and manipulation needs.
    """

    tokens = 1

    def __init__(
        self,
        width: int,
        channels: tuple[int, ...] = (32, 32, 32),
        keypoints: int = 32,
        crop: Size | None = None,
        planes: int = 3,
    ) -> None:
        """`planes` is the number of values a pixel: 3 of colour, 1 of depth."""
        super().__init__()
        self.crop = crop
        layers: list[nn.Module] = []
        previous = planes
        for index, count in enumerate(channels):
            # Only the first convolution halves the image: the finer the maps, the finer the positions.
            kernel, stride = (5, 2) if index == 0 else (3, 1)
            layers += [nn.Conv2d(previous, count, kernel, stride), nn.GroupNorm(8, count), nn.SiLU()]
            previous = count
        self.maps = nn.Sequential(*layers, nn.Conv2d(previous, keypoints, 1))
        self.token = nn.Linear(2 * keypoints, width)

    def forward(self, image: Pictures) -> Float[Tensor, "batch 1 token_width"]:
        # Channels first in memory too: torch's GroupNorm takes several times as long over channels that come last.
        planes = centre_crop(image, self.crop).permute(0, 3, 1, 2).contiguous()
        pixels = centred(planes, self.token.weight.dtype)
        return self.token(spatial_softmax(self.maps(pixels)).flatten(1))[:, None]


class PatchEncoder(nn.Module):
    """A vision transformer (arXiv 2010.11929) whose patches vote for image points: an image becomes one token of
    coordinates, as with `KeypointEncoder`.

    Point k lies at Σᵢ aᵢₖ (cᵢ + oᵢₖ), where cᵢ is the centre of patch i, and the weights a (a softmax over the patches)
    and the offsets o, in half patches, are linear in what the transformer made of it. Free tokens to read the picture
    off, as in the original, learnt nothing in the steps in which this finds a square to half a pixel.
    """

    tokens = 1

    def __init__(
        self,
        size: Size,
        width: int,
        patch: int = 8,
        inner_width: int = 64,
        depth: int = 2,
        heads: int = 4,
        keypoints: int = 32,
        crop: Size | None = None,
        planes: int = 3,
    ) -> None:
        """`size` is that of the camera, before the crop; `planes` as in `KeypointEncoder`. Raises ValueError when
        patches don't fill what is left."""
        super().__init__()
        rows, columns = (pixels // patch for pixels in crop or size)
        if (rows * patch, columns * patch) != tuple(crop or size):
            raise ValueError(
                f"pictures of {crop or size} are not made of patches of {patch} pixels: set a crop that is"
            )
        self.crop, self.patch = crop, patch
        self.patch_in = nn.Linear(planes * patch**2, inner_width)
        self.transformer = plain_transformer(inner_width, depth, heads)
        self.votes = nn.Linear(inner_width, keypoints)
        self.offsets = nn.Linear(inner_width, 2 * keypoints)
        self.token = nn.Linear(2 * keypoints, width)
        self.register_buffer("places", grid_embedding(rows, columns, inner_width), persistent=False)
        self.register_buffer("centres", grid_centres(rows, columns), persistent=False)
        self.register_buffer("half_patch", torch.tensor([1.0 / columns, 1.0 / rows]), persistent=False)

    def forward(self, image: Pictures) -> Float[Tensor, "batch 1 token_width"]:
        patches = centred(patchify(centre_crop(image, self.crop), self.patch), self.token.weight.dtype)
        # Where a patch lies is told by its embedding, in two dimensions: no rotary positions on top.
        (encoded,), _ = self.transformer([self.patch_in(patches) + self.places], None, None, [None])
        assert encoded is not None
        weights = self.votes(encoded).softmax(dim=1)
        offsets = self.offsets(encoded).unflatten(-1, (-1, 2))
        points = weights.mT @ self.centres + self.half_patch * (weights[..., None] * offsets).sum(1)
        return self.token(points.flatten(1))[:, None]


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


def grid_centres(rows: int, columns: int) -> Float[Tensor, "cells 2"]:
    """(x, y) of the centres of a grid's cells, row by row; the picture spans [−1, 1]."""
    x, y = ((2.0 * torch.arange(count) + 1.0) / count - 1.0 for count in (columns, rows))
    return torch.stack([x.repeat(rows), y.repeat_interleave(columns)], dim=-1)


def grid_embedding(rows: int, columns: int, size: int) -> Float[Tensor, "cells {size}"]:
    """sin and cos of row and column, a quarter of the numbers each, for a grid's cells, row by row (arXiv 2205.01580,
    section 2). Periods are in geometric sequence, from 4 cells to 4 grids."""
    periods = 4.0 * float(max(rows, columns)) ** torch.linspace(0.0, 1.0, size // 4)
    row = (2.0 * math.pi * torch.arange(rows)[:, None] / periods).repeat_interleave(columns, dim=0)
    column = (2.0 * math.pi * torch.arange(columns)[:, None] / periods).repeat(rows, 1)
    return torch.cat([row.sin(), row.cos(), column.sin(), column.cos()], dim=-1)


def spatial_softmax(maps: Float[Tensor, "batch maps height width"]) -> Float[Tensor, "batch maps 2"]:
    """The mean position (x, y) in [−1, 1] under softmax(map), −1 being the left and upper edges."""
    height, width = maps.shape[-2:]
    weights = maps.flatten(2).softmax(dim=-1).unflatten(2, (height, width))
    x = torch.linspace(-1.0, 1.0, width, device=maps.device, dtype=maps.dtype)
    y = torch.linspace(-1.0, 1.0, height, device=maps.device, dtype=maps.dtype)
    return torch.stack([(weights.sum(2) * x).sum(-1), (weights.sum(3) * y).sum(-1)], dim=-1)
