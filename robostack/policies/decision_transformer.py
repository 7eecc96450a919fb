"""Acting as a sequence that is asked for a return (Decision Transformer, arXiv 2106.01345).

The last K decisions become tokens, (return-to-go, what was seen, what was done) for each, in a causal transformer that
predicts what to do next: asked for a high return it does as those episodes did that still had one ahead of them. A
robot at 50 Hz decides once in `execute_len` control steps: its action token is the chunk of actions run since, and it
predicts a chunk of `chunk_len`. With both 1 it is the paper's, but for the embedding of the time step: here a policy
sees no clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from robostack.common.numbers import check_bounds
from robostack.core.attention import Mask
from robostack.core.losses import masked_mean
from robostack.core.transformer import StreamConfig, Transformer, TransformerConfig
from robostack.datasets.moments import History
from robostack.policies.encoder import EncoderConfig, ObservationEncoder
from robostack.policies.protocol import AtMost, Interface, Observation, check_lengths, fit_to_chunk

Head = Literal["l1", "l2", "bins"]
# Block ids: a token sees its own block and the earlier ones. The task comes first, then three blocks a decision.
TASK, RETURN, OBSERVATION, ACTIONS, BLOCKS = 0, 1, 2, 3, 3


@dataclass(frozen=True)
class DecisionTransformerConfig:
    """What the transformer sees and how it puts its actions."""

    context: int = 1
    """K, the decisions that it sees, the present one included. In short ALOHA trials 1 followed the return better
    than 4, at unequal batches and steps; why is not established."""
    chunk_len: int = 20
    """Actions predicted at once."""
    execute_len: int = AtMost(20)
    """Actions run between two decisions."""
    hide_actions: float = 0.0
    """Share of training samples in which the actions of the past are hidden, against a policy that copies them. At 1
    they are never seen."""
    conditioned: bool = True
    """Whether it sees the return-to-go. Without, it is behaviour cloning by the same network."""
    head: Head = "l1"
    """Actions as numbers, learned by their absolute or squared error, or as distributions over `bins`."""
    bins: int = 51
    """Bins an action dimension: evenly spaced centres from −bin_range to bin_range."""
    bin_range: float = 5.0
    """In units of normalised actions; what lies beyond is brought to the outermost bin."""
    temperature: float = 0.0
    """Of drawing from bins: 1 draws as the data were, 0 takes the median (in one ALOHA trial the likeliest bin
    earned 41 where the median earned 193 to 506)."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    width: int = 128
    hidden_multiple: int = 2
    """Hidden width of the gated feed-forwards, in widths."""
    depth: int = 4
    heads: int = 4
    head_dim: int = 32

    def __post_init__(self) -> None:
        check_bounds(self, 1, 1000, "context", "depth")
        check_bounds(self, 1, 100_000, "width", "hidden_multiple", "heads", "head_dim")
        fit_to_chunk(self, "execute_len")
        check_lengths(self.chunk_len, self.execute_len)
        if not 2 <= self.bins <= 100_000 or not 0.0 < self.bin_range <= 1e9:
            raise ValueError(f"bins need a number above 1 and a range above 0, got {self.bins} and {self.bin_range}")
        if not 0.0 <= self.hide_actions <= 1.0:
            raise ValueError(f"hide_actions must lie in 0..1, got {self.hide_actions}")
        check_bounds(self, 0.0, 1e9, "temperature")

    @property
    def history(self) -> History:
        """An observation step at every decision of the context."""
        return History(self.context, self.execute_len, self.conditioned)


