"""Attention as functions: who may see whom, scores, rotary positions, grouped key and value heads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

Angles = tuple[Float[Tensor, "#batch 1 tokens half"], Float[Tensor, "#batch 1 tokens half"]]
"""Cosines and sines that `rotate` turns queries and keys by."""


@dataclass(frozen=True)
class Mask:
    """Who may see whom. A query sees a key where everything that is given here allows it.

    Tokens of one block see each other, and a block sees all earlier ones: rising ids are causal attention, and π0 is
    prefix 0, state 1, actions 2 (arXiv 2410.24164, appendix B). `causal`, `window` and `sinks` speak of places: that of
    key i is i, that of query i is `offset` + i. A query that may see nothing sees everything, so that no number is NaN:
    its output means nothing.
    """

    query_blocks: Int[Tensor, " queries"] | None = None
    key_blocks: Int[Tensor, " keys"] | None = None
    valid: Bool[Tensor, "batch keys"] | None = None
    """Which keys may be attended to at all."""
    causal: bool = False
    """Whether a query sees no key behind its own place."""
    window: int = 0
    """How many places back a causal query sees, its own included; 0: all."""
    sinks: int = 0
    """How many of the first keys are seen beyond the window: without them a model that was trained without a window
    loses its balance (StreamingLLM, arXiv 2309.17453)."""
    offset: Int[Tensor, ""] | int = 0
    dense: Bool[Tensor, "#batch #queries #keys"] | None = None
    """All of this as one tensor, where it was made already."""

    def __post_init__(self) -> None:
        if (self.query_blocks is None) != (self.key_blocks is None):
            raise ValueError("expected the block ids of queries and of keys, got those of one alone")
        if ((self.window or self.sinks) and not self.causal) or (self.sinks and not self.window):
            raise ValueError("a window needs a causal mask, and sinks need a window")

    def of_queries(self, spans: Sequence[slice]) -> Mask:
        """A dense mask of the queries in these spans alone."""
        if self.dense is None or self.dense.shape[1] == 1:
            return self
        return Mask(dense=torch.cat([self.dense[:, span] for span in spans], dim=1))

    @property
    def is_plainly_causal(self) -> bool:
        """Whether it means nothing but that as many keys as queries are seen causally."""
        given = self.query_blocks is not None or self.valid is not None or self.window or self.dense is not None
        return self.causal and not given and isinstance(self.offset, int) and self.offset == 0

    def made_dense(self, queries: int, keys: int, device: torch.device, always: bool = False) -> Mask:
        """The same with `dense`, for attention that reads nothing else; once for all layers. Where it is plainly causal
        that is not needed, unless `always`."""
        if self.dense is not None or (self.is_plainly_causal and queries == keys and not always):
            return self
        allowed = torch.ones(1, 1, 1, dtype=torch.bool, device=device)
        if self.query_blocks is not None and self.key_blocks is not None:
            allowed = (self.query_blocks[:, None] >= self.key_blocks[None])[None]
        if self.causal:
            key = torch.arange(keys, device=device)
            back = (torch.arange(queries, device=device) + self.offset)[:, None] - key
            near = (back < self.window) | (key < self.sinks) if self.window else True
            allowed = allowed & (back >= 0) & near
        if self.valid is not None:
            allowed = allowed & self.valid[:, None]
            allowed = allowed | ~allowed.any(-1, keepdim=True)
        return replace(self, dense=allowed)


def attend(
    query: Float[Tensor, "batch heads queries head_dim"],
    key: Float[Tensor, "batch kv_heads keys head_dim"],
    value: Float[Tensor, "batch kv_heads keys head_dim"],
    mask: Mask | None,
) -> Float[Tensor, "batch heads queries head_dim"]:
    """softmax(q kᵀ / √head_dim) v over the keys that `mask` lets a query see, all where there is none. `heads` is a
    multiple of `kv_heads` (grouped-query attention, arXiv 2305.13245)."""
    grouped = query.shape[1] != key.shape[1]
    if mask is None:
        return F.scaled_dot_product_attention(query, key, value, enable_gqa=grouped)
    mask = mask.made_dense(query.shape[2], key.shape[2], query.device)
    if mask.dense is None:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=grouped)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask.dense[:, None], enable_gqa=grouped)


@dataclass(frozen=True)
class Yarn:
    """RoPE for texts `factor` times as long as the `trained_length` (YaRN, arXiv 2309.00071, section 3.3).

    What turns less than `slow` times over the trained length is interpolated, what turns more than `fast` times stays
    as it is, and in between both are mixed linearly in the number of turns.
    """

    factor: float
    trained_length: int
    slow: float = 1.0
    fast: float = 32.0

    def stretched(self, frequencies: Float[Tensor, " half"]) -> Float[Tensor, " half"]:
        """(1 − γ) θ / factor + γ θ for frequencies θ in radians a token (definition 2)."""
        turns = self.trained_length * frequencies / (2.0 * math.pi)
        kept = ((turns - self.slow) / (self.fast - self.slow)).clamp(0.0, 1.0)
        return frequencies * (kept + (1.0 - kept) / self.factor)

    @property
    def temperature(self) -> float:
        """√(1/t) = 0.1 ln(factor) + 1, by which queries and keys grow (equation 22)."""
        return 0.1 * math.log(self.factor) + 1.0


@dataclass(frozen=True)
class Rotary:
    """Rotary positions (RoPE, arXiv 2104.09864): how fast queries and keys are turned with their place."""

    base: float = 10_000.0
    scaling: Yarn | None = None

    def angles(self, positions: Int[Tensor, "#batch tokens"], head_dim: int) -> Angles:
        """cos and sin of position · base^(−2i/head_dim) for i < head_dim/2 (equation 15)."""
        exponent = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
        frequencies = self.base**-exponent
        if self.scaling is None:
            angles = positions[:, None, :, None].float() * frequencies
            return angles.cos(), angles.sin()
        angles = positions[:, None, :, None].float() * self.scaling.stretched(frequencies)
        return angles.cos() * self.scaling.temperature, angles.sin() * self.scaling.temperature


ROTARY = Rotary()


def rotate(
    x: Float[Tensor, "batch heads tokens head_dim"],
    cos: Float[Tensor, "#batch 1 tokens half"],
    sin: Float[Tensor, "#batch 1 tokens half"],
) -> Float[Tensor, "batch heads tokens head_dim"]:
    """Rotates the pairs (i, i + head_dim/2) of every head, in Gemma's and LLaMA's half-split layout."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
