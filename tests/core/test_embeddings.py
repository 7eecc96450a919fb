"""The embeddings of numbers are those of the papers, computed in the type of what they embed."""

import math

import pytest
import torch

from robostack.core.embeddings import grid_embedding, position_embedding, sinusoids, step_embedding, time_embedding

F64 = torch.float64


@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-11), (torch.float32, 1e-3)])
def test_time_embedding_is_openpis(dtype: torch.dtype, tolerance: float) -> None:
    t, width = torch.tensor([[0.0, 0.3, 1.0], [0.1, 0.7, 0.999]], dtype=dtype), 8
    found = time_embedding(t, width)
    assert found.dtype == dtype and found.shape == (2, 3, width)
    for i in range(width // 2):
        period = 4e-3 * (4.0 / 4e-3) ** (i / (width // 2 - 1))
        angle = 2 * math.pi * t.double() / period
        torch.testing.assert_close(found[..., i].double(), angle.sin(), rtol=0, atol=tolerance)
        torch.testing.assert_close(found[..., width // 2 + i].double(), angle.cos(), rtol=0, atol=tolerance)


def test_step_embedding_is_diffusion_policys() -> None:
    step, width = torch.tensor([0.0, 17.0, 99.0], dtype=F64), 12
    scale = math.log(10_000) / (width // 2 - 1)
    angles = step[:, None] * torch.exp(torch.arange(width // 2, dtype=F64) * -scale)
    torch.testing.assert_close(step_embedding(step, width), torch.cat([angles.sin(), angles.cos()], dim=-1))


@pytest.mark.parametrize("width", [2, 8])
def test_position_embedding_is_the_papers(width: int) -> None:
    table = position_embedding(5, width)
    assert table.dtype == torch.float32
    for position in range(5):
        for i in range(width // 2):
            angle = torch.tensor(position / 10_000 ** (2 * i / width))
            torch.testing.assert_close(table[position, 2 * i : 2 * i + 2], torch.stack([angle.sin(), angle.cos()]))


def test_the_cells_of_a_grid_are_told_apart() -> None:
    embedding = grid_embedding(17, 8, 16)
    assert embedding.shape == (17 * 8, 16)
    assert torch.cdist(embedding, embedding).fill_diagonal_(1.0).min() > 0.1
    torch.testing.assert_close(embedding[3, :8], embedding[5, :8])  # one row
    torch.testing.assert_close(embedding[3, 8:], embedding[8 + 3, 8:])  # one column
    first, last = math.pi / 2, math.pi / 2 / 17  # periods of 4 cells and of 4 grids
    expected = [math.sin(6 * first), math.sin(6 * last), math.cos(6 * first), math.cos(6 * last)]
    torch.testing.assert_close(embedding[6 * 8, [0, 3, 4, 7]], torch.tensor(expected), atol=1e-5, rtol=0)


def test_a_single_rate_is_the_first() -> None:
    x = torch.tensor([0.5], dtype=F64)
    torch.testing.assert_close(sinusoids(x, 2, 3.0, 7.0), torch.tensor([[math.sin(1.5), math.cos(1.5)]], dtype=F64))
