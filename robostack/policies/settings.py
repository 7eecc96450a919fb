"""What training a policy is told on the command line. Imports no torch: flags and wrong names answer at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from robostack.core.text.prompt import Prompt
from robostack.datasets.statistics import SMALLEST_SCALE, Normalization


@dataclass(frozen=True)
class Scaling:
    """How numbers are brought to unit scale."""

    normalization: Normalization = "mean_std"
    """Mean and deviation to 0 and 1; minimum and maximum, or 1 % and 99 % quantile, to -1 and 1."""
    smallest_scale: float = SMALLEST_SCALE
    """An angle (in radians) or a number without unit that varies less is scaled as if it varied as much, and so is what
    never changes. Entries in other units, or in none, are held to a share of their own size instead."""
    relative_actions: bool = False
    """Predict actions relative to `observation.state` at the start of their chunk."""
    absolute_entries: tuple[str, ...] = ()
    """Entries of the action that stay absolute when the others are relative, such as grippers."""


@dataclass(frozen=True)
class TextSettings:
    """How task texts become tokens."""

    tokenizer: Path | None = None
    """File of a tokenizer: a SentencePiece model, or Hugging Face's tokenizer.json. By default tokens are the words of
    the data's tasks."""
    text_length: int = 48
    """Tokens of every text, padding included, with such a file; by words it is that of the longest task."""
    text_before: tuple[str, ...] = ()
    """Tokens of the file that are put before every text, such as <bos>."""
    text_after: tuple[str, ...] = ()
    """Tokens of the file that are put after it."""
    prompt: Prompt = field(default_factory=Prompt)

    def __post_init__(self) -> None:
        if self.text_length < 1:
            raise ValueError(f"text_length must be at least 1, got {self.text_length}")


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
