"""The conditional 1-D U-Net of Diffusion Policy (arXiv 2303.04137, section III.A): convolutions over the steps of an
action chunk, whose features an observation and the noise level scale and shift (FiLM, arXiv 1709.07871).

Features lie as (steps, batch, channels). One tap of a convolution then is one matrix product of contiguous rows, with
neither copies nor the padding's zeros multiplied: at batch 64 on a CPU, training runs at the speed of matrix products.
A single chunk is bound by reading the weights, which are laid out for that once and kept (`kernels/conv1d/cpu.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from robostack.common.numbers import check_bounds
from robostack.core.embeddings import step_embedding
from robostack.core.flow.paths import Field
from robostack.kernels.conv1d import WeightLayout, conv1d
from robostack.kernels.group_norm import group_norm


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of the network; each level but the last halves the number of steps."""

    widths: tuple[int, ...] = (256, 512, 1024)
    """Channels of the levels."""
    kernel: int = 5
    """Taps of a convolution; odd."""
    groups: int = 8
    """Groups of channels that are normalised together; divides every width."""
    time_width: int = 128
    """Width of the embedded time."""

    def __post_init__(self) -> None:
        check_bounds(self, 1, 100_000, "groups", "time_width")
        check_bounds(self, 1, 1001, "kernel")
        if len(self.widths) > 16 or any(width < 1 for width in self.widths):
            raise ValueError(f"widths must be at most 16 positive numbers, got {str(self.widths)[:60]}")
        if self.kernel % 2 == 0 or self.kernel < 1:
            raise ValueError(f"kernel must be odd, got {self.kernel}")
        if unfit := [width for width in self.widths if width % self.groups]:
            raise ValueError(f"groups must divide every width: {self.groups} does not divide {unfit[0]}")
        if not self.widths or self.widths[0] % 8:
            raise ValueError(f"the first of widths must be a multiple of 8, got {self.widths}")
        if self.time_width % 2 or self.time_width < 4:
            raise ValueError(f"time_width must be even and at least 4, got {self.time_width}")

    @property
    def multiple(self) -> int:
        """The number of steps must be a multiple of this."""
        return 2 ** (len(self.widths) - 1)


class UNet(nn.Module):
    """Prediction for every step of a noisy chunk x_t, given the time and a condition.

    FiLM's scales and shifts are linear in mish(time) and mish(condition): a sampler computes either part once for all
    of its steps (`field`).
    """

    def __init__(self, config: UNetConfig, channels: int, condition: int, noising_steps: int = 100) -> None:
        """`channels` numbers a step, in and out, and a condition of width `condition`. Of N `noising_steps`, the time t
        is embedded as the paper's k = N (1 − t) − 1."""
        super().__init__()
        self.config, self.noising_steps = config, noising_steps
        widths, width = config.widths, config.time_width
        self.time_in = nn.Sequential(nn.Linear(width, 4 * width), nn.Mish(), nn.Linear(4 * width, width))
        block, down, up = partial(ResidualBlock, config=config), [], []
        for level, (before, after) in enumerate(zip((channels, *widths[:-1]), widths, strict=True), 1):
            halve = Convolution(after, after, 3, stride=2) if level < len(widths) else nn.Identity()
            down.append(nn.ModuleList([block(before, after), block(after, after), halve]))
        for after, before in zip(widths[-2::-1], widths[:0:-1], strict=True):
            # Beside what comes from below, a block takes what the way down had at this number of steps.
            up.append(nn.ModuleList([block(2 * before, after), block(after, after), Doubling(after)]))
        # In the order in which they run, which is that of FiLM's entries.
        self.down = nn.ModuleList(down)
        self.middle = nn.ModuleList([block(widths[-1], widths[-1]) for _ in range(2)])
        self.up = nn.ModuleList(up)
        self.last = Convolution(widths[0], widths[0], config.kernel)
        self.last_norm = GroupNorm(8, widths[0])  # eight in the paper's code, whatever the blocks have
        self.out = Convolution(widths[0], channels, 1)

        blocks = (module for module in self.modules() if isinstance(module, ResidualBlock))
        self.sizes = [size for block in blocks for size in 2 * [block.width]]
        self.film_time = nn.Linear(width, sum(self.sizes))
        self.film_condition = nn.Linear(condition, sum(self.sizes), bias=False)

    def forward(
        self,
        x: Float[Tensor, "batch steps channels"],
        t: Float[Tensor, " batch"],
        condition: Float[Tensor, "batch condition"],
    ) -> Float[Tensor, "batch steps channels"]:
        return self.denoise(x, self.time_part(t) + self.condition_part(condition))

    def field(self, condition: Float[Tensor, "batch condition"], times: Float[Tensor, " times"]) -> Field:
        """The network under a condition, for a sampler that asks it at the given, rising times alone."""
        of_times, of_condition = self.time_part(times), self.condition_part(condition)
        return lambda x, t: self.denoise(x, of_times[torch.searchsorted(times, t.contiguous())] + of_condition)

    def time_part(self, t: Float[Tensor, " times"]) -> Float[Tensor, "times film"]:
        """What the times contribute to every block's scales and shifts."""
        noising_step = self.noising_steps * (1.0 - t) - 1.0
        return self.film_time(F.mish(self.time_in(step_embedding(noising_step, self.config.time_width))))

    def condition_part(self, condition: Float[Tensor, "batch condition"]) -> Float[Tensor, "batch film"]:
        """What the condition contributes to every block's scales and shifts."""
        return self.film_condition(F.mish(condition))

    def denoise(
        self, x: Float[Tensor, "batch steps channels"], film: Float[Tensor, "#batch film"]
    ) -> Float[Tensor, "batch steps channels"]:
        """The prediction for x under `film`, the sum of the two parts."""
        if x.shape[1] % self.config.multiple:
            raise ValueError(f"the number of steps must be a multiple of {self.config.multiple}, got {x.shape[1]}")
        modulations = iter(film.split(self.sizes, dim=-1))
        features, kept = x.transpose(0, 1).contiguous(), []
        for first, second, halve in _levels(self.down):
            features = second(first(features, modulations), modulations)
            kept.append(features)
            features = halve(features)
        for block in self.middle:
            features = block(features, modulations)
        for first, second, double in _levels(self.up):
            features = torch.cat([features, kept.pop()], dim=-1)
            features = double(second(first(features, modulations), modulations))
        features = F.mish(self.last_norm(self.last(features)))
        return self.out(features).transpose(0, 1)


