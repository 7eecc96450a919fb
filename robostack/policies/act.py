"""Action chunking with transformers: a conditional variational auto-encoder of action chunks (ACT, arXiv 2304.13705).

In training the posterior, a transformer over (class token, state, actions), tells the decoder by a small latent how
this demonstration goes about it. The decoder, a transformer that encodes latent and observation and whose learned
queries read one action each from that memory, reconstructs the chunk. At run time the latent is zero, the prior's
mean: one observation, one chunk. Chunks that overlap may be averaged in time; that is the runtime's business.

What is not needed is not computed: the posterior's last block has the class token for its only query, and the decoder
starts at the memory. In the paper its tokens are zeros that attend to each other first (as in DETR, arXiv 2005.12872):
alike as they are, they learn one and the same vector by that, which is a parameter here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from robostack.common.numbers import check_bounds
from robostack.core.attention import Mask, attend
from robostack.core.embeddings import position_embedding
from robostack.core.losses import masked_mean
from robostack.core.transformer_parts import (
    CrossProjections,
    FeedForward,
    Norm,
    Projections,
    split_heads,
)
from robostack.datasets.moments import History
from robostack.kernels.linear import linear
from robostack.policies.encoder import EncoderConfig, ObservationEncoder
from robostack.policies.protocol import AtMost, Interface, Observation, check_lengths, fit_to_chunk

LAYER_NORM = Norm("layer", eps=1e-5)


@dataclass(frozen=True)
class ActConfig:
    """Sizes of the three transformers and the weight of the latent. Those of the paper: chunk_len 100, width 512,
    hidden 3200, heads 8, posterior_depth 4, encoder_depth 4, decoder_depth 1 (7 in the text; but its code used the
    first), order post_norm, kl_weight 10."""

    chunk_len: int = 40
    """Actions predicted at once."""
    execute_len: int = AtMost(20)
    """Actions run before the policy observes again."""
    width: int = 128
    """Of a token; a multiple of 2 heads."""
    hidden: int = 256
    """Of the feed-forwards."""
    heads: int = 4
    posterior_depth: int = 2
    """0: no posterior and no latent, the chunk is regressed from the observation alone."""
    encoder_depth: int = 2
    decoder_depth: int = 2
    latent: int = 32
    kl_weight: float = 10.0
    """How much the posterior's divergence from the prior counts beside the mean absolute error."""
    order: Literal["pre_norm", "post_norm"] = "pre_norm"
    state_parts: tuple[int, ...] = ()
    """Lengths of the parts of the state that get a token each instead of what `encoder` gives: no text, no cameras."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)

    def __post_init__(self) -> None:
        fit_to_chunk(self, "execute_len")
        check_lengths(self.chunk_len, self.execute_len)
        check_bounds(self, 1, 100_000, "width", "hidden", "heads", "latent")
        check_bounds(self, 0, 1000, "posterior_depth")
        check_bounds(self, 1, 1000, "encoder_depth", "decoder_depth")
        check_bounds(self, 0.0, 1e9, "kl_weight")
        if not all(part > 0 for part in self.state_parts):
            raise ValueError(f"state_parts must be positive, got {self.state_parts}")
        if self.width % (2 * self.heads):
            raise ValueError(f"width must be a multiple of 2 heads = {2 * self.heads}, got {self.width}")

    @property
    def history(self) -> History:
        return History()


class Act(nn.Module):
    """`loss` asks the posterior for a latent, `sample` takes zero; both decode it beside the observation."""

    def __init__(self, config: ActConfig, interface: Interface) -> None:
        super().__init__()
        self.config, self.interface = config, interface
        width = config.width
        if config.posterior_depth:
            self.posterior = Posterior(config, interface)
        self.observe = (
            StateTokens(config.state_parts, interface, width)
            if config.state_parts
            else ObservationEncoder(config.encoder, interface, config.history.length, width)
        )
        self.latent_in = nn.Linear(config.latent, width)
        self.places = nn.Parameter(torch.randn(1, 1 + self.observe.tokens, width))
        """Where a token of the memory stands: added to queries and keys."""
        self.encoder = Layers(config, config.encoder_depth)
        self.queries = nn.Parameter(torch.randn(1, config.chunk_len, width))
        """What tells the actions of a chunk apart: added to queries and keys."""
        self.start = nn.Parameter(torch.zeros(1, 1, width))
        """The token that all of them are at first."""
        self.decoder = Layers(config, config.decoder_depth, has_memory=True)
        # In the order post_norm DETR's decoder norms what its last block has normed.
        self.decoder_norm = nn.LayerNorm(width) if config.order == "post_norm" else nn.Identity()
        self.action_out = nn.Linear(width, interface.action_dim)

    def loss(
        self,
        observation: Observation,
        actions: Float[Tensor, "batch chunk_len action_dim"],
        valid: Bool[Tensor, "batch chunk_len action_dim"],
        generator: torch.Generator,
    ) -> Float[Tensor, ""]:
        """E|â − a| over the valid numbers + kl_weight · KL(posterior ‖ N(0, 1))."""
        if not self.config.posterior_depth:
            return masked_mean((self.decode(observation, None) - actions).abs(), valid)
        mean, log_variance = self.posterior(observation.state[:, -1], actions, valid.any(dim=-1))
        noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        predicted = self.decode(observation, mean + (0.5 * log_variance).exp() * noise)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).sum(dim=-1).mean()
        return masked_mean((predicted - actions).abs(), valid) + self.config.kl_weight * divergence

    def sample(
        self, observation: Observation, generator: torch.Generator
    ) -> Float[Tensor, "batch chunk_len action_dim"]:
        """The chunk of the latent zero; nothing is drawn."""
        return self.decode(observation, None)

    def decode(
        self, observation: Observation, latent: Float[Tensor, "batch latent"] | None
    ) -> Float[Tensor, "batch chunk_len action_dim"]:
        """The chunk for what is observed and a latent, None for zero."""
        observed, valid = self.observe(observation)
        first = self.latent_in.bias.expand(len(observed), -1) if latent is None else self.latent_in(latent)
        tokens = torch.cat([first[:, None], observed], dim=1)
        mask = Mask(valid=F.pad(valid, (1, 0), value=True)).made_dense(1, tokens.shape[1], tokens.device)
        memory = Memory(self.encoder(tokens, self.places, mask), self.places, mask)
        outputs = self.decoder(self.start.expand_as(self.queries), self.queries, None, memory)
        return self.action_out(self.decoder_norm(outputs))


class Posterior(nn.Module):
    """q(latent | state, actions): mean and logarithm of the variance of a diagonal Gaussian."""

    def __init__(self, config: ActConfig, interface: Interface) -> None:
        super().__init__()
        self.class_token = nn.Parameter(torch.randn(1, 1, config.width))
        self.state_in = nn.Linear(interface.state_dim, config.width)
        self.action_in = nn.Linear(interface.action_dim, config.width)
        self.register_buffer("places", position_embedding(2 + config.chunk_len, config.width)[None], persistent=False)
        self.transformer = Layers(config, config.posterior_depth)
        self.out = nn.Linear(config.width, 2 * config.latent)

    def forward(
        self,
        state: Float[Tensor, "batch state_dim"],
        actions: Float[Tensor, "batch chunk_len action_dim"],
        valid: Bool[Tensor, "batch chunk_len"],
    ) -> tuple[Float[Tensor, "batch latent"], Float[Tensor, "batch latent"]]:
        """Looks at the valid actions."""
        first = self.class_token.expand(len(state), -1, -1)
        tokens = torch.cat([first, self.state_in(state)[:, None], self.action_in(actions)], dim=1)
        mask = Mask(valid=F.pad(valid, (2, 0), value=True)).made_dense(1, tokens.shape[1], tokens.device)
        outputs = self.transformer(tokens, self.places, mask, wanted=1)
        mean, log_variance = self.out(outputs[:, 0]).chunk(2, dim=-1)
        return mean, log_variance


class Memory(NamedTuple):
    """What a decoder looks at: tokens (batch, tokens, width), where they stand, and which of them it may see."""

    tokens: Tensor
    places: Tensor
    mask: Mask


class Layers(nn.Module):
    """Transformer layers as DETR has them (arXiv 2005.12872): where a token stands is added to queries and keys in each
    of them, and each branch is normed before it or after it."""

    def __init__(self, config: ActConfig, depth: int, has_memory: bool = False) -> None:
        super().__init__()
        # All queries of the first layer of a decoder are alike: they have nothing to tell each other.
        self.layers = nn.ModuleList(
            Layer(config, not (has_memory and index == 0), has_memory) for index in range(depth)
        )
        self.norm = LAYER_NORM.build(config.width) if config.order == "pre_norm" else None

    def forward(
        self,
        x: Float[Tensor, "batch tokens width"],
        places: Float[Tensor, "1 tokens width"],
        mask: Mask | None,
        memory: Memory | None = None,
        wanted: int | None = None,
    ) -> Float[Tensor, "_ wanted width"]:
        """The first `wanted` tokens, all by default; the last layer computes no others."""
        for layer in self.layers:
            x = layer(x, places, mask, memory, wanted if layer is self.layers[-1] else None)
        return x if self.norm is None else self.norm(x)[0]


class Layer(nn.Module):
    """Attention among the tokens, attention to the memory if there is one, and feed-forward. In the order `pre_norm`
    x ← x + branch(norm(x)), in `post_norm` x ← norm(x + branch(x))."""

    def __init__(self, config: ActConfig, attends: bool, has_memory: bool) -> None:
        super().__init__()
        width, heads, head_dim = config.width, config.heads, config.width // config.heads
        self.is_pre_norm = config.order == "pre_norm"
        self.projections = Projections(width, heads, heads, head_dim, bias=True) if attends else None
        self.attention_norm = LAYER_NORM.build(width) if attends else None
        self.cross = CrossProjections(width, width, heads, head_dim, bias=True) if has_memory else None
        self.cross_norm = LAYER_NORM.build(width) if has_memory else None
        self.feed_forward = FeedForward("relu", width, config.hidden, bias=True)
        self.feed_forward_norm = LAYER_NORM.build(width)

    def forward(
        self, x: Tensor, places: Tensor, mask: Mask | None, memory: Memory | None, wanted: int | None
    ) -> Tensor:
        if self.projections is not None and self.attention_norm is not None:
            normed = self._before(self.attention_norm, x)
            attended = _among(self.projections, normed, places, mask, wanted)
            x = self._after(self.attention_norm, x[:, :wanted] + attended)
        if self.cross is not None and self.cross_norm is not None and memory is not None:
            attended = _to_memory(self.cross, self._before(self.cross_norm, x), places, memory)
            x = self._after(self.cross_norm, x + attended)
        normed = self._before(self.feed_forward_norm, x)
        return self._after(self.feed_forward_norm, x + self.feed_forward(normed))

    def _before(self, norm: nn.Module, x: Tensor) -> Tensor:
        return norm(x)[0] if self.is_pre_norm else x

    def _after(self, norm: nn.Module, x: Tensor) -> Tensor:
        return x if self.is_pre_norm else norm(x)[0]


def _among(
    projections: Projections, x: Tensor, places: Tensor, mask: Mask | None, wanted: int | None
) -> Float[Tensor, "batch wanted width"]:
    """Queries and keys of x + places, values of x."""
    placed, layer, sizes = x + places, projections.query_key_value, projections.sizes
    sources = (placed[:, :wanted], placed, x)
    parts = zip(sources, layer.weight.split(sizes), layer.bias.split(sizes), strict=True)
    query, key, value = (split_heads(linear(*part), projections.head_dim) for part in parts)
    return projections.output(attend(query, key, value, mask).transpose(1, 2).flatten(2))


def _to_memory(cross: CrossProjections, x: Tensor, places: Tensor, memory: Memory) -> Tensor:
    """Queries of x + places, keys of the memory and its places, values of the memory. Where x is the same for the whole
    batch, its queries are computed once."""
    sources = (memory.tokens + memory.places, memory.tokens)
    parts = zip(sources, cross.key_value.weight.chunk(2), cross.key_value.bias.chunk(2), strict=True)
    key, value = (split_heads(linear(*part), cross.head_dim) for part in parts)
    query = split_heads(cross.query(x + places), cross.head_dim).expand(len(key), -1, -1, -1)
    return cross.output(attend(query, key, value, memory.mask).transpose(1, 2).flatten(2))


class StateTokens(nn.Module):
    """One token for each part of the present state."""

    def __init__(self, parts: tuple[int, ...], interface: Interface, width: int) -> None:
        """Raises ValueError when the parts don't make up the state, or there are cameras."""
        super().__init__()
        if sum(parts) != interface.state_dim:
            raise ValueError(f"state_parts {parts} must make up the state, which has {interface.state_dim} numbers")
        if interface.views:
            there = ", ".join([*interface.cameras, *["entities"] * (interface.entities is not None)])
            raise ValueError(f"state_parts see no cameras, and there are {there}: leave it ()")
        self.parts, self.tokens = parts, len(parts)
        self.state_in = nn.ModuleList(nn.Linear(part, width) for part in parts)

    def forward(
        self, observation: Observation
    ) -> tuple[Float[Tensor, "batch tokens width"], Bool[Tensor, "batch tokens"]]:
        parts = observation.state[:, -1].split(self.parts, dim=-1)
        tokens = torch.stack([layer(part) for layer, part in zip(self.state_in, parts, strict=True)], dim=1)
        return tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
