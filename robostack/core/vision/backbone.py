"""Backbones: vision transformers in their published sizes, whose weights others trained. A picture becomes one token a
patch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robostack.common.numbers import check_bounds
from robostack.core.transformer import StreamConfig, Transformer, TransformerConfig
from robostack.core.transformer_parts import FeedForwardName, Norm
from robostack.core.vision.images import (
    Colour,
    Fit,
    Interpolation,
    Pictures,
    Size,
    centre_crop,
    normalized,
    patchify,
    resize,
)


@dataclass(frozen=True)
class BackboneConfig:
    """A vision transformer (arXiv 2010.11929) with LayerNorm and biases, and the pictures that it is used to."""

    width: int
    depth: int
    """Blocks, up to the one whose output is read."""
    heads: int
    hidden: int
    """Of the feed-forwards, inside."""
    feed_forward: FeedForwardName = "gelu"
    layer_scale: float = 0.0
    """Where the learned scales of the branches start; 0: there are none."""
    registers: int = 0
    """Learned tokens beside the patches (arXiv 2309.16588), that of the class among them. They are no output."""
    final_norm: bool = True
    """Whether what is read is normed."""
    patch: int = 14
    """Pixels a side."""
    size: tuple[int, int] = (224, 224)
    """(height, width) in pixels to which pictures are brought."""
    fit: Fit = "pad"
    """Into that shape: between black bars, or stretched."""
    interpolation: Interpolation = "bilinear"
    mean: Colour = (0.5, 0.5, 0.5)
    """What is taken from red, green and blue in 0..1."""
    deviation: Colour = (0.5, 0.5, 0.5)
    """What the rest is divided by."""

    def __post_init__(self) -> None:
        check_bounds(self, 1, 100_000, "width", "heads", "hidden", "patch")
        check_bounds(self, 1, 1000, "depth")
        check_bounds(self, 0, 1000, "registers")
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads = {self.heads}, got {self.width}")
        if min(self.size) < 1 or any(pixels % self.patch for pixels in self.size):
            raise ValueError(f"size must be multiples of patch = {self.patch} pixels, got {self.size}")
        if min(self.deviation) <= 0.0:
            raise ValueError(f"deviation must be above 0, got {self.deviation}")


class Backbone(nn.Module):
    """Pictures of any size to `tokens` tokens, row by row.

    A published place of the class token is part of its register here, since both are constants that are added.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens = config.size[0] // config.patch * (config.size[1] // config.patch)
        width = config.width
        self.patch_in = nn.Linear(3 * config.patch**2, width)
        self.places = nn.Parameter(0.02 * torch.randn(self.tokens, width))
        self.registers = nn.Parameter(0.02 * torch.randn(config.registers, width)) if config.registers else None
        stream = StreamConfig(
            width,
            config.hidden,
            norm=Norm("layer"),
            feed_forward=config.feed_forward,
            bias=True,
            layer_scale=config.layer_scale,
            final_norm=config.final_norm,
        )
        heads = config.heads
        self.transformer = Transformer(TransformerConfig((stream,), config.depth, heads, heads, width // heads))

    def forward(self, image: Pictures) -> Float[Tensor, "batch tokens token_width"]:
        config = self.config
        image = resize(image, config.size, config.fit, config.interpolation)
        pixels = normalized(image, config.mean, config.deviation, self.places.dtype)
        x = self.patch_in(patchify(pixels, config.patch)) + self.places
        if self.registers is not None:
            x = torch.cat([self.registers.expand(len(x), -1, -1), x], dim=1)
        (encoded,) = self.transformer([x], None, None)
        assert encoded is not None
        return encoded[:, config.registers :]


class BackboneEncoder(nn.Module):
    """A backbone's tokens, each projected to the width of who reads them (as PaliGemma's, arXiv 2407.07726)."""

    def __init__(self, config: BackboneConfig, width: int, crop: Size | None = None) -> None:
        super().__init__()
        self.crop = crop
        self.backbone = Backbone(config)
        self.tokens = self.backbone.tokens
        self.token = nn.Linear(config.width, width)

    def forward(self, image: Pictures) -> Float[Tensor, "batch tokens token_width"]:
        return self.token(self.backbone(centre_crop(image, self.crop)))


SIGLIP_SO400M = BackboneConfig(1152, 27, 16, 4304, "gelu_tanh")
"""SigLIP so400m/14 (arXiv 2303.15343), as in PaliGemma."""
DINOV2_L = BackboneConfig(
    1024, 24, 16, 4096, layer_scale=1e-5, registers=5, mean=(0.485, 0.456, 0.406), deviation=(0.229, 0.224, 0.225)
)
"""DINOv2 L/14 with four registers (arXiv 2304.07193, 2309.16588)."""
