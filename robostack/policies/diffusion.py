"""Diffusion policy: action chunks by denoising (arXiv 2303.04137), with its U-Net or a diffusion transformer.

Both networks predict on the same path, DDPM's squared-cosine noising steps, and any of the solvers samples. Time runs
from 0 (noise) to 1 (data): the paper's noising step k of N is the time 1 − (k + 1)/N.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from robostack.common.numbers import check_bounds
from robostack.core.embeddings import step_embedding
from robostack.core.flow.guidance import clipped
from robostack.core.flow.paths import DiscretePath, Field, Prediction, squared_cosine_betas
from robostack.core.flow.solvers import FlowModel, solve
from robostack.core.flow.training import Weighting, flow_loss
from robostack.core.transformer import StreamConfig, Transformer, TransformerConfig
from robostack.core.unet import UNet, UNetConfig
from robostack.datasets.moments import History
from robostack.policies.encoder import EncoderConfig, ObservationEncoder
from robostack.policies.protocol import AtMost, Interface, Observation, check_lengths, check_multiple, fit_to_chunk


@dataclass(frozen=True)
class DiTConfig:
    """Sizes of the diffusion transformer."""

    width: int = 128
    hidden: int = 256
    """Of the gated feed-forwards."""
    depth: int = 4
    heads: int = 4
    actions_per_token: int = 10
    """Consecutive actions that share a token; divides the number of actions predicted."""

    def __post_init__(self) -> None:
        check_bounds(self, 1, 100_000, "width", "hidden", "heads", "actions_per_token")
        check_bounds(self, 1, 1000, "depth")
        if self.width % (2 * self.heads):
            raise ValueError(f"width must be a multiple of 2 heads = {2 * self.heads}, got {self.width}")


@dataclass(frozen=True)
class DiffusionConfig:
    """What is seen and predicted, by which network, and how it is trained and sampled."""

    chunk_len: int = 40
    """Actions predicted from the present on."""
    execute_len: int = AtMost(20)
    """Actions run before the policy observes again."""
    observe_len: int = 1
    """Observation steps that are seen, the last of them now."""
    predict_past: int = 0
    """Actions before the present that the network predicts too and `sample` drops; the paper predicts from the first
    of its observation steps on, which is observe_len − 1."""
    condition: Literal["tokens", "state"] = "tokens"
    """What the network is conditioned on: the tokens of `encoder`, or the states alone, without task and cameras."""
    network: Literal["unet", "dit"] = "dit"
    unet: UNetConfig = field(default_factory=lambda: UNetConfig(widths=(64, 128, 256)))
    dit: DiTConfig = field(default_factory=DiTConfig)
    prediction: Prediction = "data"
    weighting: Weighting = "data"
    """Of which prediction the squared error is taken; the paper's is noise, by a network that predicts noise."""
    noising_steps: int = 100
    solver: Literal["ddpm", "ddim", "dpm"] = "ddim"
    sample_steps: int = 10
    """Network calls a chunk; 100 with ddpm in the paper."""
    spacing: Literal["trailing", "leading"] = "trailing"
    """Which noising steps are visited: with `trailing` the noisiest is (arXiv 2305.08891); diffusers' default is
    `leading`, which starts sample_steps/noising_steps from it."""
    clip: float = 0.0
    """Bound on the predicted data's magnitude while sampling; 0: none. A noise prediction needs one with `trailing`."""
    clip_noise: Literal["along", "apart"] = "along"
    """Whether the predicted noise follows the clipped data, or stays as it was (diffusers' DDIM)."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)

    def __post_init__(self) -> None:
        fit_to_chunk(self, "execute_len")
        check_lengths(self.chunk_len, self.execute_len)
        check_bounds(self, 1, 1000, "observe_len")
        check_bounds(self, 1, 10_000, "noising_steps", "sample_steps")
        check_bounds(self, 0.0, 1e9, "clip")
        if not 0 <= self.predict_past < self.observe_len:
            raise ValueError(f"predict_past must lie in 0..observe_len − 1, got {self.predict_past}")
        name, length = (
            "chunk_len + predict_past" if self.predict_past else "chunk_len",
            self.chunk_len + self.predict_past,
        )
        if self.network == "unet":
            check_multiple(name, length, "2^(levels of the U-Net − 1) =", self.unet.multiple, settable=False)
        else:
            check_multiple(name, length, "dit.actions_per_token", self.dit.actions_per_token)
        if self.noising_steps % self.sample_steps:
            raise ValueError(f"sample_steps must divide noising_steps = {self.noising_steps}, got {self.sample_steps}")

    @property
    def history(self) -> History:
        return History(self.observe_len, actions=self.predict_past > 0)


class Diffusion(nn.Module):
    """`loss` and `sample` see through one encoder and call one of the two networks."""

    def __init__(self, config: DiffusionConfig, interface: Interface) -> None:
        super().__init__()
        self.config, self.interface = config, interface
        if config.condition == "tokens":
            width = config.dit.width if config.network == "dit" else config.unet.time_width
            self.observe = ObservationEncoder(config.encoder, interface, config.observe_len, width)
            condition = self.observe.tokens * width
        else:
            condition = config.observe_len * interface.state_dim
        build = partial(UNet, config.unet) if config.network == "unet" else partial(DiT, config.dit)
        self.network = build(interface.action_dim, condition, config.noising_steps)
        self.path = DiscretePath(squared_cosine_betas(config.noising_steps))

    def loss(
        self,
        observation: Observation,
        actions: Float[Tensor, "batch chunk_len action_dim"],
        valid: Bool[Tensor, "batch chunk_len action_dim"],
        generator: torch.Generator,
    ) -> Float[Tensor, ""]:
        """E w(t) ‖prediction − target‖² at a noising step drawn uniformly, over the valid actions."""
        actions, valid = self._with_past(observation, actions, valid)
        noise = torch.randn(actions.shape, generator=generator, device=actions.device)
        steps = self.config.noising_steps
        t = torch.randint(steps, (len(actions),), generator=generator, device=actions.device) / steps
        point = self.path.sample(noise, actions, t)
        predicted = self.network(point.x_t, t, self.encode(observation))
        return flow_loss(self.path, predicted, self.config.prediction, point, self.config.weighting, valid)

    def sample(
        self, observation: Observation, generator: torch.Generator
    ) -> Float[Tensor, "batch chunk_len action_dim"]:
        """Denoises noise drawn from `generator`, along with what the solver adds."""
        past = self.config.predict_past
        shape = (len(observation.state), past + self.config.chunk_len, self.interface.action_dim)
        noise = torch.randn(shape, generator=generator, device=observation.state.device)
        return self.denoise(self.encode(observation), noise, generator)[:, past:]

    def denoise(
        self,
        condition: Float[Tensor, "batch condition"],
        noise: Float[Tensor, "batch steps action_dim"],
        generator: torch.Generator,
    ) -> Float[Tensor, "batch steps action_dim"]:
        """The actions, past ones included, to which the solver carries `noise`."""
        times = self.times(noise)
        model = FlowModel(self.path, self.network.field(condition, times[:-1]), self.config.prediction)
        if bound := self.config.clip:
            along = self.config.clip_noise == "along"
            model = (
                clipped(model, -bound, bound)
                if along
                else _DataClipped(model.path, model.predict, model.kind, bound=bound)
            )
        return solve(model, self.path.start(noise), times, self.config.solver, generator)

    def times(self, like: Tensor) -> Float[Tensor, " points"]:
        """The times the solver visits, then 1; of the dtype and device of `like`."""
        steps, calls = self.config.noising_steps, self.config.sample_steps
        visited = torch.arange(calls, device=like.device) * (steps // calls)
        if self.config.spacing == "leading":
            visited = visited + steps // calls - 1
        return F.pad(visited.to(like.dtype) / steps, (0, 1), value=1.0)

    def encode(self, observation: Observation) -> Float[Tensor, "batch condition"]:
        """What the network is conditioned on. Before the start of an episode it sees a robot at rest."""
        if self.config.condition == "state":
            return observation.state.flatten(1)
        return self.observe(observation)[0].flatten(1)

    def _with_past(self, observation: Observation, actions: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Past actions before the chunk. One run before the start of the episode is not valid, nor is one of a
        joint that the robot does not have."""
        if not (past := self.config.predict_past):
            return actions, valid
        known = observation.valid[:, -1 - past : -1, None] & valid.any(dim=1, keepdim=True)
        return torch.cat([observation.past_actions[:, -past:], actions], 1), torch.cat([known, valid], 1)


