"""One transformer: blocks act on a list of token streams that attend jointly.

Every stream has weights of its own (norms, projections, feed-forward); queries, keys and values of all streams meet
in one attention under one mask. One stream is a plain encoder or decoder; two are π0's vision-language prefix and
action expert (arXiv 2410.24164). A stream that is left out of a call may be answered for by a cache of the keys and
values it had: the prefix is then encoded once and each flow step runs the suffix alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from robostack.core.attention import attend, rotary_angles, rotate
from robostack.kernels.rms_norm import rms_norm

KeysValues = list[tuple[Tensor, Tensor]]
"""Per layer the rotated keys and the values, each (batch, kv_heads, tokens, head_dim)."""


@dataclass(frozen=True)
class StreamConfig:
    """One stream: its token width, its feed-forward's hidden width, and the width of the vector that conditions its
    norms (0: plain norms)."""

    width: int
    hidden: int
    condition: int = 0


@dataclass(frozen=True)
class TransformerConfig:
    """Head layout is shared, as all streams attend together."""

    streams: tuple[StreamConfig, ...]
    depth: int
    heads: int
    kv_heads: int
    head_dim: int
    rotary_base: float = 10_000.0


class Transformer(nn.Module):
    """Pre-norm blocks (RMSNorm, rotary positions, grouped-query attention, gated feed-forward) and final norms."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norms = nn.ModuleList(_norm(stream) for stream in config.streams)

    def forward(
        self,
        streams: Sequence[Float[Tensor, "batch _ _"] | None],
        mask: Bool[Tensor, "#batch queries keys"] | None,
        positions: Int[Tensor, "#batch queries"],
        conditions: Sequence[Float[Tensor, "batch _ _"] | None],
        cache: KeysValues | None = None,
    ) -> tuple[list[Tensor | None], KeysValues]:
        """Tokens of each stream (batch, tokens, width), None where a stream is absent, through all blocks.

        `mask` and `positions` speak of the tokens of the present streams in order, as queries; the keys are those of
        `cache`, if any, and then the queries' own. A conditioned stream needs its vector, (batch, 1 or tokens, width).
        Returns the streams, normed, and the keys and values of this call's own tokens, to be a later call's cache.
        """
        rotary = rotary_angles(positions, self.config.head_dim, self.config.rotary_base)
        tokens, keys_values = list(streams), []
        for index, layer in enumerate(self.layers):
            tokens, own = layer(tokens, mask, rotary, conditions, None if cache is None else cache[index])
            keys_values.append(own)
        outputs = [
            None if x is None else norm(x, condition)[0]
            for x, norm, condition in zip(tokens, self.norms, conditions, strict=True)
        ]
        return outputs, keys_values


class Block(nn.Module):
    """x ← x + gate · Attention(norm(x)); x ← x + gate · FeedForward(norm(x)), for each stream."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention_norms = nn.ModuleList(_norm(stream) for stream in config.streams)
        self.projections = nn.ModuleList(Projections(stream, config) for stream in config.streams)
        self.feed_forward_norms = nn.ModuleList(_norm(stream) for stream in config.streams)
        self.feed_forwards = nn.ModuleList(FeedForward(stream) for stream in config.streams)

    def forward(
        self,
        streams: list[Tensor | None],
        mask: Tensor | None,
        rotary: tuple[Tensor, Tensor],
        conditions: Sequence[Tensor | None],
        cache: tuple[Tensor, Tensor] | None,
    ) -> tuple[list[Tensor | None], tuple[Tensor, Tensor]]:
        present = [index for index, x in enumerate(streams) if x is not None]
        gates: dict[int, Tensor | None] = {}
        heads: list[tuple[Tensor, Tensor, Tensor]] = []
        for index in present:
            normed, gates[index] = self.attention_norms[index](streams[index], conditions[index])
            heads.append(self._projections(index).heads(normed))
        query, key, value = (_joined(parts) for parts in zip(*heads, strict=True))
        query, key = rotate(query, *rotary), rotate(key, *rotary)
        own = (key, value)
        if cache is not None:
            key, value = torch.cat([cache[0], key], dim=2), torch.cat([cache[1], value], dim=2)
        attended = attend(query, key, value, mask).transpose(1, 2).flatten(2)

        outputs = list(streams)
        lengths = [part[0].shape[2] for part in heads]
        for index, part in zip(present, attended.split(lengths, dim=1), strict=True):
            x = _add(streams[index], self._projections(index).output(part), gates[index])
            normed, gate = self.feed_forward_norms[index](x, conditions[index])
            outputs[index] = _add(x, self.feed_forwards[index](normed), gate)
        return outputs, own

    def _projections(self, stream: int) -> Projections:
        projections = self.projections[stream]
        assert isinstance(projections, Projections)  # what a ModuleList's type forgets
        return projections


class Projections(nn.Module):
    """A stream's way into the shared heads and back out."""

    def __init__(self, stream: StreamConfig, config: TransformerConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.sizes = (config.heads * config.head_dim, *[config.kv_heads * config.head_dim] * 2)
        self.query_key_value = nn.Linear(stream.width, sum(self.sizes), bias=False)
        self.output = nn.Linear(self.sizes[0], stream.width, bias=False)

    def heads(self, x: Float[Tensor, "batch tokens width"]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (batch, heads, tokens, head_dim)."""
        query, key, value = (
            part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for part in self.query_key_value(x).split(self.sizes, dim=-1)
        )
        return query, key, value


class FeedForward(nn.Module):
    """down(gelu(gate(x)) · up(x))  (GEGLU, arXiv 2002.05202), with the tanh form of GELU as in Gemma."""

    def __init__(self, stream: StreamConfig) -> None:
        super().__init__()
        self.gate_up = nn.Linear(stream.width, 2 * stream.hidden, bias=False)
        self.down = nn.Linear(stream.hidden, stream.width, bias=False)

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.gelu(gate, approximate="tanh") * up)


class RMSNorm(nn.Module):
    """The plain norm of a stream that nothing conditions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(
        self, x: Float[Tensor, "batch tokens width"], condition: None
    ) -> tuple[Float[Tensor, "batch tokens width"], None]:
        return rms_norm(x, self.weight), None


class AdaptiveRMSNorm(nn.Module):
    """rms_norm(x) · (1 + scale(c)) + shift(c), and the gate of the branch that follows.

    All three are linear in the condition c (adaLN-zero of DiT, arXiv 2212.09748; adaRMS of π0.5). They start at
    zero, which makes every block the identity.
    """

    def __init__(self, width: int, condition: int) -> None:
        super().__init__()
        self.dense = nn.Linear(condition, 3 * width)
        nn.init.zeros_(self.dense.weight)
        nn.init.zeros_(self.dense.bias)

    def forward(
        self, x: Float[Tensor, "batch tokens width"], condition: Float[Tensor, "batch #tokens condition"]
    ) -> tuple[Float[Tensor, "batch tokens width"], Float[Tensor, "batch #tokens width"]]:
        scale, shift, gate = self.dense(condition).chunk(3, dim=-1)
        return rms_norm(x) * (1.0 + scale) + shift, gate


def _norm(stream: StreamConfig) -> nn.Module:
    return AdaptiveRMSNorm(stream.width, stream.condition) if stream.condition else RMSNorm(stream.width)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=2)


def _add(x: Tensor | None, branch: Tensor, gate: Tensor | None) -> Tensor:
    assert x is not None
    return x + (branch if gate is None else gate * branch)
