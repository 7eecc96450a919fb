"""One transformer: blocks act on a list of token streams that attend jointly.

Every stream has weights of its own (norms, projections, feed-forward); queries, keys and values of all streams meet
in one attention under one mask. One stream is a plain encoder or decoder; two are π0's vision-language prefix and
action expert (arXiv 2410.24164). A stream that is left out of a call may be answered for by a cache of the keys and
values it had: the prefix is then encoded once and each flow step runs the suffix alone.

Streams may also look at a memory, the output of another network, by cross-attention (the decoder of arXiv 1706.03762).
What a stream is made of is chosen by name from `transformer_parts`; where its tokens stand is passed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from robostack.core.attention import attend, rotary_angles, rotate
from robostack.core.transformer_parts import (
    CrossProjections,
    FeedForwardName,
    MemoryProjections,
    NormName,
    Projections,
    build_feed_forward,
    build_norm,
)

KeysValues = list[tuple[Tensor, Tensor]]
"""Per layer the rotated keys and the values, each (batch, kv_heads, tokens, head_dim)."""


@dataclass(frozen=True)
class StreamConfig:
    """One stream: its widths and the parts that it is made of."""

    width: int
    """Of a token."""
    hidden: int
    """Of the feed-forward, inside."""
    condition: int = 0
    """Width of the vector that conditions the norms; 0: plain norms."""
    norm: NormName = "rms"
    feed_forward: FeedForwardName = "geglu"
    bias: bool = False
    """Whether projections and feed-forward have one."""


@dataclass(frozen=True)
class TransformerConfig:
    """Head layout is shared, as all streams attend together."""

    streams: tuple[StreamConfig, ...]
    depth: int
    heads: int
    kv_heads: int
    head_dim: int
    rotary_base: float = 10_000.0
    order: Literal["pre_norm", "post_norm"] = "pre_norm"
    """Each branch norms its input, and the last tokens are normed; or each sum of tokens and branch is normed."""
    memory: int = 0
    """Width of the memory's tokens; 0: there is none."""
    attention_from: int = 0
    """The first block in which the streams attend to themselves; those before only look at the memory."""

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads must be a multiple of kv_heads, got {self.heads} and {self.kv_heads}")
        if self.attention_from and not self.memory:
            raise ValueError(f"expected a memory for the {self.attention_from} blocks without attention to look at")
        if self.order == "post_norm" and any(stream.condition for stream in self.streams):
            raise ValueError("a conditioned stream needs the order 'pre_norm': its norms gate the branch that follows")


class Transformer(nn.Module):
    """Blocks and, in the order `pre_norm`, final norms."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(Block(config, index >= config.attention_from) for index in range(config.depth))
        if config.order == "pre_norm":
            self.norms = _norms(config)

    def forward(
        self,
        streams: Sequence[Float[Tensor, "batch _ _"] | None],
        mask: Bool[Tensor, "#batch queries keys"] | None,
        positions: Int[Tensor, "#batch queries"] | None,
        conditions: Sequence[Float[Tensor, "batch _ _"] | None],
        cache: KeysValues | None = None,
        embeddings: Sequence[Float[Tensor, "#batch _ _"] | None] | None = None,
        memory: KeysValues | None = None,
        memory_mask: Bool[Tensor, "#memories #queries memory_tokens"] | None = None,
        wanted: Sequence[slice | None] | None = None,
    ) -> tuple[list[Tensor | None], KeysValues]:
        """Tokens of each stream (batch, tokens, width), None where a stream is absent, through all blocks.

        `mask` and `positions` speak of the tokens of the present streams in order, as queries; the keys are those of
        `cache`, if any, and then the queries' own. A conditioned stream needs its vector, (batch, 1 or tokens, width).
        Positions rotate queries and keys; `embeddings`, one a stream, are added to its queries and keys in every block
        (as in DETR, arXiv 2005.12872). Either may be left out.
        `memory` comes from `remember`. Streams of batch 1 before a memory of batch B are broadcast where they first
        look at it: what does not depend on the memory is computed once.
        `wanted` says which tokens of each stream's output are; the last block computes no others.
        Returns the streams, and the keys and values of this call's own tokens, to be a later call's cache.
        """
        if (memory is None) != (self.config.memory == 0):
            raise ValueError(f"the config's memory is {self.config.memory} wide: expected memory in the call iff not 0")
        present = [x for x in streams if x is not None]
        rotary = None if positions is None else rotary_angles(positions, self.config.head_dim, self.config.rotary_base)
        absent = [None] * len(streams)
        call = _Call(mask, rotary, rotary, conditions, embeddings or absent, memory_mask, absent)
        tokens, keys_values = list(streams), []
        for index, layer in enumerate(self.layers):
            if wanted is not None and index == len(self.layers) - 1:
                call = call.narrowed(wanted, [0 if x is None else x.shape[1] for x in streams], present[0].device)
            tokens, own = layer(
                tokens, call, None if cache is None else cache[index], None if memory is None else memory[index]
            )
            keys_values.append(own)
        if self.config.order == "pre_norm":
            tokens = [
                None if x is None else norm(x, _part(condition, part))[0]
                for x, norm, condition, part in zip(tokens, self.norms, conditions, call.wanted, strict=True)
            ]
        return tokens, keys_values

    def remember(
        self,
        memory: Float[Tensor, "batch tokens width"],
        embedding: Float[Tensor, "#batch tokens width"] | None = None,
    ) -> KeysValues:
        """Each block's keys and values of a memory, whose keys have `embedding` added, for any number of calls."""
        return [layer.memory(memory, embedding) for layer in self.layers if isinstance(layer, Block)]


