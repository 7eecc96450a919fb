"""Implicit policy: an energy of (observation, action chunk) whose low places are what to do.

Implicit Behavioural Cloning (arXiv 2109.00137) learns E(o, x) by contrast: the demonstrated chunk against
counter-examples, of which the useful ones are Langevin samples of E itself. For one action that suffices; a chunk of
40 actions of 14 joints has 560 dimensions. Three things make it learnable here:

- E sees the first cosine coefficients of a chunk in time, which say all that a robot's arm can follow (`ChunkCode`).
- E is a family over noise levels, E(o, x, σ), one for the data with noise of deviation σ, so that sampling is annealed
  from a smooth energy to a sharp one; and its gradient is also trained by denoising score matching (arXiv 1907.05600).
- E = ½ ‖x − f(o, x, σ)‖² / σ²: where f does not move with x, a bowl around what f predicts. f may, so E can have any
  number of low places; and unlike a network for the score it is an energy, so that energies add (arXiv 2302.11552).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from robostack.common.numbers import check_bounds
from robostack.core import energy as core
from robostack.core.embeddings import sinusoids
from robostack.core.losses import masked_mean
from robostack.core.transformer_parts import AdaptiveNorm, FeedForward, Norm
from robostack.datasets.moments import History
from robostack.policies.encoder import EncoderConfig, ObservationEncoder
from robostack.policies.protocol import AtMost, Interface, Observation, check_lengths, fit_to_chunk

LAYER_NORM = Norm("layer", eps=1e-5)
ChunkEnergy = Callable[[Tensor], Tensor]
"""Normalised chunks (*batch, chunk_len, action_dim) ↦ (*batch,): what is added to a policy's own energy."""


@dataclass(frozen=True)
class EnergyConfig:
    """The network, how it is trained and how it is sampled."""

    chunk_len: int = 40
    """Actions predicted at once."""
    execute_len: int = AtMost(20)
    """Actions run before the policy observes again."""
    coefficients: int = AtMost(8)
    """Of the cosine transform in time that are kept; 8 of 40 leave an error of 0.7 % of the actions' deviation."""
    width: int = 256
    depth: int = 3
    encoder_width: int = 128
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    largest_sigma: float = 1.0
    """Noise of the smoothest energy, in deviations of the actions."""
    smallest_sigma: float = 0.05
    """Noise of the sharpest energy; sampling ends at the bottom of its bowl."""
    score: float = 1.0
    """Weight of denoising score matching."""
    contrast: float = 0.01
    """Weight of InfoNCE."""
    contrast_rows: int = 16
    """Rows of a batch that are contrasted; the counter-examples are most of a step's cost."""
    negatives: int = 4
    """Counter-examples of a row: half of them other chunks of the batch, half Langevin samples started from these."""
    negative_steps: int = 2
    """Langevin steps of a counter-example."""
    negative_step: float = 0.5
    """Their size, in σ²."""
    penalty: float = 1e-4
    """Weight of the gradient penalty."""
    margin: float = 8.0
    """Slope in units of 1/σ below which nothing is penalised; the largest of a Gaussian's is about 3."""
    sampler: Literal["langevin", "search"] = "langevin"
    """Annealed Langevin, or derivative-free search, for codes of few dimensions."""
    levels: int = 6
    """Noise levels of the annealing, in geometric sequence; for the search its generations."""
    level_steps: int = 4
    """Langevin steps at each level."""
    settle_steps: int = 8
    """Steps without noise at the last level, after which the chunk is run."""
    step: float = 0.25
    """Of Langevin, in σ²: 1 goes to the bottom of the learned bowl; smaller ones can follow stiffer added energies."""
    temperature: float = 0.0
    """Of Langevin: 1 samples exp(-E), 0 descends from where the noise began. Samples of one chunk and the next differ
    by what the data leave open, and where parts rest against each other that loosens them: of 12 tuning episodes of
    aloha-insertion one was still done at the end at 1, three at 0.1, nine at 0."""
    candidates: int = 1024
    """Of the search."""

    @property
    def history(self) -> History:
        return History()

    def __post_init__(self) -> None:
        fit_to_chunk(self, "execute_len", "coefficients")
        check_lengths(self.chunk_len, self.execute_len)
        check_bounds(self, 1, 100_000, "width", "encoder_width", "contrast_rows")
        check_bounds(self, 1, 1000, "depth", "level_steps")
        check_bounds(self, 2, 1000, "levels", "negatives")
        check_bounds(self, 0, 1000, "negative_steps", "settle_steps")
        check_bounds(self, 1, 1_000_000, "candidates")
        check_bounds(self, 0.0, 1e9, "largest_sigma", "score", "contrast", "penalty", "margin", "temperature")
        check_bounds(self, 1e-9, 1e9, "step", "negative_step")
        if not 0 < self.coefficients <= self.chunk_len:
            raise ValueError(f"coefficients must lie in 1..chunk_len = {self.chunk_len}, got {self.coefficients}")
        if not 0 < self.smallest_sigma < self.largest_sigma:
            raise ValueError(
                f"expected 0 < smallest_sigma < largest_sigma, got {self.smallest_sigma} and {self.largest_sigma}"
            )
        if self.negatives < 2 or self.negatives % 2:
            raise ValueError(f"negatives must be even and at least 2, got {self.negatives}")
        if not (self.score > 0 or self.contrast > 0):
            raise ValueError("expected a positive weight for score or contrast, got none")


