"""Flow-matching action expert on a prefix of images and text (π0, arXiv 2410.24164; π0.5, 2504.16054).

The prefix (images, task text) is encoded once; the suffix (robot state, noisy action chunk, flow time) attends to it
and is carried from noise (t = 0) to actions (t = 1). Two choices make it the published π0 (time passes through the
tokens of the actions) or π0.5 (time conditions the expert's norms, the state is part of the prompt). The defaults are
small enough to train from scratch on a CPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from robostack.common.numbers import check_bounds
from robostack.core.attention import Mask
from robostack.core.cache import Cache
from robostack.core.embeddings import time_embedding
from robostack.core.flow.paths import PATHS, PathName, Prediction
from robostack.core.flow.solvers import FlowModel, Solver, shifted, solve
from robostack.core.flow.training import TimeSampling, Weighting, flow_loss, sample_time
from robostack.core.language import GEMMA_2B, GEMMA_300M
from robostack.core.transformer import StreamConfig, Transformer, TransformerConfig
from robostack.datasets.moments import History
from robostack.policies.encoder import EncoderConfig, encode_images, make_entity_encoder, make_image_encoders
from robostack.policies.protocol import (
    AtMost,
    Given,
    Interface,
    Observation,
    check_lengths,
    check_multiple,
    fit_to_chunk,
)

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
    expert_hidden: int = 256
    """Of the gated feed-forwards, inside."""
    prefix_width: int = 64
    prefix_hidden: int = 128
    depth: int = 4
    heads: int = 4
    kv_heads: int = 1
    head_dim: int = 32
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """Of the cameras' pictures."""
    scale_words: bool = False
    """Whether the embeddings of words are multiplied by √prefix_width, as Gemma's are."""
    time: Literal["norm", "token"] = "norm"
    """Where the flow time enters: the expert's norms (π0.5), or an MLP with each token of the actions (π0)."""
    state: Literal["token", "prompt"] = "token"
    """Whether the state is a token of the suffix (π0), or words of the prompt (π0.5)."""
    given: int = 0
    """Longest start of a chunk that training gives clean, as if it were run already (training-time real-time chunking,
    arXiv 2512.05964); 0: none ever."""
    path: PathName = "linear"
    prediction: Prediction = "data"
    """What the expert puts out."""
    weighting: Weighting = "data"
    """Where the squared error is taken; `velocity` weighs an error of the clean chunk by 1 / (1 − t)²."""
    largest_weight: float = 400.0
    """Bound of that weight."""
    time_sampling: TimeSampling = "uniform"
    sample_steps: int = 10
    solver: Solver = "ddim"
    shift: float = 1.0
    """Above 1, the steps of sampling are moved towards noise (arXiv 2403.03206)."""

    def __post_init__(self) -> None:
        fit_to_chunk(self, "execute_len")
        check_lengths(self.chunk_len, self.execute_len)
        check_multiple("chunk_len", self.chunk_len, "actions_per_token", self.actions_per_token)
        widths = ("expert_width", "expert_hidden", "prefix_width", "prefix_hidden")
        check_bounds(self, 1, 1_000_000, *widths, "heads", "kv_heads", "head_dim", "actions_per_token")
        check_bounds(self, 1, 1000, "depth")
        check_bounds(self, 1, 10_000, "sample_steps")
        check_bounds(self, 1e-3, 1e3, "shift")
        check_bounds(self, 1e-6, 1e12, "largest_weight")
        check_bounds(self, 0, self.chunk_len - 1, "given")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads must be a multiple of kv_heads, got {self.heads} and {self.kv_heads}")

    @property
    def history(self) -> History:
        return History()

    @property
    def suffix(self) -> int:
        """Its tokens: of the actions, and the state where it is one."""
        return self.chunk_len // self.actions_per_token + (self.state == "token")


class Context(NamedTuple):
    """All that a flow step needs beside the noisy chunk: the encoded prefix, and how the suffix attends to it."""

    observation: Observation
    cache: Cache
    mask: Mask
    positions: Int[Tensor, "batch suffix"]


