"""A ConvNet that says where things are: a picture becomes one token of image points."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robostack.core.vision.images import Pictures, Size, centre_crop, centred


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


def spatial_softmax(maps: Float[Tensor, "batch maps height width"]) -> Float[Tensor, "batch maps 2"]:
    """The mean position (x, y) in [−1, 1] under softmax(map), −1 being the left and upper edges."""
    height, width = maps.shape[-2:]
    weights = maps.flatten(2).softmax(dim=-1).unflatten(2, (height, width))
    x = torch.linspace(-1.0, 1.0, width, device=maps.device, dtype=maps.dtype)
    y = torch.linspace(-1.0, 1.0, height, device=maps.device, dtype=maps.dtype)
    return torch.stack([(weights.sum(2) * x).sum(-1), (weights.sum(3) * y).sum(-1)], dim=-1)