def plain_transformer(width: int, depth: int, heads: int) -> Transformer:
    """One stream of tokens, feed-forwards of twice its width, and keys and values for every head."""
    stream = StreamConfig(width, 2 * width)
    return Transformer(TransformerConfig((stream,), depth, heads, kv_heads=heads, head_dim=width // heads))


class Block(nn.Module):
    """Three branches for each stream: attention among the streams, attention to the memory if there is one, and
    feed-forward. In the order `pre_norm` x ← x + gate · branch(norm(x)), in `post_norm` x ← norm(x + branch(x))."""

    def __init__(self, config: TransformerConfig, attends: bool) -> None:
        super().__init__()
        self.attends = attends
        self.pre_norm = config.order == "pre_norm"
        sizes = (config.heads, config.kv_heads, config.head_dim)
        streams = config.streams
        if attends:
            self.attention_norms = _norms(config)
            self.projections = nn.ModuleList(Projections(stream.width, *sizes, stream.bias) for stream in streams)
        if config.memory:
            self.memory = MemoryProjections(config.memory, config.kv_heads, config.head_dim, streams[0].bias)
            self.cross_norms = _norms(config)
            self.cross_projections = nn.ModuleList(
                CrossProjections(stream.width, config.heads, config.head_dim, stream.bias) for stream in streams
            )
        self.feed_forward_norms = _norms(config)
        self.feed_forwards = nn.ModuleList(
            build_feed_forward(stream.feed_forward, stream.width, stream.hidden, stream.bias) for stream in streams
        )

    def forward(
        self,
        streams: list[Tensor | None],
        call: _Call,
        cache: tuple[Tensor, Tensor] | None,
        memory: tuple[Tensor, Tensor] | None,
    ) -> tuple[list[Tensor | None], tuple[Tensor, Tensor]]:
        tokens = {index: x for index, x in enumerate(streams) if x is not None}
        if self.attends:
            own = self._attend(tokens, call, cache)
        else:
            tokens = {index: x[:, call.wanted[index] or slice(None)] for index, x in tokens.items()}
            own = (_nothing(tokens), _nothing(tokens))
        if memory is not None:
            self._look(tokens, call, memory)
        for index, x in tokens.items():
            norm, condition = self.feed_forward_norms[index], _part(call.conditions[index], call.wanted[index])
            normed, gate = self._enter(norm, x, condition)
            tokens[index] = self._leave(norm, x, self.feed_forwards[index](normed), gate)
        return [tokens.get(index) for index in range(len(streams))], own

    def _attend(
        self, tokens: dict[int, Tensor], call: _Call, cache: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """The branch of attention among the streams, on `tokens` in place; gives their keys and values."""
        gates: dict[int, Tensor | None] = {}
        heads: list[tuple[Tensor, Tensor, Tensor]] = []
        for index, x in tokens.items():
            normed, gates[index] = self._enter(self.attention_norms[index], x, call.conditions[index])
            heads.append(self._projections(index).heads(normed, call.embeddings[index], call.wanted[index]))
        query, key, value = (_joined(parts) for parts in zip(*heads, strict=True))
        if call.query_rotary is not None and call.rotary is not None:
            query, key = rotate(query, *call.query_rotary), rotate(key, *call.rotary)
        own = (key, value)
        if cache is not None:
            key, value = torch.cat([cache[0], key], dim=2), torch.cat([cache[1], value], dim=2)
        attended = attend(query, key, value, call.mask).transpose(1, 2).flatten(2)
        lengths = [part[0].shape[2] for part in heads]
        for index, part in zip(list(tokens), attended.split(lengths, dim=1), strict=True):
            x, gate = tokens[index], gates[index]
            if (wanted := call.wanted[index]) is not None:
                x, gate = x[:, wanted], _part(gate, wanted)
            tokens[index] = self._leave(self.attention_norms[index], x, self._projections(index).output(part), gate)
        return own

    def _look(self, tokens: dict[int, Tensor], call: _Call, memory: tuple[Tensor, Tensor]) -> None:
        """The branch of attention to the memory, on `tokens` in place."""
        key, value = memory
        for index, x in tokens.items():
            norm, projections = self.cross_norms[index], self.cross_projections[index]
            assert isinstance(projections, CrossProjections)
            wanted = call.wanted[index]
            normed, gate = self._enter(norm, x, _part(call.conditions[index], wanted))
            query = projections.queries(normed, _part(call.embeddings[index], wanted))
            mask = None if call.memory_mask is None else call.memory_mask.expand(-1, query.shape[2], -1)
            attended = attend(query.expand(len(key), -1, -1, -1), key, value, mask).transpose(1, 2).flatten(2)
            tokens[index] = self._leave(norm, x, projections.output(attended), gate)

    def _enter(self, norm: nn.Module, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return norm(x, condition) if self.pre_norm else (x, None)

    def _leave(self, norm: nn.Module, x: Tensor, branch: Tensor, gate: Tensor | None) -> Tensor:
        if self.pre_norm:
            return x + (branch if gate is None else gate * branch)
        return norm(x + branch, None)[0]

    def _projections(self, stream: int) -> Projections:
        projections = self.projections[stream]
        assert isinstance(projections, Projections)  # what a ModuleList's type forgets
        return projections


class _Call(NamedTuple):
    """What all blocks are told in one call of the transformer; lists are by stream."""

    mask: Tensor | None
    query_rotary: tuple[Tensor, Tensor] | None
    rotary: tuple[Tensor, Tensor] | None
    conditions: Sequence[Tensor | None]
    embeddings: Sequence[Tensor | None]
    memory_mask: Tensor | None
    wanted: Sequence[slice | None]

    def narrowed(self, wanted: Sequence[slice | None], lengths: Sequence[int], device: torch.device) -> _Call:
        """The call of a block whose only queries are the `wanted` tokens of streams of these lengths."""
        starts = [sum(lengths[:index]) for index in range(len(lengths))]
        rows = torch.cat(
            [
                torch.arange(start, start + length, device=device)[part or slice(None)]
                for start, length, part in zip(starts, lengths, wanted, strict=True)
            ]
        )
        mask = None if self.mask is None else self.mask[:, rows]
        rotary = None if self.rotary is None else (self.rotary[0][:, :, rows], self.rotary[1][:, :, rows])
        return self._replace(mask=mask, query_rotary=rotary, wanted=wanted)


def _norms(config: TransformerConfig) -> nn.ModuleList:
    return nn.ModuleList(build_norm(stream.norm, stream.width, stream.condition) for stream in config.streams)


def _nothing(tokens: dict[int, Tensor]) -> Tensor:
    """Keys or values of no token."""
    return next(iter(tokens.values())).new_zeros(0, 0, 0, 0)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=2)


def _part(x: Tensor | None, wanted: slice | None) -> Tensor | None:
    """The wanted tokens of what is one a token, or one for all of them."""
    return x if x is None or wanted is None or x.shape[1] == 1 else x[:, wanted]