class Pi0(nn.Module):
    """`loss` runs prefix and suffix jointly, or encodes the prefix once per task where there is nothing but a task to
    it; `sample` encodes the prefix once and runs the suffix against it."""

    def __init__(self, config: Pi0Config, interface: Interface) -> None:
        super().__init__()
        if config.state == "prompt" and not interface.told_state:
            raise ValueError("state 'prompt' needs a prompt that tells the state: put {state} into --template")
        self.config, self.interface = config, interface
        width, prefix_width = config.expert_width, config.prefix_width
        self.word = nn.Embedding(interface.vocabulary, prefix_width)
        self.cameras = make_image_encoders(config.encoder, interface, prefix_width)
        self.entities = make_entity_encoder(config.encoder, interface, prefix_width)
        if config.state == "token":
            self.state_in = nn.Linear(interface.state_dim, width)
        numbers = interface.action_dim + (config.given > 0)
        self.action_in = nn.Linear(config.actions_per_token * numbers, width)
        on_norm = config.time == "norm"
        inputs, last = (width, [nn.SiLU()]) if on_norm else (2 * width, [])
        self.time_in = nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width), *last)
        self.transformer = Transformer(
            TransformerConfig(
                streams=(
                    StreamConfig(prefix_width, config.prefix_hidden, outputs=False),
                    StreamConfig(width, config.expert_hidden, condition=width if on_norm else 0),
                ),
                depth=config.depth,
                heads=config.heads,
                kv_heads=config.kv_heads,
                head_dim=config.head_dim,
            )
        )
        self.action_out = nn.Linear(width, config.actions_per_token * interface.action_dim)
        self.path = PATHS[config.path]()

    def loss(
        self,
        observation: Observation,
        actions: Float[Tensor, "batch chunk_len action_dim"],
        valid: Bool[Tensor, "batch chunk_len action_dim"],
        generator: torch.Generator,
    ) -> Float[Tensor, ""]:
        """E w(t) ‖prediction − target‖² over the valid actions that are not given."""
        noise = torch.randn(actions.shape, generator=generator, device=actions.device)
        t = sample_time(self.config.time_sampling, self.path, len(actions), generator, actions.device)
        if self.config.given:
            length = torch.randint(self.config.given + 1, t.shape, generator=generator, device=t.device)
            is_given = _first(length, self.config.chunk_len)
            t, valid = torch.where(is_given, 1.0, t[:, None]), valid & ~is_given[..., None]
        point = self.path.sample(noise, actions, t)
        if self.interface.views:
            predicted = self._jointly(observation, point.x_t, t)
        else:
            predicted = self.predict(self.encode(observation), point.x_t, t)
        kind, weighting = self.config.prediction, self.config.weighting
        return flow_loss(self.path, predicted, kind, point, weighting, valid, self.config.largest_weight)

    def sample(
        self, observation: Observation, generator: torch.Generator, given: Given | None = None
    ) -> Float[Tensor, "batch chunk_len action_dim"]:
        """Carries noise drawn from `generator` to a chunk, which begins with what is `given`.

        Raises ValueError where more is given than the policy was trained with.
        """
        batch, length = len(observation.state), self.config.chunk_len
        device = observation.state.device
        noise = torch.randn((batch, length, self.interface.action_dim), generator=generator, device=device)
        times = shifted(torch.linspace(0.0, 1.0, self.config.sample_steps + 1, device=device), self.config.shift)
        x = self.path.start(noise)
        if self.config.given or given is not None:
            is_given = torch.zeros(batch, length, dtype=torch.bool, device=device)
            if given is not None:
                given.check(self.config.given)
                is_given = _first(given.length, length)
                x = torch.where(is_given[..., None], given.actions, x)
            times = torch.where(is_given, 1.0, times[:, None, None])
        return solve(self.flow(observation), x, times, self.config.solver, generator)

    def flow(self, observation: Observation) -> FlowModel:
        """The learned flow under an observation, for any solver and any guidance."""
        context = self.encode(observation)
        return FlowModel(self.path, lambda x, t: self.predict(context, x, t), self.config.prediction)

    def encode(self, observation: Observation) -> Context:
        """Keys and values of the prefix, which sees itself and nothing else, with room for the suffix behind them."""
        rows = None
        if not self.interface.views:  # the prefix depends on the task alone: each task of the batch is encoded once
            text, rows = observation.text.distinct()
            prefix, valid = self.embed_prefix(replace(observation, text=text))
        else:
            prefix, valid = self.embed_prefix(observation)
        before, after = valid.shape[1], self.config.suffix
        valid = F.pad(valid, (0, after))
        cache = self.transformer.empty_cache(prefix, len(prefix), before + after)
        self.transformer([prefix, None], Mask(valid=valid), _places(valid)[:, :before], None, cache)
        cache.keep(before)
        if rows is not None:
            cache, valid = cache.rows(rows), valid[rows]
        valid[:, before:] = True
        blocks = self._blocks(before, prefix.device)
        mask = Mask(blocks[before:], blocks, valid).made_dense(after, before + after, prefix.device)
        return Context(observation, cache, mask, _places(valid)[:, before:])

    def _jointly(self, observation: Observation, x_t: Tensor, t: Tensor) -> Tensor:
        """As `predict` on what `encode` gives, in one call of the transformer."""
        prefix, valid = self.embed_prefix(observation)
        suffix, condition = self.embed_suffix(observation, x_t, t)
        valid = F.pad(valid, (0, suffix.shape[1]), value=True)
        blocks = self._blocks(prefix.shape[1], prefix.device)
        outputs = self.transformer([prefix, suffix], Mask(blocks, blocks, valid), _places(valid), [None, condition])
        return self._actions(outputs[1])

    def predict(
        self,
        context: Context,
        x_t: Float[Tensor, "batch chunk_len action_dim"],
        t: Float[Tensor, " batch"] | Float[Tensor, "batch chunk_len"],
    ) -> Float[Tensor, "batch chunk_len action_dim"]:
        """The expert's output for the noisy chunk x_t at flow time t: one step of the flow."""
        suffix, condition = self.embed_suffix(context.observation, x_t, t)
        outputs = self.transformer([None, suffix], context.mask, context.positions, [None, condition], context.cache)
        return self._actions(outputs[1])

    def embed_prefix(
        self, observation: Observation
    ) -> tuple[Float[Tensor, "batch prefix width"], Bool[Tensor, "batch prefix"]]:
        """Tokens of the images, the entities and the words, and which of them may be attended to."""
        tokens, valid = [], []
        frames = [observation.images[name][:, -1] for name in self.interface.cameras]
        for name, encoded in zip(self.interface.cameras, encode_images(self.cameras, frames), strict=True):
            tokens.append(encoded)
            valid.append(observation.present[name][:, None].expand(-1, encoded.shape[1]))
        if self.entities is not None:
            assert observation.entities is not None
            tokens.append(self.entities(observation.entities[:, -1]))
            valid.append(observation.valid[:, -1:])
        words = self.word(observation.text.ids)
        tokens.append(words * math.sqrt(self.config.prefix_width) if self.config.scale_words else words)
        return torch.cat(tokens, dim=1), torch.cat([*valid, observation.text.valid], dim=1)

    def embed_suffix(
        self,
        observation: Observation,
        x_t: Float[Tensor, "batch chunk_len action_dim"],
        t: Float[Tensor, " batch"] | Float[Tensor, "batch chunk_len"],
    ) -> tuple[Float[Tensor, "batch suffix width"], Float[Tensor, "batch 1 width"] | None]:
        """Tokens of the state and of the noisy actions at flow time t, and what conditions the expert's norms. Where
        actions have times of their own, each stands beside its action, and the time is that of those not given."""
        x_t = x_t * self.path.input_scale(t).reshape(*t.shape, *(1,) * (3 - t.ndim))
        if self.config.given:
            x_t = torch.cat([x_t, (t if t.ndim == 2 else t[:, None]).expand(x_t.shape[:2])[..., None]], dim=-1)
        tokens = self.action_in(x_t.unflatten(1, (-1, self.config.actions_per_token)).flatten(2))
        now = time_embedding(t if t.ndim == 1 else t.amin(dim=1), self.config.expert_width)[:, None]
        condition = None
        if self.config.time == "norm":
            condition = self.time_in(now)
        else:
            tokens = self.time_in(torch.cat([tokens, now.expand_as(tokens)], dim=-1))
        if self.config.state == "token":
            tokens = torch.cat([self.state_in(observation.state[:, -1])[:, None], tokens], dim=1)
        return tokens, condition

    def _actions(self, outputs: Tensor | None) -> Float[Tensor, "batch chunk_len action_dim"]:
        assert outputs is not None
        chunks = self.action_out(outputs[:, 1:] if self.config.state == "token" else outputs)
        return chunks.unflatten(2, (self.config.actions_per_token, -1)).flatten(1, 2)

    def _blocks(self, before: int, device: torch.device) -> Int[Tensor, " tokens"]:
        blocks = torch.full((before + self.config.suffix,), ACTIONS, device=device)
        blocks[:before] = PREFIX
        if self.config.state == "token":
            blocks[before] = STATE
        return blocks


