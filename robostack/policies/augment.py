"""Training observations as they might also have been: with noise on the state, moved and recoloured pictures."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from robostack.core.augment import jitter_colour, random_shift
from robostack.policies.protocol import Observation


@dataclass(frozen=True)
class Augmentation:
    """What is varied in training, anew in every batch and for every sample; nothing of it in evaluation."""

    state_noise: float = 0.03
    """Deviation of the noise on the normalised state, so that small errors are answered by a way back."""
    shift: int = 0
    """Largest shift of a camera's pictures, in pixels."""
    colour: float = 0.0
    """Largest change of brightness, contrast and saturation, as a share of each."""

    def __post_init__(self) -> None:
        if self.state_noise < 0.0 or self.shift < 0 or not 0.0 <= self.colour < 1.0:
            raise ValueError(
                f"expected state_noise and shift of at least 0 and colour in 0..1, got {self.state_noise}, "
                f"{self.shift} and {self.colour}"
            )


def augment(observation: Observation, augmentation: Augmentation, generator: torch.Generator) -> Observation:
    """The observation varied; the generator must be on its device. Strength 0 draws nothing and changes nothing."""
    state, images = observation.state, observation.images
    if augmentation.state_noise:
        noise = torch.randn(state.shape, generator=generator, device=state.device, dtype=state.dtype)
        state = state + augmentation.state_noise * noise
    if augmentation.shift:
        images = {name: random_shift(frames, augmentation.shift, generator) for name, frames in images.items()}
    if augmentation.colour:
        images = {name: jitter_colour(frames, augmentation.colour, generator) for name, frames in images.items()}
    return replace(observation, state=state, images=images)
