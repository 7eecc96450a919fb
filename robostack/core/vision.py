"""Image encoders that train from scratch."""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn


class KeypointEncoder(nn.Module):
    """A small ConvNet whose last maps each vote for one image point: an image becomes one token of coordinates.

    The expected position under a softmax over each map (spatial softmax, arXiv 1504.00702, section 4.2) keeps where
    things are to a fraction of a pixel, which pooling loses and manipulation needs.
    """

    def __init__(self, width: int, channels: tuple[int, ...] = (32, 32, 32), keypoints: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        previous = 3
        for index, count in enumerate(channels):
            # Only the first convolution halves the image: the finer the maps, the finer the positions.
            kernel, stride = (5, 2) if index == 0 else (3, 1)
            layers += [nn.Conv2d(previous, count, kernel, stride), nn.GroupNorm(8, count), nn.SiLU()]
            previous = count
        self.maps = nn.Sequential(*layers, nn.Conv2d(previous, keypoints, 1))
        self.token = nn.Linear(2 * keypoints, width)

    def forward(self, image: UInt8[Tensor, "batch height width 3"]) -> Float[Tensor, "batch 1 token_width"]:
        pixels = image.permute(0, 3, 1, 2).to(self.token.weight.dtype) / 127.5 - 1.0
        return self.token(spatial_softmax(self.maps(pixels)).flatten(1))[:, None]


def spatial_softmax(maps: Float[Tensor, "batch maps height width"]) -> Float[Tensor, "batch maps 2"]:
    """The mean position (x, y) in [−1, 1] under softmax(map), −1 being the left and upper edges."""
    height, width = maps.shape[-2:]
    weights = maps.flatten(2).softmax(dim=-1).unflatten(2, (height, width))
    x = torch.linspace(-1.0, 1.0, width, device=maps.device, dtype=maps.dtype)
    y = torch.linspace(-1.0, 1.0, height, device=maps.device, dtype=maps.dtype)
    return torch.stack([(weights.sum(2) * x).sum(-1), (weights.sum(3) * y).sum(-1)], dim=-1)
