"""An encoder of texts, for conditions of a fixed size: the words of a text, in order, become one token."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from robostack.core.embeddings import position_embedding


class TextEncoder(nn.Module):
    """token = W₂ · meanᵢ silu(W₁ (wordᵢ + placeᵢ)) over the words of a text.

    A text is the set of its words with their places, and a sum over a set of a network's features of each element can
    tell all sets apart (arXiv 1703.06114, theorem 2). That is less than attention among the words would be, and costs
    next to nothing where a data set has few texts.
    """

    def __init__(self, vocabulary: int, length: int, width: int) -> None:
        """`length` is that of all texts, in words."""
        super().__init__()
        self.word = nn.Embedding(vocabulary, width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width, bias=False)
        self.register_buffer("places", position_embedding(length, width), persistent=False)

    def forward(
        self, ids: Int[Tensor, "batch words"], valid: Bool[Tensor, "batch words"]
    ) -> Float[Tensor, "batch width"]:
        """Zeros for a text without words."""
        features = F.silu(self.up(self.word(ids) + self.places))
        shares = valid.to(features.dtype) / valid.sum(1, keepdim=True).clamp(min=1)
        return self.down((shares[:, None] @ features)[:, 0])
