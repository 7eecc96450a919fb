"""Training observations as they might also have been: with noise on the state, moved and recoloured pictures."""

from __future__ import annotations

from dataclasses import replace

import torch

from robostack.policies.protocol import Observation
from robostack.policies.settings import Augmentation
from robostack.training.pictures import jitter_colour, random_shift


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
