"""What a transformer is put together from: norms, feed-forwards, and the ways into attention and back out.

A part is chosen in the stream's config and holds its parameters; it knows nothing of the others. The linear layers of
the classes in HIDDEN are maps from hidden features to hidden features, which an optimiser may treat apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from robostack.kernels.linear import linear
from robostack.kernels.rms_norm import rms_norm

FeedForwardName = Literal["geglu", "swiglu", "gelu", "gelu_tanh", "relu"]
"""GEGLU with the tanh form of GELU as in Gemma, SwiGLU as in LLaMA (both arXiv 2002.05202), the exact GELU as in
DINOv2, its tanh form as in SigLIP and DiT, ReLU as in "Attention is all you need"."""
Heads = tuple[Tensor | None, Tensor, Tensor]
"""Queries, where there are any, keys and values, each (batch, heads, tokens, head_dim)."""


@dataclass(frozen=True)
class Norm:
    """Which norm, and how its scale is stored."""

    kind: Literal["rms", "layer"] = "rms"
    """x / √(mean(x²) + ε) (arXiv 1910.07467), or (x − mean) / √(variance + ε) with a bias (arXiv 1607.06450)."""
    offset: float = 1.0
    """The scale is `offset` + weight: 1 as in Gemma, 0 as in LLaMA. In bfloat16 the two cannot be turned into each
    other. That of the kind `layer` is always its weight."""
    eps: float = 1e-6

    def build(self, width: int, condition: int = 0, layer_scale: float = 0.0) -> nn.Module:
        """A module that takes tokens and their condition, and gives the normed tokens and the gate of the branch that
        follows, None where it has none. `layer_scale`: see `StreamConfig`."""
        if condition:
            return AdaptiveNorm(self, width, condition)
        return PlainNorm(self, width, layer_scale)


RMS = Norm()
"""Gemma's."""


class PlainNorm(nn.Module):
    """The norm of a stream that nothing conditions."""

    def __init__(self, norm: Norm, width: int, layer_scale: float = 0.0) -> None:
        super().__init__()
        self.norm = norm
        is_rms = norm.kind == "rms"
        self.weight = nn.Parameter(torch.full((width,), 1.0 - norm.offset if is_rms else 1.0))
        self.bias = None if is_rms else nn.Parameter(torch.zeros(width))
        self.layer_scale = nn.Parameter(torch.full((width,), layer_scale)) if layer_scale else None
        """Learned gate of the branch that follows (LayerScale, arXiv 2103.17239)."""

    def forward(
        self, x: Float[Tensor, "batch tokens width"], condition: None = None
    ) -> tuple[Float[Tensor, "batch tokens width"], Float[Tensor, " width"] | None]:
        if self.bias is None:
            return rms_norm(x, self.weight, self.norm.eps, self.norm.offset), self.layer_scale
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.norm.eps), self.layer_scale


class AdaptiveNorm(nn.Module):
    """norm(x) · (1 + scale(c)) + shift(c), and the gate of the branch that follows.

    All three are linear in the condition c (adaLN-zero of DiT, arXiv 2212.09748; adaRMS of π0.5). They start at
    zero, which makes every block the identity.
    """

    def __init__(self, norm: Norm, width: int, condition: int) -> None:
        super().__init__()
        self.norm = norm
        self.dense = nn.Linear(condition, 3 * width)
        nn.init.zeros_(self.dense.weight)
        nn.init.zeros_(self.dense.bias)

    def forward(
        self, x: Float[Tensor, "batch tokens width"], condition: Float[Tensor, "batch #tokens condition"]
    ) -> tuple[Float[Tensor, "batch tokens width"], Float[Tensor, "batch #tokens width"]]:
        scale, shift, gate = self.dense(condition).chunk(3, dim=-1)
        eps = self.norm.eps
        normed = rms_norm(x, eps=eps) if self.norm.kind == "rms" else F.layer_norm(x, x.shape[-1:], eps=eps)
        return normed * (1.0 + scale) + shift, gate


class Linear(nn.Linear):
    """nn.Linear that is fast on a CPU for a few rows too (`kernels.linear`)."""

    def forward(self, input: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        return linear(input, self.weight, self.bias)


def build_feed_forward(name: FeedForwardName, width: int, hidden: int, bias: bool) -> nn.Module:
    """A map of each token by itself, `hidden` wide inside."""
    if name == "geglu" or name == "swiglu":
        return GatedFeedForward(name, width, hidden, bias)
    return FeedForward(name, width, hidden, bias)


class GatedFeedForward(nn.Module):
    """down(a(gate(x)) · up(x)) with a = GELU or SiLU."""

    def __init__(self, name: Literal["geglu", "swiglu"], width: int, hidden: int, bias: bool) -> None:
        super().__init__()
        self.is_swiglu = name == "swiglu"
        self.gate_up = Linear(width, 2 * hidden, bias)
        self.down = Linear(hidden, width, bias)

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down((F.silu(gate) if self.is_swiglu else F.gelu(gate, approximate="tanh")) * up)


class FeedForward(nn.Module):
    """down(a(up(x))) with a = ReLU or GELU."""

    def __init__(self, activation: Literal["gelu", "gelu_tanh", "relu"], width: int, hidden: int, bias: bool) -> None:
        super().__init__()
        self.activation = activation
        self.up = Linear(width, hidden, bias)
        self.down = Linear(hidden, width, bias)

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        up = self.up(x)
        if self.activation == "relu":
            return self.down(F.relu(up))
        return self.down(F.gelu(up, approximate="tanh" if self.activation == "gelu_tanh" else "none"))


class Projections(nn.Module):
    """A stream's way into the shared heads and back out; without `queries` it is seen there, and sees nothing."""

    def __init__(self, width: int, heads: int, kv_heads: int, head_dim: int, bias: bool, queries: bool = True) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.sizes = (heads * head_dim if queries else 0, kv_heads * head_dim, kv_heads * head_dim)
        self.query_key_value = Linear(width, sum(self.sizes), bias)
        if queries:
            self.output = Linear(heads * head_dim, width, bias)

    def heads(self, x: Float[Tensor, "batch tokens width"]) -> Heads:
        """Queries, if it has any, keys and values of its tokens."""
        query, key, value = self.query_key_value(x).split(self.sizes, dim=-1)
        queries = split_heads(query, self.head_dim) if self.sizes[0] else None
        return queries, split_heads(key, self.head_dim), split_heads(value, self.head_dim)


class CrossProjections(nn.Module):
    """A stream's queries to a memory, the keys and values that the memory gives, and the way back out."""

    def __init__(self, width: int, memory_width: int, heads: int, head_dim: int, bias: bool) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.key_value = Linear(memory_width, 2 * heads * head_dim, bias)
        self.query = Linear(width, heads * head_dim, bias)
        self.output = Linear(heads * head_dim, width, bias)


HIDDEN = (Projections, CrossProjections, GatedFeedForward, FeedForward)


def split_heads(
    x: Float[Tensor, "batch tokens numbers"], head_dim: int
) -> Float[Tensor, "batch heads tokens {head_dim}"]:
    """The numbers of a token as heads of `head_dim` each."""
    return x.unflatten(-1, (-1, head_dim)).transpose(1, 2)
