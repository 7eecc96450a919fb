"""Flow-matching action expert on a prefix of images and text (π0, arXiv 2410.24164).

The prefix (images, task text) is encoded once; the suffix (robot state, noisy action chunk, flow time) attends to it
and is integrated from noise (t = 0) to actions (t = 1). Time conditions the expert's norms, as in π0.5
(arXiv 2504.16054). The defaults are small enough to train from scratch on a CPU.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from robostack.common.numbers import check_bounds
from robostack.core.attention import block_mask
from robostack.core.embeddings import time_embedding
from robostack.core.flow.paths import LinearPath
from robostack.core.flow.solvers import Method, integrate
from robostack.core.flow.training import TimeSampling, sample_time
from robostack.core.losses import masked_mean
from robostack.core.transformer import KeysValues, StreamConfig, Transformer, TransformerConfig
from robostack.datasets.moments import History
from robostack.policies.encoder import EncoderConfig, make_entity_encoder, make_image_encoders
from robostack.policies.protocol import AtMost, Interface, Observation, check_lengths, check_multiple, fit_to_chunk

Prediction = Literal["velocity", "data"]
# Block ids: a token sees its own block and the earlier ones.
PREFIX, STATE, ACTIONS = 0, 1, 2


@dataclass(frozen=True)
class Pi0Config:
    """Sizes of the two streams and how the flow is trained and integrated."""

    chunk_len: int = 40
    """Actions predicted at once."""
    execute_len: int = AtMost(20)
    """Actions run before the policy looks again."""
    actions_per_token: int = 10
    """Consecutive actions that share a token of the expert; divides chunk_len."""
    expert_width: int = 128
    prefix_width: int = 64
    hidden_multiple: int = 2
    """Hidden width of the gated feed-forwards, in widths."""
    depth: int = 4
    heads: int = 4
    kv_heads: int = 1
    head_dim: int = 32
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """Of the cameras' pictures."""
    prediction: Prediction = "data"
    """What the expert puts out: the clean chunk, or the velocity of the path."""
    loss: Prediction = "data"
    """Where the squared error is taken; `velocity` weighs an error of the clean chunk by 1 / (1 − t)²."""
    time_sampling: TimeSampling = "uniform"
    sample_steps: int = 10
    method: Method = "euler"
    smallest_sigma: float = 0.05
    """Bound of 1 − t where a data prediction is turned into a velocity."""

    def __post_init__(self) -> None:
        fit_to_chunk(self, "execute_len")
        check_lengths(self.chunk_len, self.execute_len)
        check_multiple("chunk_len", self.chunk_len, "actions_per_token", self.actions_per_token)
        names = (
            "expert_width",
            "prefix_width",
            "hidden_multiple",
            "heads",
            "kv_heads",
            "head_dim",
            "actions_per_token",
        )
        check_bounds(self, 1, 100_000, *names)
        check_bounds(self, 1, 1000, "depth")
        check_bounds(self, 1, 10_000, "sample_steps")
        check_bounds(self, 1e-9, 1.0, "smallest_sigma")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads must be a multiple of kv_heads, got {self.heads} and {self.kv_heads}")
        if self.prediction == "velocity" and self.loss == "data":
            raise ValueError("prediction 'velocity' has its loss on the velocity: set loss to 'velocity'")

    @property
    def history(self) -> History:
        return History()


@dataclass(frozen=True)
class Prefix:
    """The encoded prefix: per layer its keys and values, and which of its tokens are valid, (batch, tokens)."""

    cache: KeysValues
    valid: Tensor


