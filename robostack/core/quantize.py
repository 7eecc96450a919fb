"""Quantisers: vectors to discrete codes and back, such that an encoder can be trained through them.

Three ways to one end. FSQ rounds each entry, has no codebook to learn and no code that could die: try it first. VQ
keeps a codebook by moving averages; NSVQ learns its codebook by the gradient alone and needs no further loss. All
stand behind `Quantizer`, so that a policy takes any of them.

What VQ and NSVQ keep from step to step are parameters, some of them without gradient, and not buffers: the average of
the weights that evaluation uses then follows them too.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


@dataclass(frozen=True)
class Quantized:
    """Vectors as codes, the indices of these codes, and what to add to the training loss (zero if nothing)."""

    codes: Float[Tensor, "*batch width"]
    indices: Int[Tensor, " *batch"]
    loss: Float[Tensor, ""]


class Quantizer(nn.Module, ABC):
    """`size` codes for vectors of `width` entries."""

    size: int
    width: int

    @abstractmethod
    def forward(self, z: Float[Tensor, "*batch width"], generator: torch.Generator) -> Quantized:
        """The codes of z, with a gradient to z. In training mode this may learn from z, and what it draws comes from
        `generator`; in evaluation mode it is `decode(encode(z))` and draws nothing."""

    @abstractmethod
    def encode(self, z: Float[Tensor, "*batch width"]) -> Int[Tensor, " *batch"]:
        """The indices in 0..size − 1."""

    @abstractmethod
    def decode(self, indices: Int[Tensor, " *batch"]) -> Float[Tensor, "*batch width"]:
        """The codes that these indices name."""


class FSQ(Quantizer):
    """Finite scalar quantisation (arXiv 2309.15505): entry i is bounded and rounded to one of levels[i] values.

    bound(z) = (L − 1)/2 · (1 − 10⁻³) · tanh(z + s) − o; code = round(bound(z)) / ⌊L/2⌋, in [−1, 1]; o = ½ for an even
    L and 0 for an odd one, s such that 0 stays 0. The index is a number whose digit i, of base levels[i], is
    round(bound(z)) + ⌊L/2⌋. The gradient is that of bound(z) / ⌊L/2⌋.
    """

    levels: Tensor
    strides: Tensor

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        # With 2 levels the bound is flat at 0; with more than 1,000 the margin of 10⁻³ hides the outer ones.
        if not levels or not all(3 <= level <= 1000 for level in levels):
            raise ValueError(f"levels must be numbers in 3..1000, at least one, got {tuple(levels)}")
        self.size, self.width = math.prod(levels), len(levels)
        if self.size >= 2**63:
            raise ValueError(
                f"levels {tuple(levels)} make {self.size} codes, more than an int64 can number: take fewer"
            )
        strides = [math.prod(levels[:i]) for i in range(len(levels))]
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.register_buffer("strides", torch.tensor(strides), persistent=False)

    def forward(self, z: Float[Tensor, "*batch width"], generator: torch.Generator) -> Quantized:
        bounded = self._bound(z)
        digits = bounded.detach().round()
        codes = _straight_through(bounded, digits) / (self.levels // 2)
        return Quantized(codes.to(z.dtype), self._number(digits), codes.new_zeros(()))

    def encode(self, z: Float[Tensor, "*batch width"]) -> Int[Tensor, " *batch"]:
        return self._number(self._bound(z).round())

    def decode(self, indices: Int[Tensor, " *batch"]) -> Float[Tensor, "*batch width"]:
        half = self.levels // 2
        digits = indices[..., None] // self.strides % self.levels
        return (digits - half) / half

    def _bound(self, z: Tensor) -> Tensor:
        z = z.to(torch.promote_types(z.dtype, torch.float32))  # a 16-bit float cannot hold every level
        half = (self.levels - 1).to(z.dtype) * (0.5 * (1.0 - 1e-3))
        offset = torch.where(self.levels % 2 == 0, 0.5, 0.0).to(z.dtype)
        return half * torch.tanh(z + torch.atanh(offset / half)) - offset

    def _number(self, digits: Tensor) -> Tensor:
        return ((digits.long() + self.levels // 2) * self.strides).sum(-1)


class Codebook(Quantizer):
    """What VQ and NSVQ share: codes that are looked up by distance, and dead codes that are brought back.

    `counts` is a moving average of how many vectors of a batch chose each code: N ← decay · N + (1 − decay) · n. A
    code is dead when its N is below `dead_below` times the mean over the codes; it is put on a vector of the batch,
    drawn at random, with the mean as its N. As N starts from 0, the first batch places every code that it did not use.
    """

    def __init__(self, size: int, width: int, decay: float = 0.99, dead_below: float = 0.05) -> None:
        super().__init__()
        if size < 2 or width < 1:
            raise ValueError(f"a codebook needs at least 2 codes of at least 1 entry, got {size} of {width}")
        if not 0.0 < decay < 1.0 or not 0.0 < dead_below < 1.0:
            raise ValueError(f"decay and dead_below must lie between 0 and 1, got {decay} and {dead_below}")
        self.size, self.width, self.decay, self.dead_below = size, width, decay, dead_below
        self.codes = nn.Parameter(torch.randn(size, width))
        self.counts = nn.Parameter(torch.zeros(size), requires_grad=False)

    def encode(self, z: Float[Tensor, "*batch width"]) -> Int[Tensor, " *batch"]:
        return nearest(z, self.codes)

    def decode(self, indices: Int[Tensor, " *batch"]) -> Float[Tensor, "*batch width"]:
        return self.codes[indices]

    @torch.no_grad()
    def _revive(self, rows: Tensor, generator: torch.Generator) -> None:
        """Dead codes take different rows, as long as there are enough. What is drawn does not depend on how many."""
        mean = self.counts.mean()
        dead = self.counts < self.dead_below * mean
        order = torch.randperm(len(rows), generator=generator, device=rows.device)
        chosen = order[(dead.cumsum(0) - 1).clamp(min=0) % len(rows)]
        self.codes.copy_(torch.where(dead[:, None], rows[chosen], self.codes))
        self.counts.copy_(torch.where(dead, mean, self.counts))


class VQ(Codebook):
    """Vector quantisation with a codebook of moving averages (arXiv 1711.00937, appendix A.1), straight-through.

    With n_i vectors z nearest to code e_i in the batch, m_i the moving sum of the vectors and N_i that of their number:
    m_i ← γ m_i + (1 − γ) Σ z;  N_i ← γ N_i + (1 − γ) n_i;  e_i = m_i / N_i.  The loss is β ‖z − e‖² a mean entry, which
    keeps the encoder near the codes; the codes get no gradient.
    """

    def __init__(
        self, size: int, width: int, commitment: float = 0.25, decay: float = 0.99, dead_below: float = 0.05
    ) -> None:
        super().__init__(size, width, decay, dead_below)
        self.commitment = commitment
        self.codes.requires_grad_(False)

    def forward(self, z: Float[Tensor, "*batch width"], generator: torch.Generator) -> Quantized:
        indices = self.encode(z)
        codes = self.decode(indices)
        loss = self.commitment * F.mse_loss(z.to(codes.dtype), codes)
        if self.training:
            self._learn(z.detach().to(codes.dtype).reshape(-1, self.width), indices.flatten(), generator)
        return Quantized(_straight_through(z, codes), indices, loss)

    @torch.no_grad()
    def _learn(self, rows: Tensor, indices: Tensor, generator: torch.Generator) -> None:
        # A product with the one-hot choices and not index_add_, whose order of summation a GPU does not fix.
        chosen = F.one_hot(indices, self.size).to(rows.dtype)
        with torch.autocast(rows.device.type, enabled=False):
            sums = self.decay * self.counts[:, None] * self.codes + (1.0 - self.decay) * (chosen.T @ rows)
        self.counts.lerp_(chosen.sum(0), 1.0 - self.decay)
        # A code that was never chosen has 0 / 0 and is dead: it is replaced in the next line.
        self.codes.copy_(sums / self.counts[:, None])
        self._revive(rows, generator)


class NSVQ(Codebook):
    """Noise substitution in vector quantisation (Vali and Bäckström, IEEE Access 2022), as LAPA uses it (arXiv
    2410.11758).

    In training the quantised vector is z + ‖z − e‖ · v / ‖v‖ with v ~ N(0, 1): noise as large as the error that it
    stands for. It carries an exact gradient to z and, through the error's norm, to the code e, so that no other loss
    is needed. In evaluation it is e.
    """

    def forward(self, z: Float[Tensor, "*batch width"], generator: torch.Generator) -> Quantized:
        indices = self.encode(z)
        codes = self.decode(indices)
        nothing = codes.new_zeros(())
        if not self.training:
            return Quantized(_straight_through(z, codes), indices, nothing)
        noise = torch.randn(z.shape, generator=generator, device=z.device, dtype=codes.dtype)
        error = torch.linalg.vector_norm(z - codes, dim=-1, keepdim=True)
        substituted = z + error * F.normalize(noise, dim=-1)
        with torch.no_grad():
            self.counts.lerp_(F.one_hot(indices.flatten(), self.size).to(codes.dtype).sum(0), 1.0 - self.decay)
        self._revive(z.detach().to(codes.dtype).reshape(-1, self.width), generator)
        return Quantized(substituted.to(z.dtype), indices, nothing)


@dataclass(frozen=True)
class Usage:
    """How much of a codebook some indices use."""

    share: float
    """Codes that occur, over all codes."""
    perplexity: float
    """exp(entropy) of the indices: that many equally frequent codes would be as hard to guess."""

    @staticmethod
    def of(indices: Int[Tensor, " *batch"], size: int) -> Usage:
        """Of a codebook of `size` codes."""
        _, counts = torch.unique(indices, return_counts=True)
        shares = counts.double() / counts.sum()
        return Usage(len(counts) / size, float((-shares * shares.log()).sum().exp()))


@torch.no_grad()
def nearest(z: Float[Tensor, "*batch width"], codes: Float[Tensor, "size width"]) -> Int[Tensor, " *batch"]:
    """argmin_i ‖z − codes_i‖², the first of equals. In the codes' own precision, whatever autocast says."""
    with torch.autocast(z.device.type, enabled=False):
        # ‖z‖² is the same for all codes and left out.
        return (codes.square().sum(-1) - 2.0 * z.to(codes.dtype) @ codes.T).argmin(-1)


def _straight_through(z: Tensor, codes: Tensor) -> Tensor:
    """`codes` to the bit, in z's type, with z's gradient."""
    return codes.detach().to(z.dtype) + (z - z.detach())
