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
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from robostack.common.numbers import check_bounds
from robostack.core.embeddings import position_embedding
from robostack.core.losses import masked_mean
from robostack.core.transformer import StreamConfig, Transformer, TransformerConfig
from robostack.datasets.moments import History
from robostack.policies.encoder import EncoderConfig, ObservationEncoder
from robostack.policies.protocol import AtMost, Interface, Observation, check_lengths, fit_to_chunk


@dataclass(frozen=True)
class ActConfig:
    """Sizes of the three transformers and the weight of the latent. Those of the paper: chunk_len 100, width 512,
    hidden 3200, heads 8, posterior_depth 4, encoder_depth 4, decoder_depth 1 (7 in the text; but its code used the
    first), order post_norm, kl_weight 10."""

    chunk_len: int = 40
    """Actions predicted at once."""
    execute_len: int = AtMost(20)
    """Actions run before the policy looks again."""
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
        self.encoder = _transformer(config, config.encoder_depth)
        self.queries = nn.Parameter(torch.randn(1, config.chunk_len, width))
        """What tells the actions of a chunk apart: added to queries and keys."""
        self.start = nn.Parameter(torch.zeros(1, 1, width))
        """The token that all of them are at first."""
        self.decoder = _transformer(config, config.decoder_depth, memory=width)
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
        valid = F.pad(valid, (1, 0), value=True)[:, None]
        (memory,), _ = self.encoder(
            [tokens], valid.expand(-1, tokens.shape[1], -1), None, [None], embeddings=[self.places]
        )
        assert memory is not None
        (outputs,), _ = self.decoder(
            [self.start.expand_as(self.queries)],
            None,
            None,
            [None],
            embeddings=[self.queries],
            memory=self.decoder.remember(memory, self.places),
            memory_mask=valid,
        )
        return self.action_out(self.decoder_norm(outputs))


class Posterior(nn.Module):
    """q(latent | state, actions): mean and logarithm of the variance of a diagonal Gaussian."""

    def __init__(self, config: ActConfig, interface: Interface) -> None:
        super().__init__()
        self.class_token = nn.Parameter(torch.randn(1, 1, config.width))
        self.state_in = nn.Linear(interface.state_dim, config.width)
        self.action_in = nn.Linear(interface.action_dim, config.width)
        self.register_buffer("places", position_embedding(2 + config.chunk_len, config.width)[None], persistent=False)
        self.transformer = _transformer(config, config.posterior_depth)
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
        valid = F.pad(valid, (2, 0), value=True)[:, None].expand(-1, tokens.shape[1], -1)
        (outputs,), _ = self.transformer([tokens], valid, None, [None], embeddings=[self.places], wanted=[slice(0, 1)])
        assert outputs is not None
        mean, log_variance = self.out(outputs[:, 0]).chunk(2, dim=-1)
        return mean, log_variance


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


def _transformer(config: ActConfig, depth: int, memory: int = 0) -> Transformer:
    return Transformer(
        TransformerConfig(
            streams=(StreamConfig(config.width, config.hidden, norm="layer", feed_forward="relu", bias=True),),
            depth=depth,
            heads=config.heads,
            kv_heads=config.heads,
            head_dim=config.width // config.heads,
            order=config.order,
            memory=memory,
            attention_from=1 if memory else 0,
        )
    )
