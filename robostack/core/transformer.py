"""One transformer: blocks act on a list of token streams that attend jointly.

Every stream has weights of its own (norms, projections, feed-forward); queries, keys and values of all streams meet
in one attention under one mask. One stream is a plain encoder or decoder; two are π0's vision-language prefix and
action expert (arXiv 2410.24164). A stream that is left out of a call is stood in for by a cache of the keys and values
that it had: the prefix is encoded once, and each flow step or each new token runs the rest.

What a stream is made of is chosen from `transformer_parts`; where its tokens stand, and who sees whom, is passed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robostack.core.attention import ROTARY, Angles, Mask, Rotary, attend, rotate
from robostack.core.cache import Cache
from robostack.core.transformer_parts import RMS, FeedForwardName, Heads, Norm, Projections, build_feed_forward


@dataclass(frozen=True)
class StreamConfig:
    """One stream: its widths and the parts that it is made of."""

    width: int
    """Of a token."""
    hidden: int
    """Of the feed-forward, inside."""
    condition: int = 0
    """Width of the vector that conditions the norms; 0: plain norms."""
    norm: Norm = RMS
    feed_forward: FeedForwardName = "geglu"
    bias: bool = False
    """Whether projections and feed-forward have one."""
    layer_scale: float = 0.0
    """Where the learned scales of a plain stream's branches start (LayerScale, arXiv 2103.17239); 0: there are none."""
    outputs: bool = True
    """Whether its tokens are wanted at the end. Where they are not, the last block takes keys and values of them and
    no more."""
    final_norm: bool = True
    """Whether its outputs are normed."""


@dataclass(frozen=True)
class TransformerConfig:
    """Head layout is shared, as all streams attend together."""

    streams: tuple[StreamConfig, ...]
    depth: int
    heads: int
    kv_heads: int
    head_dim: int
    rotary: Rotary = ROTARY

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads must be a multiple of kv_heads, got {self.heads} and {self.kv_heads}")
        if any(stream.condition and stream.layer_scale for stream in self.streams):
            raise ValueError("a conditioned stream's norms gate its branches: expected no layer_scale beside them")


class Transformer(nn.Module):
    """Pre-norm blocks and final norms."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(Block(config, index == config.depth - 1) for index in range(config.depth))
        self.norms = nn.ModuleList(
            stream.norm.build(stream.width, stream.condition) if stream.outputs and stream.final_norm else nn.Identity()
            for stream in config.streams
        )

    def forward(
        self,
        streams: Sequence[Float[Tensor, "batch _ _"] | None],
        mask: Mask | None,
        positions: Int[Tensor, "#batch queries"] | None,
        conditions: Sequence[Float[Tensor, "batch _ _"] | None] | None = None,
        cache: Cache | None = None,
    ) -> list[Tensor | None]:
        """Tokens of each stream (batch, tokens, width) through all blocks; None where a stream is absent, or has no
        outputs.

        `mask` and `positions` speak of the tokens of the present streams in order, as queries. Keys are the same
        tokens; or, with a `cache`, all of its places, of which this call's tokens take those from its length on.
        Without positions nothing is rotated. A conditioned stream needs its vector, (batch, 1 or tokens, width).
        """
        lengths = [0 if x is None else x.shape[1] for x in streams]
        queries, like = sum(lengths), next(x for x in streams if x is not None)
        keys = queries if cache is None else cache.capacity
        skips = not all(stream.outputs for stream, length in zip(self.config.streams, lengths, strict=True) if length)
        angles = None if positions is None else self.config.rotary.angles(positions, self.config.head_dim)
        call = _Call(
            None if mask is None else mask.made_dense(queries, keys, like.device, skips),
            angles,
            angles,
            [None] * len(streams) if conditions is None else conditions,
            cache,
            None if cache is None else cache.places(queries),
        )
        tokens = list(streams)
        for index, layer in enumerate(self.layers):
            if skips and index == len(self.layers) - 1 and (spans := self._spans(lengths)):
                call = call.narrowed(spans)
            tokens = layer(tokens, call, index)
        parts = zip(tokens, self.config.streams, self.norms, call.conditions, strict=True)
        return [
            norm(x, condition)[0] if x is not None and stream.final_norm else x for x, stream, norm, condition in parts
        ]

    def _spans(self, lengths: Sequence[int]) -> list[slice]:
        """Where the tokens of streams with outputs stand among all of a call."""
        ends = list(accumulate(lengths))
        streams = zip(self.config.streams, lengths, ends, strict=True)
        return [slice(end - length, end) for stream, length, end in streams if stream.outputs and length]

    def empty_cache(self, like: Tensor, batch: int, capacity: int) -> Cache:
        """Room for `capacity` tokens in every layer, of the type and on the device of `like`."""
        config = self.config
        sizes = (config.depth, batch, config.kv_heads, capacity, config.head_dim)
        return Cache.empty(*sizes, dtype=like.dtype, device=like.device)


def plain_transformer(width: int, depth: int, heads: int) -> Transformer:
    """One stream of tokens, feed-forwards of twice its width, and keys and values for every head."""
    stream = StreamConfig(width, 2 * width)
    return Transformer(TransformerConfig((stream,), depth, heads, kv_heads=heads, head_dim=width // heads))


class _Call(NamedTuple):
    """What blocks are told in one call of the transformer."""

    mask: Mask | None
    query_angles: Angles | None
    key_angles: Angles | None
    conditions: Sequence[Tensor | None]
    """By stream."""
    cache: Cache | None
    places: Int[Tensor, " tokens"] | None
    """Of this call's tokens in the cache."""

    def narrowed(self, spans: Sequence[slice]) -> _Call:
        """The call of a block whose only queries are the tokens in these spans."""
        mask = None if self.mask is None else self.mask.of_queries(spans)
        angles = self.query_angles
        if angles is not None:
            cos, sin = (torch.cat([part[:, :, span] for span in spans], dim=2) for part in angles)
            angles = cos, sin
        return self._replace(mask=mask, query_angles=angles)


