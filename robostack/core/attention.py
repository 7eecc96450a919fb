"""Attention as functions: scores under a mask of block ids, rotary positions, grouped key/value heads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


def attend(
    query: Float[Tensor, "batch heads queries head_dim"],
    key: Float[Tensor, "batch kv_heads keys head_dim"],
    value: Float[Tensor, "batch kv_heads keys head_dim"],
    mask: Bool[Tensor, "#batch queries keys"] | None,
) -> Float[Tensor, "batch heads queries head_dim"]:
    """softmax(q kᵀ / √head_dim) v; `mask` is true where a query may look. `heads` is a multiple of `kv_heads`
    (grouped-query attention, arXiv 2305.13245). A query that may look nowhere gives zeros or NaN: give it itself.
    """
    grouped = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=None if mask is None else mask[:, None], enable_gqa=grouped
    )


def block_mask(
    query_blocks: Int[Tensor, " queries"],
    key_blocks: Int[Tensor, " keys"],
    key_valid: Bool[Tensor, "batch keys"] | None = None,
) -> Bool[Tensor, "#batch queries keys"]:
    """True where a query's block id is at least the key's and the key is valid.

    Tokens of one block see each other; a block sees all earlier ones. One id for all is full attention, rising ids
    are causal attention, and π0 is prefix 0, state 1, actions 2 (arXiv 2410.24164, appendix B).
    """
    mask = (query_blocks[:, None] >= key_blocks[None, :])[None]
    return mask if key_valid is None else mask & key_valid[:, None, :]


def rotary_angles(
    positions: Int[Tensor, "#batch tokens"], head_dim: int, base: float = 10_000.0
) -> tuple[Float[Tensor, "#batch 1 tokens half"], Float[Tensor, "#batch 1 tokens half"]]:
    """cos and sin of position · base^(−2i/head_dim) for i < head_dim/2 (RoPE, arXiv 2104.09864, eq. 15)."""
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
    angles = positions[:, None, :, None].float() * base**-exponent
    return angles.cos(), angles.sin()


def rotate(
    x: Float[Tensor, "batch heads tokens head_dim"],
    cos: Float[Tensor, "#batch 1 tokens half"],
    sin: Float[Tensor, "#batch 1 tokens half"],
) -> Float[Tensor, "batch heads tokens head_dim"]:
    """Rotates the pairs (i, i + head_dim/2) of every head, in Gemma's and LLaMA's half-split layout."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
