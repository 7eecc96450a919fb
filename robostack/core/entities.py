"""An encoder of sets: a world of some entities becomes one token, whatever their order and number."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from robostack.core.attention import Mask
from robostack.core.transformer import plain_transformer


class EntityEncoder(nn.Module):
    """A transformer over the entities of a world, without positions, and the mean of what it made of them.

    An entity is a row of numbers, of which the first is 1; a row of zeros is an empty place, which nothing looks at.
    Numbers come as they are, from thousandths to thousands, and pass through sign(x) ln(1 + |x|) (symlog, arXiv
    2301.04104) in place of statistics, which would speak of how many places are empty.
    """

    tokens = 1

    def __init__(self, features: int, width: int, inner_width: int = 64, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.entity_in = nn.Sequential(
            nn.Linear(features, 2 * inner_width), nn.SiLU(), nn.Linear(2 * inner_width, inner_width)
        )
        self.transformer = plain_transformer(inner_width, depth, heads)
        self.token = nn.Linear(inner_width, width)

    def forward(self, entities: Float[Tensor, "batch places features"]) -> Float[Tensor, "batch 1 token_width"]:
        there = entities[..., 0] > 0.5
        numbers = entities.sign() * entities.abs().log1p()
        (encoded,) = self.transformer([self.entity_in(numbers)], Mask(valid=there), None)
        assert encoded is not None
        total = encoded.masked_fill(~there[..., None], 0.0).sum(dim=1)
        return self.token(total / there.sum(dim=1, keepdim=True).clamp(min=1))[:, None]