class Pi0(nn.Module):
    """`loss` and `sample` are the policy; both encode the prefix once and run the suffix against it."""

    def __init__(self, config: Pi0Config, interface: Interface) -> None:
        super().__init__()
        self.config, self.interface = config, interface
        width, prefix_width = config.expert_width, config.prefix_width
        self.word = nn.Embedding(interface.vocabulary, prefix_width)
        self.cameras = make_image_encoders(config.encoder, interface, prefix_width)
        self.entities = make_entity_encoder(config.encoder, interface, prefix_width)
        self.state_in = nn.Linear(interface.state_dim, width)
        self.action_in = nn.Linear(config.actions_per_token * interface.action_dim, width)
        self.time_in = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.transformer = Transformer(
            TransformerConfig(
                streams=(
                    StreamConfig(prefix_width, config.hidden_multiple * prefix_width),
                    StreamConfig(width, config.hidden_multiple * width, condition=width),
                ),
                depth=config.depth,
                heads=config.heads,
                kv_heads=config.kv_heads,
                head_dim=config.head_dim,
            )
        )
        self.action_out = nn.Linear(width, config.actions_per_token * interface.action_dim)
        self.path = LinearPath()

    def loss(
        self,
        observation: Observation,
        actions: Float[Tensor, "batch chunk_len action_dim"],
        valid: Bool[Tensor, "batch chunk_len action_dim"],
        generator: torch.Generator,
    ) -> Float[Tensor, ""]:
        """E‖v̂(x_t, t) − (x₁ − x₀)‖² or E‖x̂₁(x_t, t) − x₁‖², over the valid actions."""
        noise = torch.randn(actions.shape, generator=generator, device=actions.device)
        t = sample_time(self.config.time_sampling, len(actions), generator, actions.device)
        point = self.path.sample(noise, actions, t)
        predicted = self.predict(self.encode_prefix(observation), observation.state[:, -1], point.x_t, t)
        target = point.x_1 if self.config.loss == "data" else point.velocity
        if self.config.prediction == "data" and self.config.loss == "velocity":
            predicted = self.path.velocity_from_data(point.x_t, predicted, t, self.config.smallest_sigma)
            target = self.path.velocity_from_data(point.x_t, actions, t, self.config.smallest_sigma)
        return masked_mean((predicted - target).square(), valid)

    def sample(
        self, observation: Observation, generator: torch.Generator
    ) -> Float[Tensor, "batch chunk_len action_dim"]:
        """Integrates the flow from noise drawn from `generator`, in `sample_steps` equal steps."""
        prefix, state = self.encode_prefix(observation), observation.state[:, -1]
        shape = (len(state), self.config.chunk_len, self.interface.action_dim)
        noise = torch.randn(shape, generator=generator, device=state.device)
        times = torch.linspace(0.0, 1.0, self.config.sample_steps + 1, device=state.device)
        return integrate(lambda x, t: self.velocity(prefix, state, x, t), noise, times, self.config.method)

    def velocity(self, prefix: Prefix, state: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """dx/dt of the learned flow, whatever the expert predicts."""
        predicted = self.predict(prefix, state, x_t, t)
        if self.config.prediction == "velocity":
            return predicted
        return self.path.velocity_from_data(x_t, predicted, t, self.config.smallest_sigma)

    def encode_prefix(self, observation: Observation) -> Prefix:
        """Keys and values of image, entity and text tokens, which see each other and nothing else."""
        text, inverse = observation.text, None
        if not self.interface.views:
            # Without them the prefix depends on the task alone: encode each task of the batch once.
            text, inverse = text.distinct()
        cameras = zip(self.interface.cameras, self.cameras.values(), strict=True)
        tokens = [encoder(observation.images[name][:, -1]) for name, encoder in cameras]
        seen = [
            observation.present[name][:, None].expand(-1, picture.shape[1])
            for name, picture in zip(self.interface.cameras, tokens, strict=True)
        ]
        if self.entities is not None:
            assert observation.entities is not None
            tokens.append(self.entities(observation.entities[:, -1]))
            seen.append(observation.valid[:, -1:])
        valid = torch.cat([*seen, text.valid], dim=1)
        tokens = torch.cat([*tokens, self.word(text.ids)], dim=1)
        blocks = torch.full((tokens.shape[1],), PREFIX, device=tokens.device)
        # A padding token may see the others, so that no row of the mask is empty; nothing sees it.
        mask = block_mask(blocks, blocks, valid)
        positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
        _, cache = self.transformer([tokens, None], mask, positions, [None, None])
        if inverse is None:
            return Prefix(cache, valid)
        return Prefix([(key[inverse], value[inverse]) for key, value in cache], valid[inverse])

    def predict(
        self,
        prefix: Prefix,
        state: Float[Tensor, "batch state_dim"],
        x_t: Float[Tensor, "batch chunk_len action_dim"],
        t: Float[Tensor, " batch"],
    ) -> Float[Tensor, "batch chunk_len action_dim"]:
        """The expert's output for the noisy chunk x_t at flow time t: clean chunk or velocity."""
        chunks = x_t.unflatten(1, (-1, self.config.actions_per_token)).flatten(2)
        suffix = torch.cat([self.state_in(state)[:, None], self.action_in(chunks)], dim=1)
        before, after = prefix.valid.shape[1], suffix.shape[1]
        blocks = torch.tensor([STATE] + [ACTIONS] * (after - 1), device=state.device)
        key_blocks = F.pad(blocks, (before, 0), value=PREFIX)
        valid = F.pad(prefix.valid, (0, after), value=True)
        positions = torch.arange(before, before + after, device=state.device)[None]
        condition = self.time_in(time_embedding(t, self.config.expert_width))[:, None]
        outputs, _ = self.transformer(
            [None, suffix], block_mask(blocks, key_blocks, valid), positions, [None, condition], prefix.cache
        )
        assert outputs[1] is not None
        actions = self.action_out(outputs[1][:, 1:])
        return actions.unflatten(2, (self.config.actions_per_token, -1)).flatten(1, 2)