class Block(nn.Module):
    """Two branches for each stream, attention among the streams and feed-forward: x ← x + gate · branch(norm(x))."""

    def __init__(self, config: TransformerConfig, is_last: bool) -> None:
        super().__init__()
        sizes = (config.heads, config.kv_heads, config.head_dim)
        self.goes_on = [stream.outputs or not is_last for stream in config.streams]
        """Which streams come out of this block; the others are only seen in it."""
        pairs = list(zip(config.streams, self.goes_on, strict=True))
        self.attention_norms = nn.ModuleList(_norm(stream) for stream in config.streams)
        self.projections = nn.ModuleList(Projections(stream.width, *sizes, stream.bias, on) for stream, on in pairs)
        self.feed_forward_norms = nn.ModuleList(_norm(stream) if on else nn.Identity() for stream, on in pairs)
        self.feed_forwards = nn.ModuleList(
            build_feed_forward(stream.feed_forward, stream.width, stream.hidden, stream.bias) if on else nn.Identity()
            for stream, on in pairs
        )

    def forward(self, streams: list[Tensor | None], call: _Call, layer: int) -> list[Tensor | None]:
        present = [(index, x) for index, x in enumerate(streams) if x is not None]
        heads, gates = zip(*(self.read(index, x, call.conditions[index]) for index, x in present), strict=True)
        tokens: list[Tensor | None] = [None] * len(streams)
        for (index, x), gate, seen in zip(present, gates, self.attend(heads, call, layer), strict=True):
            if seen is not None:
                x = _added(x, self._projections(index).output(seen), gate)
                normed, gate = self.feed_forward_norms[index](x, call.conditions[index])
                tokens[index] = _added(x, self.feed_forwards[index](normed), gate)
        return tokens

    def read(self, index: int, x: Tensor, condition: Tensor | None) -> tuple[Heads, Tensor | None]:
        """A stream's queries, keys and values, and the gate of its attention branch."""
        normed, gate = self.attention_norms[index](x, condition)
        return self._projections(index).heads(normed), gate

    def attend(self, heads: Sequence[Heads], call: _Call, layer: int) -> list[Tensor | None]:
        """What each stream's queries see in all streams, or in the cache: (batch, tokens, heads · head_dim)."""
        key, value = _joined([key for _, key, _ in heads]), _joined([value for _, _, value in heads])
        if call.key_angles is not None:
            key = rotate(key, *call.key_angles)
        if call.cache is not None and call.places is not None:
            key, value = call.cache.write(layer, call.places, key, value)
        queries = [query for query, _, _ in heads if query is not None]
        if not queries:
            return [None] * len(heads)
        query = _joined(queries)
        if call.query_angles is not None:
            query = rotate(query, *call.query_angles)
        seen = attend(query, key, value, call.mask).transpose(1, 2).flatten(2)
        parts = iter(seen.split([query.shape[2] for query in queries], dim=1))
        return [None if query is None else next(parts) for query, _, _ in heads]

    def _projections(self, stream: int) -> Projections:
        projections = self.projections[stream]
        assert isinstance(projections, Projections)  # what a ModuleList's type forgets
        return projections


def _norm(stream: StreamConfig) -> nn.Module:
    return stream.norm.build(stream.width, stream.condition, stream.layer_scale)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=2)


def _added(x: Tensor, branch: Tensor, gate: Tensor | None) -> Tensor:
    return x + (branch if gate is None else gate * branch)
