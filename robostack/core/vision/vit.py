"""A vision transformer that says where things are: a picture becomes one token of image points."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robostack.core.embeddings import grid_embedding
from robostack.core.transformer import plain_transformer
from robostack.core.vision.images import Pictures, Size, centre_crop, centred, patchify


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
        (encoded,) = self.transformer([self.patch_in(patches) + self.places], None, None)
        assert encoded is not None
        weights = self.votes(encoded).softmax(dim=1)
        offsets = self.offsets(encoded).unflatten(-1, (-1, 2))
        points = weights.mT @ self.centres + self.half_patch * (weights[..., None] * offsets).sum(1)
        return self.token(points.flatten(1))[:, None]


def grid_centres(rows: int, columns: int) -> Float[Tensor, "cells 2"]:
    """(x, y) of the centres of a grid's cells, row by row; the picture spans [−1, 1]."""
    x, y = ((2.0 * torch.arange(count) + 1.0) / count - 1.0 for count in (columns, rows))
    return torch.stack([x.repeat(rows), y.repeat_interleave(columns)], dim=-1)