class DecisionTransformer(nn.Module):
    """Tokens of K decisions through a causal transformer to a chunk of actions a decision."""

    def __init__(self, config: DecisionTransformerConfig, interface: Interface) -> None:
        super().__init__()
        self.config, self.interface = config, interface
        width = config.width
        self.encoder = ObservationEncoder(config.encoder, interface, config.context, width)
        self.return_in = nn.Linear(1, width)
        self.action_in = nn.Linear(config.execute_len * interface.action_dim, width)
        self.transformer = Transformer(
            TransformerConfig(
                streams=(StreamConfig(width, config.hidden_multiple * width),),
                depth=config.depth,
                heads=config.heads,
                kv_heads=config.heads,
                head_dim=config.head_dim,
            )
        )
        self.numbers = config.bins if config.head == "bins" else 1
        self.action_out = nn.Linear(width, config.chunk_len * interface.action_dim * self.numbers)
        self.centres: Tensor
        self.register_buffer(
            "centres", torch.linspace(-config.bin_range, config.bin_range, config.bins), persistent=False
        )

    def loss(
        self,
        observation: Observation,
        actions: Float[Tensor, "batch chunk_len action_dim"],
        valid: Bool[Tensor, "batch chunk_len action_dim"],
        generator: torch.Generator,
    ) -> Float[Tensor, ""]:
        """The error at every decision of the context: what was done after the earlier ones is known as well."""
        targets = self._chunks(torch.cat([observation.past_actions, actions], dim=1))
        # All actions since the first valid step were run; a joint that the robot does not have counts nowhere.
        past = valid[:, :1].expand(-1, observation.past_actions.shape[1], -1)
        known = self._chunks(torch.cat([past, valid], dim=1)) & observation.valid[:, :, None, None]
        remembered = None
        if self.config.hide_actions:
            draw = torch.rand(len(actions), generator=generator, device=actions.device)
            remembered = draw >= self.config.hide_actions
        output = self.predict(observation, remembered)
        match self.config.head:
            case "l1":
                error = (output[..., 0] - targets).abs()
            case "l2":
                error = (output[..., 0] - targets).square()
            case "bins":
                error = two_hot_cross_entropy(output, targets, self.centres)
        return masked_mean(error, known)

    def sample(
        self, observation: Observation, generator: torch.Generator
    ) -> Float[Tensor, "batch chunk_len action_dim"]:
        """The chunk from now on; drawn, where the head is of bins."""
        remembered = torch.full(
            (len(observation.state),), self.config.hide_actions < 1.0, device=observation.valid.device
        )
        output = self.predict(observation, remembered)[:, -1]
        match self.config.head:
            case "l1" | "l2":
                return output[..., 0]
            case "bins":
                # One draw a dimension for the whole chunk: what varies from one demonstration to the next is where a
                # motion goes, while numbers drawn each on its own would shake about the same median motion.
                shape = (len(output), 1, self.interface.action_dim)
                draw = torch.randn(shape, generator=generator, device=output.device)
                quantile = torch.special.ndtr(self.config.temperature * draw).expand(output.shape[:-1])
                return at_quantile(output, self.centres, quantile)

    def predict(
        self, observation: Observation, remembered: Bool[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch obs_steps chunk_len action_dim numbers"]:
        """The head's numbers for each action, at each decision: the action, or the logits of its bins.
        `remembered` is false where the actions of the past are hidden."""
        tokens, valid, blocks = self._tokens(observation)
        if remembered is not None:
            valid = valid & (remembered[:, None] | (blocks % BLOCKS != ACTIONS % BLOCKS) | (blocks == TASK))
        positions = torch.arange(len(blocks), device=blocks.device)[None]
        (outputs,) = self.transformer([tokens], Mask(blocks, blocks, valid), positions)
        assert outputs is not None
        # Each state token predicts the chunk after it. The task stands where a decision before the first would have its
        # actions, so that the states are the last tokens of equal parts.
        part = len(blocks) // self.config.context
        chunks = self.action_out(outputs[:, part - 1 :: part])
        return chunks.unflatten(2, (self.config.chunk_len, self.interface.action_dim, self.numbers))

    def _tokens(self, observation: Observation) -> tuple[Tensor, Tensor, Tensor]:
        """Task, then (return-to-go, frames and state, actions) of every decision but for the last one's actions:
        tokens (batch, tokens, width), which of them are valid, and their blocks (tokens,)."""
        shown = observation.valid
        k = self.config.context
        tokens, valid = self.encoder(observation)
        frames, framed = self._of_steps(tokens), self._of_steps(valid)
        returns = torch.zeros_like(observation.state[..., 0])
        if self.config.conditioned:
            assert observation.returns_to_go is not None
            returns = observation.returns_to_go
        done = observation.past_actions.unflatten(1, (k - 1, self.config.execute_len)).flatten(2)
        decisions = [
            self.return_in(returns[..., None])[:, :, None],
            frames,
            tokens[:, :k, None],
            F.pad(self.action_in(done), (0, 0, 0, 1))[:, :, None],
        ]
        decided = [
            shown[..., None],
            framed & shown[..., None],
            shown[..., None],
            shown[..., None],
        ]
        blocks = torch.tensor([RETURN] + [OBSERVATION] * (frames.shape[2] + 1) + [ACTIONS], device=shown.device)
        blocks = (blocks + BLOCKS * torch.arange(k, device=shown.device)[:, None]).flatten()
        return (
            torch.cat([tokens[:, k : k + 1], torch.cat(decisions, dim=2).flatten(1, 2)], dim=1)[:, :-1],
            torch.cat([valid[:, k : k + 1], torch.cat(decided, dim=2).flatten(1, 2)], dim=1)[:, :-1],
            F.pad(blocks, (1, 0), value=TASK)[:-1],
        )

    def _of_steps(self, observed: Tensor) -> Tensor:
        """What is observed behind states and task, (batch, K, tokens of a step, ...)."""
        k, views = self.config.context, self.encoder.views
        parts = observed[:, k + 1 :].split([k * tokens for tokens in views], dim=1)
        empty = observed[:, :0].unflatten(1, (k, 0))
        return torch.cat([empty, *(part.unflatten(1, (k, -1)) for part in parts)], dim=2)

    def _chunks(self, steps: Tensor) -> Tensor:
        """(batch, (K − 1) · execute_len + chunk_len, action_dim) as the chunk after each decision, (batch, K,
        chunk_len, action_dim)."""
        return steps.unfold(1, self.config.chunk_len, self.config.execute_len).transpose(2, 3)


def two_hot_cross_entropy(
    logits: Float[Tensor, "*shape bins"], targets: Float[Tensor, "*shape"], centres: Float[Tensor, " bins"]
) -> Float[Tensor, "*shape"]:
    """−Σ q log softmax(logits), q the target's share in the two bins between whose centres it lies.

    The mean of q is the target itself, so that bins can be far coarser than the motion is fine (as MuZero's rewards,
    arXiv 1911.08265, appendix F).
    """
    place = (targets.clamp(centres[0], centres[-1]) - centres[0]) / (centres[1] - centres[0])
    below = place.floor().clamp(max=len(centres) - 2)
    index = below.long()[..., None]
    log_p = logits.log_softmax(dim=-1)
    share = place - below
    return -((1.0 - share) * log_p.gather(-1, index)[..., 0] + share * log_p.gather(-1, index + 1)[..., 0])


def at_quantile(
    logits: Float[Tensor, "*shape bins"], centres: Float[Tensor, " bins"], quantile: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """F⁻¹(quantile) for the cumulative distribution F that rises evenly between the centres of the bins.

    Half of a bin's weight lies on either side of its centre, where F is the weight of the bins below and that half.
    """
    p = logits.softmax(dim=-1)
    cumulative = p.cumsum(dim=-1) - p / 2
    above = torch.searchsorted(cumulative, quantile[..., None].contiguous()).clamp(1, len(centres) - 1)
    low, high = cumulative.gather(-1, above - 1), cumulative.gather(-1, above)
    share = ((quantile[..., None] - low) / (high - low).clamp(min=1e-9)).clamp(0.0, 1.0)
    return torch.lerp(centres[above - 1], centres[above], share)[..., 0]
