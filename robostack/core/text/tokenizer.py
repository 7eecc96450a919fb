"""What a tokenizer is to the processor: texts in, numbers of a fixed length out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool, Int64


class Tokens(NamedTuple):
    """Texts as token ids in order, a row each."""

    ids: Int64[np.ndarray, "texts length"]
    valid: Bool[np.ndarray, "texts length"]
    """False behind the end of a text, where the id is 0 and means nothing."""


class Tokenizer(Protocol):
    """A frozen dataclass: its fields, as JSON, are how it is described in a checkpoint."""

    @property
    def length(self) -> int:
        """Of every text, in tokens."""
        ...

    @property
    def size(self) -> int:
        """How many ids there are: they lie in 0..size − 1."""
        ...

    def encode(self, texts: Sequence[str]) -> Tokens:
        """Raises ValueError for a text that it cannot say, or that is too long: nothing is cut."""
        ...
