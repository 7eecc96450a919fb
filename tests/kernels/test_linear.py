"""A few rows are multiplied from the weight's side, to the same product."""

import pytest
import torch
from torch import Tensor

from robostack.kernels.linear import cpu, linear, reference

BIAS = pytest.mark.parametrize("bias", [True, False])


def arguments(shape: tuple[int, ...], outputs: int, bias: bool) -> list[Tensor | None]:
    g = torch.Generator().manual_seed(0)
    shapes = (shape, (outputs, shape[-1]), (outputs,))
    given = [torch.randn(*shape, generator=g, dtype=torch.float64).requires_grad_() for shape in shapes]
    return [*given[:2], given[2] if bias else None]


@BIAS
@pytest.mark.parametrize("shape", [(3, 512), (1, 512), (2, 4, 512), (2, 5, 512), (1, 3, 512)])
def test_few_rows_are_multiplied_right_and_have_the_same_gradients(shape: tuple[int, ...], bias: bool) -> None:
    given = arguments(shape, 600, bias)
    expected = reference.linear(*given)
    weights, parameters = torch.randn_like(expected), [x for x in given if x is not None]
    gradients = torch.autograd.grad((expected * weights).sum(), parameters)
    for y in (cpu.linear(*given), linear(*given)):
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(torch.autograd.grad((y * weights).sum(), parameters), gradients)


@BIAS
@pytest.mark.parametrize(("shape", "outputs"), [((2, 3), 5), ((2, 1, 3), 1), ((1, 7), 2)])
def test_its_gradients_are_those_of_finite_differences(shape: tuple[int, ...], outputs: int, bias: bool) -> None:
    x, weight, offset = arguments(shape, outputs, bias)
    if offset is None:
        assert torch.autograd.gradcheck(lambda x, weight: cpu.linear(x, weight, None), (x, weight))
    else:
        assert torch.autograd.gradcheck(cpu.linear, (x, weight, offset))


def test_only_a_few_rows_of_a_large_weight_that_widens_go_that_way() -> None:
    large, narrowing, small = torch.empty(600, 512), torch.empty(512, 600), torch.empty(300, 300)
    assert [rows for rows in range(1, 12) if cpu.worth_it(torch.empty(rows, 512), large)] == list(range(2, 9))
    assert not cpu.worth_it(torch.empty(4, 600), narrowing) and not cpu.worth_it(torch.empty(4, 300), small)
