"""How a policy sees: one sequence of tokens for the task and for the state, pictures and entities of every step.

All policies take their encoders from `make_image_encoders` and `make_entity_encoder`; all but π0, whose prefix and
expert have tokens of different widths, take everything from `ObservationEncoder`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, assert_never

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from robostack.common.numbers import check_bounds
from robostack.core.entities import EntityEncoder
from robostack.core.text.encoder import TextEncoder
from robostack.core.vision.backbone import DINOV2_L, SIGLIP_SO400M, BackboneConfig, BackboneEncoder
from robostack.core.vision.images import Size
from robostack.core.vision.keypoints import KeypointEncoder
from robostack.core.vision.vit import PatchEncoder
from robostack.policies.protocol import Interface, Observation


@dataclass(frozen=True)
class EncoderConfig:
    """The image encoders, and that of entities."""

    vision: Literal["keypoints", "vit", "siglip", "dinov2"] = "keypoints"
    """A ConvNet with spatial softmax, or a vision transformer that is read in the same way: one token a picture. Or a
    backbone, with one token a patch."""
    shared: bool = False
    """Whether all cameras have one encoder, or each its own."""
    crop: tuple[int, int] | None = None
    """(height, width) in pixels of the middle of every picture that is looked at; all of it by default. The middle of
    a wide camera is a narrow camera."""
    keypoints: int = 32
    """Image points that a picture is described by."""
    channels: tuple[int, ...] = (32, 32, 32)
    """Of the ConvNet's layers, in multiples of 8."""
    patch: int = 8
    """Pixels a side of the transformer's patches."""
    patch_width: int = 64
    """Width of a patch's token, in multiples of 4 · patch_heads."""
    patch_depth: int = 2
    patch_heads: int = 4
    siglip: BackboneConfig = SIGLIP_SO400M
    dinov2: BackboneConfig = DINOV2_L
    entity_width: int = 64
    """Width of an entity's token, in multiples of 2 · entity_heads."""
    entity_depth: int = 2
    entity_heads: int = 4

    def __post_init__(self) -> None:
        check_bounds(
            self, 1, 100_000, "keypoints", "patch", "patch_width", "patch_heads", "entity_width", "entity_heads"
        )
        check_bounds(self, 1, 1000, "patch_depth", "entity_depth")
        if self.crop is not None and min(self.crop) < 1:
            raise ValueError(f"crop must be at least 1x1 pixels, got {self.crop}")
        if not 0 < len(self.channels) <= 64 or any(not 8 <= count <= 100_000 or count % 8 for count in self.channels):
            raise ValueError(f"channels must be multiples of 8, got {self.channels}")
        if self.patch_width % (4 * self.patch_heads):
            raise ValueError(f"patch_width must be a multiple of {4 * self.patch_heads}, got {self.patch_width}")
        if self.entity_width % (2 * self.entity_heads):
            raise ValueError(f"entity_width must be a multiple of {2 * self.entity_heads}, got {self.entity_width}")


ImageEncoder = KeypointEncoder | PatchEncoder | BackboneEncoder
"""Pictures of a batch to `tokens` tokens each."""


def make_image_encoder(config: EncoderConfig, size: Size, width: int, planes: int = 3) -> ImageEncoder:
    """The encoder of one camera of (height, width) = `size` and `planes` values a pixel: pictures to `tokens` tokens of
    `width` numbers.

    Raises ValueError when the crop is larger than the picture, or what is left does not suit the encoder.
    """
    check_crop(config, size)
    match config.vision:
        case "keypoints":
            return KeypointEncoder(width, config.channels, config.keypoints, config.crop, planes)
        case "vit":
            return PatchEncoder(
                size,
                width,
                config.patch,
                config.patch_width,
                config.patch_depth,
                config.patch_heads,
                config.keypoints,
                config.crop,
                planes,
            )
        case "siglip" | "dinov2":
            return BackboneEncoder(config.siglip if config.vision == "siglip" else config.dinov2, width, config.crop)
    assert_never(config.vision)


def check_crop(config: EncoderConfig, size: Size) -> None:
    """Raises ValueError when the crop is larger than a picture of (height, width) = `size`."""
    height, width_px = config.crop or size
    if height > size[0] or width_px > size[1]:
        raise ValueError(
            f"a camera of {size[0]}x{size[1]} pixels has no middle of {height}x{width_px}: set a smaller crop"
        )