def _places(valid: Bool[Tensor, "batch tokens"]) -> Int[Tensor, "batch tokens"]:
    """How many tokens that may be attended to stand before each one: padding moves nothing."""
    return (valid.cumsum(dim=1) - 1).clamp(min=0)


def _first(length: Int[Tensor, " batch"], steps: int) -> Bool[Tensor, "batch {steps}"]:
    """True for the first `length` of so many steps."""
    return torch.arange(steps, device=length.device) < length[:, None]


PI0 = Pi0Config(
    chunk_len=50,
    actions_per_token=1,
    expert_width=GEMMA_300M.stream.width,
    expert_hidden=GEMMA_300M.stream.hidden,
    prefix_width=GEMMA_2B.stream.width,
    prefix_hidden=GEMMA_2B.stream.hidden,
    depth=GEMMA_2B.transformer.depth,
    heads=GEMMA_2B.transformer.heads,
    head_dim=GEMMA_2B.transformer.head_dim,
    encoder=EncoderConfig(vision="siglip", shared=True),
    scale_words=True,
    time="token",
    prediction="velocity",
    weighting="velocity",
    time_sampling="beta",
    solver="euler",
)
"""π0 as published: PaliGemma 3B and an expert of 300M."""
PI05 = replace(PI0, time="norm", state="prompt")
"""π0.5 as published, of the same parts."""
