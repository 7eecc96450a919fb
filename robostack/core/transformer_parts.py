"""What a transformer is put together from: norms, feed-forwards, and the ways into attention and back out.

A part is chosen by name in the stream's config and holds its parameters; it knows nothing of the others. The linear
layers of the classes in HIDDEN are maps from hidden features to hidden features, which an optimiser may treat apart.
"""

from __future__ import annotations

from typing import Literal, assert_never

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from robostack.kernels.linear import linear
from robostack.kernels.rms_norm import rms_norm

NormName = Literal["rms", "layer"]
FeedForwardName = Literal["geglu", "gelu", "relu"]
Heads = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values, each (batch, heads, tokens, head_dim)."""


def build_norm(name: NormName, width: int, condition: int) -> nn.Module:
    """A norm takes tokens and their condition, and gives the normed tokens and the gate of the branch that follows, if
    it has one."""
    if condition:
        return AdaptiveNorm(name, width, condition)
    if name == "rms":
        return RMSNorm(width)
    if name == "layer":
        return LayerNorm(width)
    assert_never(name)


class RMSNorm(nn.Module):
    """The plain norm of a stream that nothing conditions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(
        self, x: Float[Tensor, "batch tokens width"], condition: None
    ) -> tuple[Float[Tensor, "batch tokens width"], None]:
        return rms_norm(x, self.weight), None


class LayerNorm(nn.Module):
    """(x − mean) / deviation · weight + bias (arXiv 1607.06450)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(
        self, x: Float[Tensor, "batch tokens width"], condition: None
    ) -> tuple[Float[Tensor, "batch tokens width"], None]:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias), None


class AdaptiveNorm(nn.Module):
    """norm(x) · (1 + scale(c)) + shift(c), and the gate of the branch that follows.

    All three are linear in the condition c (adaLN-zero of DiT, arXiv 2212.09748; adaRMS of π0.5). They start at
    zero, which makes every block the identity.
    """

    def __init__(self, name: NormName, width: int, condition: int) -> None:
        super().__init__()
        self.name: NormName = name
        self.dense = nn.Linear(condition, 3 * width)
        nn.init.zeros_(self.dense.weight)
        nn.init.zeros_(self.dense.bias)

    def forward(
        self, x: Float[Tensor, "batch tokens width"], condition: Float[Tensor, "batch #tokens condition"]
    ) -> tuple[Float[Tensor, "batch tokens width"], Float[Tensor, "batch #tokens width"]]:
        scale, shift, gate = self.dense(condition).chunk(3, dim=-1)
        normed = rms_norm(x) if self.name == "rms" else F.layer_norm(x, x.shape[-1:])
        return normed * (1.0 + scale) + shift, gate


class Linear(nn.Linear):
    """nn.Linear that is fast on a CPU for a few rows too (`kernels.linear`)."""

    def forward(self, input: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        return linear(input, self.weight, self.bias)


def build_feed_forward(name: FeedForwardName, width: int, hidden: int, bias: bool) -> nn.Module:
    """A map of each token by itself, `hidden` wide inside."""
    return GatedFeedForward(width, hidden, bias) if name == "geglu" else FeedForward(name, width, hidden, bias)


class GatedFeedForward(nn.Module):
    """down(gelu(gate(x)) · up(x))  (GEGLU, arXiv 2002.05202), with the tanh form of GELU as in Gemma."""

    def __init__(self, width: int, hidden: int, bias: bool) -> None:
        super().__init__()
        self.gate_up = Linear(width, 2 * hidden, bias)
        self.down = Linear(hidden, width, bias)

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.gelu(gate, approximate="tanh") * up)


class FeedForward(nn.Module):
    """down(relu(up(x))) as in "Attention is all you need", or with the tanh form of GELU as in ViT and DiT."""

    def __init__(self, activation: Literal["gelu", "relu"], width: int, hidden: int, bias: bool) -> None:
        super().__init__()
        self.activation = activation
        self.up = Linear(width, hidden, bias)
        self.down = Linear(hidden, width, bias)

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        up = self.up(x)
        return self.down(F.relu(up) if self.activation == "relu" else F.gelu(up, approximate="tanh"))


class Projections(nn.Module):
    """A stream's way into the shared heads and back out."""

    def __init__(self, width: int, heads: int, kv_heads: int, head_dim: int, bias: bool) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.sizes = (heads * head_dim, kv_heads * head_dim, kv_heads * head_dim)
        self.query_key_value = Linear(width, sum(self.sizes), bias)
        self.output = Linear(self.sizes[0], width, bias)

    def heads(
        self,
        x: Float[Tensor, "batch tokens width"],
        embedding: Float[Tensor, "#batch tokens width"] | None = None,
        wanted: slice | None = None,
    ) -> Heads:
        """Queries and keys of x + `embedding` and values of x; queries of the `wanted` tokens alone."""
        if embedding is None and wanted is None:
            parts = self.query_key_value(x).split(self.sizes, dim=-1)
        else:
            placed = x if embedding is None else x + embedding
            sources = (placed if wanted is None else placed[:, wanted], placed, x)
            weights, bias = self.query_key_value.weight.split(self.sizes), self.query_key_value.bias
            biases = (None,) * 3 if bias is None else bias.split(self.sizes)
            parts = [linear(*arguments) for arguments in zip(sources, weights, biases, strict=True)]
        query, key, value = (_split_heads(part, self.head_dim) for part in parts)
        return query, key, value


class CrossProjections(nn.Module):
    """A stream's queries to a memory, and the way back out."""

    def __init__(self, width: int, heads: int, head_dim: int, bias: bool) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.query = Linear(width, heads * head_dim, bias)
        self.output = Linear(heads * head_dim, width, bias)

    def queries(
        self, x: Float[Tensor, "batch tokens width"], embedding: Float[Tensor, "#batch tokens width"] | None
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        return _split_heads(self.query(x if embedding is None else x + embedding), self.head_dim)


class MemoryProjections(nn.Module):
    """The keys and values that a memory gives to those who look at it."""

    def __init__(self, width: int, kv_heads: int, head_dim: int, bias: bool) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.key_value = Linear(width, 2 * kv_heads * head_dim, bias)

    def forward(
        self, memory: Float[Tensor, "batch tokens width"], embedding: Float[Tensor, "#batch tokens width"] | None
    ) -> tuple[Float[Tensor, "batch heads tokens head_dim"], Float[Tensor, "batch heads tokens head_dim"]]:
        """Keys of memory + `embedding`, values of the memory."""
        if embedding is None:
            key, value = self.key_value(memory).chunk(2, dim=-1)
        else:
            weights, bias = self.key_value.weight.chunk(2), self.key_value.bias
            biases = (None, None) if bias is None else bias.chunk(2)
            key, value = linear(memory + embedding, weights[0], biases[0]), linear(memory, weights[1], biases[1])
        return _split_heads(key, self.head_dim), _split_heads(value, self.head_dim)


HIDDEN = (Projections, CrossProjections, MemoryProjections, GatedFeedForward, FeedForward)


def _split_heads(x: Tensor, head_dim: int) -> Tensor:
    return x.unflatten(-1, (-1, head_dim)).transpose(1, 2)