def make_image_encoders(config: EncoderConfig, interface: Interface, width: int) -> nn.ModuleDict:
    """The encoder of each camera, in the interface's order, or the one that they share. A camera may have any name:
    what none of torch's modules may be called is escaped.

    Raises ValueError where cameras cannot share what `vision` names.
    """
    kinds = {name: (size, interface.planes(name)) for name, size in interface.cameras.items()}
    if not config.shared or not kinds:
        made = {name: make_image_encoder(config, size, width, planes) for name, (size, planes) in kinds.items()}
        return nn.ModuleDict({module_key(name): encoder for name, encoder in made.items()})
    if config.vision in ("keypoints", "vit") and len(set(kinds.values())) > 1:
        told = ", ".join(f"{name} {height}x{across}x{planes}" for name, ((height, across), planes) in kinds.items())
        raise ValueError(f"cameras that share {config.vision} must be alike, got {told}: leave shared out")
    first, *others = kinds.values()
    for size, _ in others:
        check_crop(config, size)
    return nn.ModuleDict({"shared": make_image_encoder(config, first[0], width, first[1])})


def encoder_of_each(cameras: nn.ModuleDict, count: int) -> list[ImageEncoder]:
    """That of each of so many cameras, of what `make_image_encoders` made."""
    encoders = [_encoder(module) for module in cameras.values()]
    return encoders if len(encoders) == count else encoders * count


def encode_images(cameras: nn.ModuleDict, images: Sequence[Tensor]) -> list[Tensor]:
    """The tokens (batch, tokens, width) of each camera's pictures; what one encoder can take together it takes at
    once."""
    encoders = encoder_of_each(cameras, len(images))
    if len(images) > len(cameras) and len({frames.shape for frames in images}) == 1:
        return list(encoders[0](torch.cat(list(images))).chunk(len(images)))
    return [encoder(frames) for encoder, frames in zip(encoders, images, strict=True)]


def module_key(name: str) -> str:
    """The name itself for almost all; as in an address where it has a dot, is empty or a word of torch's own, such as
    `type`. Different names have different keys."""
    key = name.replace("%", "%25").replace(".", "%2E")
    if key and not hasattr(_NO_MODULES, key):
        return key
    return f"%{ord(key[0]):02X}{key[1:]}" if key else "%"


_NO_MODULES = nn.ModuleDict()


def make_entity_encoder(config: EncoderConfig, interface: Interface, width: int) -> EntityEncoder | None:
    """The encoder of a world's entities to one token of `width` numbers, where they are observed."""
    if interface.entities is None:
        return None
    features = interface.entities[1]
    return EntityEncoder(features, width, config.entity_width, config.entity_depth, config.entity_heads)


class ObservationEncoder(nn.Module):
    """Tokens, in this order: the state at each observation step, oldest first; the task; of each camera, the picture at
    each step; the entities at each step.

    Each step has an embedding that is added to its tokens, so that a reader need not know the order.
    """

    def __init__(self, config: EncoderConfig, interface: Interface, obs_steps: int, width: int) -> None:
        super().__init__()
        self.cameras = make_image_encoders(config, interface, width)
        self._names = tuple(interface.cameras)
        self.entities = make_entity_encoder(config, interface, width)
        self.state_in = nn.Sequential(nn.Linear(interface.state_dim, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
        self.text = TextEncoder(interface.vocabulary, interface.words, width)
        self.look = nn.Parameter(0.02 * torch.randn(obs_steps, width))
        encoders = encoder_of_each(self.cameras, len(self._names))
        self.views = [view.tokens for view in [*encoders, *([] if self.entities is None else [self.entities])]]
        """How many tokens a step has of each camera, and of the entities."""
        self.tokens = obs_steps + 1 + obs_steps * sum(self.views)
        """How many tokens there are."""

    def forward(
        self, observation: Observation
    ) -> tuple[Float[Tensor, "batch tokens width"], Bool[Tensor, "batch tokens"]]:
        """The tokens, and which of them are valid.

        A camera that the robot does not have, and a task without words, give zeros that are not valid. A step before
        the episode's start is not valid either, but holds what the observation repeats there: a reader that takes no
        mask sees a robot at rest.
        """
        batch, steps = observation.valid.shape
        text, which = observation.text.distinct()
        tokens = [self.state_in(observation.state) + self.look, self.text(text.ids, text.valid)[which, None]]
        valid = [observation.valid, observation.text.valid.any(1, keepdim=True)]
        frames = [observation.images[name].flatten(0, 1) for name in self._names]
        for name, encoded in zip(self._names, encode_images(self.cameras, frames), strict=True):
            present = observation.present[name][:, None]
            features = (encoded.unflatten(0, (batch, steps)) + self.look[:, None]).flatten(1, 2)
            tokens.append(features.masked_fill(~present[..., None], 0.0))
            valid.append((present & observation.valid).repeat_interleave(encoded.shape[1], dim=1))
        if self.entities is not None:
            assert observation.entities is not None
            features = self.entities(observation.entities.flatten(0, 1)).unflatten(0, (batch, steps))
            tokens.append((features + self.look[:, None]).flatten(1, 2))
            valid.append(observation.valid)
        return torch.cat(tokens, dim=1), torch.cat(valid, dim=1)


def _encoder(module: nn.Module) -> ImageEncoder:
    assert isinstance(module, ImageEncoder)  # what a ModuleDict's type forgets
    return module