class Energy(nn.Module):
    """`loss` trains E at random noise levels; `sample` anneals through them."""

    def __init__(self, config: EnergyConfig, interface: Interface) -> None:
        super().__init__()
        self.config, self.interface = config, interface
        self.encoder = ObservationEncoder(config.encoder, interface, 1, config.encoder_width)
        self.code = ChunkCode(config.chunk_len, config.coefficients)
        self.size = config.coefficients * interface.action_dim
        self.network = Network(self.size, self.encoder.tokens * config.encoder_width, config.width, config.depth)

    def loss(
        self,
        observation: Observation,
        actions: Float[Tensor, "batch chunk_len action_dim"],
        valid: Bool[Tensor, "batch chunk_len action_dim"],
        generator: torch.Generator,
    ) -> Float[Tensor, ""]:
        """Score matching + InfoNCE + gradient penalty at a noise level for each row, ln σ uniform."""
        config, device = self.config, actions.device
        data, context = self.code.encode(held(actions, valid)), self.encode(observation)
        span = math.log(config.largest_sigma / config.smallest_sigma)
        sigma = config.smallest_sigma * torch.exp(span * torch.rand(len(data), generator=generator, device=device))
        noisy = data + sigma[:, None] * torch.randn(data.shape, generator=generator, device=device)
        total = actions.new_zeros(())
        if config.score:
            # The mean of the data given x = data + σ noise is x − σ² ∇E (Tweedie): the squared error of that mean.
            slope = core.gradient(self.energy(context, sigma), noisy, differentiable=True)
            error = self.code.decode(noisy - sigma.square()[:, None] * slope) - actions
            total = total + config.score * masked_mean(error.square(), valid)
        if config.contrast or config.penalty:
            rows = slice(config.contrast_rows)
            contrast, penalty = self.contrast(context[rows], data, noisy[rows], sigma[rows], generator)
            total = total + config.contrast * contrast + config.penalty * penalty
        return total

    def contrast(
        self,
        context: Float[Tensor, "rows context"],
        data: Float[Tensor, "batch size"],
        noisy: Float[Tensor, "rows size"],
        sigma: Float[Tensor, " rows"],
        generator: torch.Generator,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """InfoNCE of demonstrated chunks `noisy` against others' at their noise level, and the gradient penalty.

        The energies enter InfoNCE divided by their dimensions: at the energies' own scale, half the distance squared
        over σ², its first gradients drown everything.
        """
        config, device, rows = self.config, data.device, len(noisy)
        if len(data) < 2:
            raise ValueError(
                "an energy is trained by contrast with other chunks of its batch: expected a batch of at least 2, "
                "got 1; without contrast and penalty (--policy.contrast 0 --policy.penalty 0) any batch will do"
            )
        energy = self.energy(context, sigma)
        ahead = torch.randint(1, len(data), (rows, config.negatives), generator=generator, device=device)
        others = data[(torch.arange(rows, device=device)[:, None] + ahead) % len(data)]
        others = others + sigma[:, None, None] * torch.randn(others.shape, generator=generator, device=device)
        kept, started = others.chunk(2, dim=1)
        drawn = self.walk(energy, started, sigma, config.negative_steps, config.negative_step, 1.0, generator)
        energies = energy(torch.cat([noisy[:, None], kept, drawn], dim=1)) / self.size
        scaled = self.scaled(energy, sigma)
        penalty = core.gradient_penalty(scaled, drawn[:, :1] / sigma[:, None, None], config.margin, batch_dims=2)
        return core.info_nce(energies[:, 0], energies[:, 1:]), penalty

    def sample(
        self, observation: Observation, generator: torch.Generator, added: ChunkEnergy | None = None
    ) -> Float[Tensor, "batch chunk_len action_dim"]:
        """A chunk from exp(−E), annealed from the smoothest energy to the sharpest.

        `added` is an energy of normalised chunks that is added to the policy's own: a forbidden region, a limit,
        another policy. It is phased in by σ_min²/σ² and counts in full at the last level: so it is as stiff beside the
        learned bowl at every level. Where its curvature is above (2/step − 1)/σ_min², steps overshoot.
        """
        config, context = self.config, self.encode(observation)
        with torch.inference_mode(False), torch.no_grad():
            context = context.clone()  # made in inference mode it could not meet a gradient
            batch, device = len(context), context.device

            shrink = (config.smallest_sigma / config.largest_sigma) ** (1.0 / (config.levels - 1))

            extra = None if added is None else (lambda x: added(self.code.decode(x)))

            def level(index: int) -> tuple[core.EnergyFunction, Tensor]:
                sigma = torch.full((batch,), config.largest_sigma * shrink**index, device=device)
                learned = self.energy(context, sigma)
                if extra is None:
                    return learned, sigma
                return core.composed([learned, extra], [1.0, shrink ** (2 * (config.levels - 1 - index))]), sigma

            energy, sigma = level(config.levels - 1)
            if config.sampler == "search":
                shape = (batch, config.candidates, self.size)
                start = config.largest_sigma * torch.randn(shape, generator=generator, device=device)
                noise = config.largest_sigma
                found = core.derivative_free(energy, start, generator, config.levels, noise, shrink)
                return self.code.decode(found)
            x = config.largest_sigma * torch.randn(batch, self.size, generator=generator, device=device)
            for index in range(config.levels):
                energy, sigma = level(index)
                x = self.walk(energy, x, sigma, config.level_steps, config.step, config.temperature, generator)
            # What is left of the noise is taken off by going down, not by the mean x − σ² ∇E: the bowl's curvature is
            # known, that of an added energy is not.
            return self.code.decode(self.walk(energy, x, sigma, config.settle_steps, config.step, 0.0, generator))

    def walk(
        self,
        energy: core.EnergyFunction,
        x: Float[Tensor, "batch *samples size"],
        sigma: Float[Tensor, " batch"],
        steps: int,
        step: float,
        temperature: float,
        generator: torch.Generator,
    ) -> Float[Tensor, "batch *samples size"]:
        """Langevin at one noise level, in units of σ, where every level's bowl has the same curvature."""
        unit = sigma.reshape(-1, *(1,) * (x.ndim - 1))
        step_sizes = [2.0 * step] * steps
        walked = core.langevin(
            self.scaled(energy, sigma), x / unit, step_sizes, generator, math.sqrt(temperature), largest_step=4.0
        )
        return unit * walked

    def scaled(self, energy: core.EnergyFunction, sigma: Float[Tensor, " batch"]) -> core.EnergyFunction:
        """The energy of x / σ."""
        return lambda x: energy(sigma.reshape(-1, *(1,) * (x.ndim - 1)) * x)

    def energy(self, context: Float[Tensor, "batch context"], sigma: Float[Tensor, " batch"]) -> core.EnergyFunction:
        """E(o, ·, σ) of codes (batch, size) or (batch, samples, size)."""
        predict = self.network(context, sigma)

        def energy(x: Tensor) -> Tensor:
            samples = x[:, None] if x.ndim == 2 else x
            value = 0.5 * (samples - predict(samples)).square().sum(-1) / sigma.square()[:, None]
            return value[:, 0] if x.ndim == 2 else value

        return energy

    def encode(self, observation: Observation) -> Float[Tensor, "batch context"]:
        tokens, count = self.encoder(observation)
        return tokens.masked_fill(~count[..., None], 0.0).flatten(1)


def held(
    actions: Float[Tensor, "batch chunk_len action_dim"], valid: Bool[Tensor, "batch chunk_len action_dim"]
) -> Float[Tensor, "batch chunk_len action_dim"]:
    """Every number that is not valid replaced by the last valid one before it, or by 0 where there is none."""
    steps = torch.arange(actions.shape[1], device=actions.device)[None, :, None]
    last = torch.where(valid, steps, 0).cummax(dim=1).values
    return actions.masked_fill(~valid, 0.0).gather(1, last)


class ChunkCode(nn.Module):
    """The first coefficients of a chunk's cosine transform in time (DCT-II), of about unit size.

    The transform is orthonormal but for a factor √chunk_len: the squared length of a code is the mean square of its
    actions in time, and noise on it is smooth noise of the same size on the actions. Nothing about it is fitted.
    """

    def __init__(self, chunk_len: int, coefficients: int) -> None:
        super().__init__()
        middle = (torch.arange(chunk_len, dtype=torch.float64) + 0.5) * math.pi / chunk_len
        basis = torch.cos(torch.arange(coefficients)[:, None] * middle)
        basis = basis / torch.linalg.vector_norm(basis, dim=1, keepdim=True)
        self.scale = math.sqrt(chunk_len)
        self.basis: Tensor
        self.register_buffer("basis", basis.to(torch.get_default_dtype()), persistent=False)

    def encode(self, chunk: Float[Tensor, "*batch chunk_len action_dim"]) -> Float[Tensor, "*batch size"]:
        return (self.basis @ chunk / self.scale).flatten(-2)

    def decode(self, code: Float[Tensor, "*batch size"]) -> Float[Tensor, "*batch chunk_len action_dim"]:
        """The chunk without the higher coefficients."""
        return self.basis.T @ code.unflatten(-1, (len(self.basis), -1)) * self.scale


class Network(nn.Module):
    """f(o, x, σ): blocks that map a code by itself, their norms conditioned on observation and noise."""

    def __init__(self, size: int, context: int, width: int, depth: int) -> None:
        super().__init__()
        self.code_in = nn.Linear(size, width)
        self.context_in = nn.Linear(context, width)
        self.noise_in = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.norms = nn.ModuleList(AdaptiveNorm(LAYER_NORM, width, width) for _ in range(depth + 1))
        self.blocks = nn.ModuleList(FeedForward("gelu_tanh", width, 2 * width, bias=True) for _ in range(depth))
        self.out = nn.Linear(width, size)

    def forward(
        self, context: Float[Tensor, "batch context"], sigma: Float[Tensor, " batch"]
    ) -> Callable[[Float[Tensor, "batch samples size"]], Float[Tensor, "batch samples size"]]:
        """f(o, ·, σ), with all done that does not depend on x."""
        width = self.code_in.out_features
        noise = self.noise_in(sinusoids(sigma.log() / 4.0, width, 1.0, math.exp(3.5)))
        added = (self.context_in(context) + noise)[:, None]
        condition = nn.functional.silu(added)
        size = (sigma.square() + 0.25).rsqrt()[:, None, None]

        def predict(x: Tensor) -> Tensor:
            hidden = self.code_in(size * x) + added
            for norm, block in zip(self.norms, self.blocks, strict=False):
                normed, gate = norm(hidden, condition)
                hidden = hidden + gate * block(normed)
            return self.out(self.norms[-1](hidden, condition)[0])

        return predict
