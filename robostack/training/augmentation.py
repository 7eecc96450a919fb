"""Training observations as they might also have been: with noise on the state, pictures moved by some pixels and in
other colours.

All draws are per sample of the batch. The steps of one sample are moved and coloured alike, so that what moves between
them is what moved before the camera.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Shaped, UInt8
from torch import Tensor

from robostack.policies.protocol import Observation
from robostack.policies.settings import Augmentation

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the brightness that is seen (Rec. 601)."""


def augment(observation: Observation, augmentation: Augmentation, generator: torch.Generator) -> Observation:
    """The observation varied; the generator must be on its device. Strength 0 draws nothing and changes nothing."""
    state, images = observation.state, observation.images
    if augmentation.state_noise:
        noise = torch.randn(state.shape, generator=generator, device=state.device, dtype=state.dtype)
        state = state + augmentation.state_noise * noise
    if augmentation.shift:
        images = {name: random_shift(frames, augmentation.shift, generator) for name, frames in images.items()}
    if augmentation.colour:
        images = {
            name: jitter_colour(frames, augmentation.colour, generator) if frames.dtype == torch.uint8 else frames
            for name, frames in images.items()  # depth has no colour
        }
    return replace(observation, state=state, images=images)


def random_shift(
    images: Shaped[Tensor, "batch obs_steps height width channels"], pixels: int, generator: torch.Generator
) -> Shaped[Tensor, "batch obs_steps height width channels"]:
    """Each sample moved by a whole number of pixels, −pixels..pixels both down and to the right; what comes in from
    outside repeats the edge (DrQ, arXiv 2004.13649, section 3.1)."""
    if pixels == 0:
        return images
    batch, steps, height, width, channels = images.shape
    device = images.device
    down, right = torch.randint(-pixels, pixels + 1, (2, batch, 1), generator=generator, device=device)
    rows = (torch.arange(height, device=device) - down).clamp(0, height - 1)
    columns = (torch.arange(width, device=device) - right).clamp(0, width - 1)
    # Rows are copied whole and only the columns are gathered byte by byte: a third less time than by pixel.
    first = torch.arange(0, batch * steps * height, height, device=device).view(batch, steps, 1)
    lines = images.reshape(-1, width * channels).index_select(0, (first + rows[:, None]).flatten())
    entries = (columns[:, :, None] * channels + torch.arange(channels, device=device)).flatten(1)[:, None]
    lines = lines.view(batch, steps * height, width * channels)
    return lines.gather(2, entries.expand(-1, steps * height, -1)).view_as(images)


def jitter_colour(
    images: UInt8[Tensor, "batch obs_steps height width 3"], strength: float, generator: torch.Generator
) -> UInt8[Tensor, "batch obs_steps height width 3"]:
    """Each sample in other colours: brightness b, contrast c and saturation s drawn from 1 − strength..1 + strength.

    With g the luma of a pixel and ḡ its mean over the sample, a pixel x becomes b (ḡ + c (g + s (x − g) − ḡ)), in
    torch's default type: in float32 the last bits decide a few roundings, differently on another processor.
    """
    if strength == 0.0:
        return images
    batch, device, dtype = len(images), images.device, torch.get_default_dtype()
    drawn = torch.rand((3, batch, 1, 1), generator=generator, device=device, dtype=torch.float32)
    brightness, contrast, saturation = (1.0 + strength * (2.0 * drawn - 1.0)).to(dtype)
    luma = torch.tensor(LUMA, device=device, dtype=dtype)
    pixels = images.reshape(batch, -1, 3).to(dtype)
    # All of it is linear in a pixel: one 3 × 3 matrix and one offset a sample.
    grey = luma[:, None].expand(3, 3)
    matrix = saturation * torch.eye(3, device=device, dtype=dtype) + (1.0 - saturation) * grey
    mean = (pixels.mean(1) @ luma)[:, None, None]
    offset = brightness * (1.0 - contrast) * mean
    coloured = torch.baddbmm(offset, pixels, brightness * contrast * matrix)
    return coloured.round_().clamp_(0.0, 255.0).to(torch.uint8).view_as(images)
