"""The group norm written by hand is torch's, with its gradients."""

import pytest
import torch
from torch import Tensor

from robostack.kernels.group_norm import cpu, group_norm, reference

SHAPES = pytest.mark.parametrize(
    ("steps", "batch", "width", "groups"), [(6, 3, 8, 4), (1, 1, 6, 2), (5, 1, 21, 7), (3, 2, 5, 1), (7, 2, 3, 3)]
)


def arguments(steps: int, batch: int, width: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    shapes = ((steps, batch, width), (width,), (width,))
    return [torch.randn(*shape, generator=g, dtype=torch.float64).requires_grad_() for shape in shapes]


@SHAPES
def test_group_norm_is_torchs_with_its_gradients(steps: int, batch: int, width: int, groups: int) -> None:
    x, *scaling = given = arguments(steps, batch, width)
    y, expected = cpu.group_norm(x, groups, *scaling), reference.group_norm(x, groups, *scaling)
    torch.testing.assert_close(y, expected)
    weights = torch.randn_like(y)
    found = torch.autograd.grad((y * weights).sum(), given)
    torch.testing.assert_close(found, torch.autograd.grad((expected * weights).sum(), given))
    torch.testing.assert_close(group_norm(x, groups, *scaling), expected)


@SHAPES
def test_its_gradients_are_those_of_finite_differences(steps: int, batch: int, width: int, groups: int) -> None:
    given = arguments(steps, batch, width)
    assert torch.autograd.gradcheck(lambda x, *scaling: cpu.group_norm(x, groups, *scaling), given)
