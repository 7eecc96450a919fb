"""Numbers as sines and cosines (arXiv 1706.03762, section 3.5): times, noising steps, places in a row and on a grid."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


def sinusoids(x: Float[Tensor, "*batch"], width: int, first: float, last: float) -> Float[Tensor, "*batch width"]:
    """[sin, cos](r x) for width/2 rates r in geometric sequence from `first` to `last`; computed in x's type."""
    share = torch.linspace(0.0, 1.0, width // 2, dtype=x.dtype, device=x.device)
    angles = x[..., None] * (first * (last / first) ** share)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def time_embedding(
    t: Float[Tensor, "*batch"], width: int, shortest: float = 4e-3, longest: float = 4.0
) -> Float[Tensor, "*batch width"]:
    """Of flow times in 0..1, by periods from `shortest` to `longest` (as π0's)."""
    return sinusoids(t, width, 2.0 * math.pi / shortest, 2.0 * math.pi / longest)


def step_embedding(step: Float[Tensor, "*batch"], width: int) -> Float[Tensor, "*batch width"]:
    """Of noising steps, by rates 10000^(−i/(width/2 − 1)), i < width/2 (as Diffusion Policy's)."""
    return sinusoids(step, width, 1.0, 1e-4)


def position_embedding(count: int, width: int) -> Float[Tensor, "count width"]:
    """Row p: sin and cos of p / 10000^(2i / width) at 2i and 2i + 1, as in the paper; float32."""
    places = torch.arange(count, dtype=torch.float64)
    last = 1e-4 ** (1.0 - 2.0 / width)
    return sinusoids(places, width, 1.0, last).unflatten(1, (2, -1)).mT.flatten(1).float()


def grid_embedding(rows: int, columns: int, width: int) -> Float[Tensor, "cells {width}"]:
    """Of row and column, half of the numbers each, for a grid's cells, row by row (arXiv 2205.01580, section 2).
    Periods from 4 cells to 4 grids."""
    first, dtype = math.pi / 2.0, torch.get_default_dtype()
    row, column = (
        sinusoids(torch.arange(count, dtype=dtype), width // 2, first, first / max(rows, columns))
        for count in (rows, columns)
    )
    return torch.cat([row.repeat_interleave(columns, dim=0), column.repeat(rows, 1)], dim=-1)