class DiT(nn.Module):
    """A diffusion transformer: tokens of consecutive actions, whose norms and gates time and condition set
    (adaLN-zero, arXiv 2212.09748). The condition is their first token too: a modulation alone learns it slower."""

    def __init__(self, config: DiTConfig, channels: int, condition: int, noising_steps: int = 100) -> None:
        """As `UNet`'s."""
        super().__init__()
        self.config, self.noising_steps = config, noising_steps
        width, token = config.width, config.actions_per_token * channels
        self.action_in = nn.Linear(token, width)
        self.time_in = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.condition_in = nn.Sequential(nn.Linear(condition, width), nn.SiLU(), nn.Linear(width, width))
        stream = StreamConfig(width, config.hidden, condition=width)
        self.transformer = Transformer(
            TransformerConfig((stream,), config.depth, config.heads, config.heads, width // config.heads)
        )
        self.action_out = nn.Linear(width, token)

    def forward(
        self,
        x: Float[Tensor, "batch steps channels"],
        t: Float[Tensor, " batch"],
        condition: Float[Tensor, "batch condition"],
    ) -> Float[Tensor, "batch steps channels"]:
        return self.denoise(x, t, self.condition_in(condition))

    def field(self, condition: Float[Tensor, "batch condition"], times: Float[Tensor, " times"]) -> Field:
        """The network under a condition."""
        encoded = self.condition_in(condition)
        return lambda x, t: self.denoise(x, t, encoded)

    def denoise(
        self,
        x: Float[Tensor, "batch steps channels"],
        t: Float[Tensor, " batch"],
        encoded: Float[Tensor, "batch width"],
    ) -> Float[Tensor, "batch steps channels"]:
        """The prediction for x under the encoded condition."""
        actions = self.action_in(x.unflatten(1, (-1, self.config.actions_per_token)).flatten(2))
        tokens = torch.cat([encoded[:, None], actions], dim=1)
        positions = torch.arange(tokens.shape[1], device=x.device)[None]
        time = self.time_in(step_embedding(self.noising_steps * (1.0 - t) - 1.0, self.config.width))
        (outputs,) = self.transformer([tokens], None, positions, [F.silu(time + encoded)[:, None]])
        assert outputs is not None
        return self.action_out(outputs[:, 1:]).unflatten(2, (self.config.actions_per_token, -1)).flatten(1, 2)


@dataclass(frozen=True)
class _DataClipped(FlowModel):
    """Its data prediction alone is clipped: α x̂₁ + σ x̂₀ then is no longer x_t."""

    bound: float = math.inf

    def data_and_noise(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        data, noise = super().data_and_noise(x_t, t)
        return data.clamp(-self.bound, self.bound), noise