class ResidualBlock(nn.Module):
    """Two convolutions, each normed and through Mish, with FiLM between them and a way around them."""

    def __init__(self, before: int, width: int, config: UNetConfig) -> None:
        super().__init__()
        self.width = width
        self.first = Convolution(before, width, config.kernel)
        self.first_norm = GroupNorm(config.groups, width)
        self.second = Convolution(width, width, config.kernel)
        self.second_norm = GroupNorm(config.groups, width)
        self.around = Convolution(before, width, 1) if before != width else nn.Identity()

    def forward(
        self, x: Float[Tensor, "steps batch before"], modulations: Iterator[Tensor]
    ) -> Float[Tensor, "steps batch width"]:
        scale, shift = next(modulations), next(modulations)
        features = F.mish(self.first_norm(self.first(x)))
        features = torch.addcmul(shift, features, scale)
        return F.mish(self.second_norm(self.second(features))) + self.around(x)


class Convolution(nn.Module):
    """Weights of a convolution over the steps (`kernels.conv1d`); stride 2 is for three taps."""

    def __init__(self, before: int, after: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(kernel, before, after))
        self.bias = nn.Parameter(torch.empty(after))
        bound = 1.0 / math.sqrt(kernel * before)
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)
        self._layout = WeightLayout()

    def forward(self, x: Float[Tensor, "steps batch before"]) -> Float[Tensor, "fewer batch after"]:
        return conv1d(x, self.weight, self.bias, self.stride, self._layout)


class Doubling(nn.Module):
    """Twice as many steps: a transposed convolution of four taps, stride 2 and padding 1, as one matrix product.

    y_{2i} = x_i W_1 + x_{i−1} W_3 + b and y_{2i+1} = x_i W_2 + x_{i+1} W_0 + b; `weight` is (channels, 4 channels).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(4 * width)
        self.weight = nn.Parameter(torch.empty(width, 4 * width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(width).uniform_(-bound, bound))

    def forward(self, x: Float[Tensor, "steps batch width"]) -> Float[Tensor, "twice batch width"]:
        ahead, even, odd, behind = (x @ self.weight).chunk(4, dim=-1)
        even = even + F.pad(behind, (0, 0, 0, 0, 1, 0))[:-1]
        odd = odd + F.pad(ahead, (0, 0, 0, 0, 0, 1))[1:]
        return torch.stack([even, odd], dim=1).flatten(0, 1) + self.bias


class GroupNorm(nn.Module):
    """Scale and shift of a norm over the steps and the channels of a group (`kernels.group_norm`)."""

    def __init__(self, groups: int, width: int) -> None:
        super().__init__()
        self.groups = groups
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Float[Tensor, "steps batch width"]) -> Float[Tensor, "steps batch width"]:
        return group_norm(x, self.groups, self.weight, self.bias)


def _levels(levels: nn.ModuleList) -> Iterator[tuple[nn.Module, nn.Module, nn.Module]]:
    for level in levels:
        first, second, resize = cast(nn.ModuleList, level)
        yield first, second, resize
