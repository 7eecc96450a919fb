"""The convolutions written by hand are torch's, with their gradients, and what is kept of the weights follows them."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from robostack.core.unet import Convolution
from robostack.kernels.conv1d import WeightLayout, conv1d, cpu, reference

SHAPES = pytest.mark.parametrize(
    ("kernel", "stride", "steps", "batch"),
    [(5, 1, 8, 2), (5, 1, 2, 3), (5, 1, 1, 1), (1, 1, 4, 2), (7, 1, 5, 1), (3, 2, 6, 2), (3, 2, 2, 1)],
)


def arguments(kernel: int, steps: int, batch: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    shapes = ((steps, batch, 3), (kernel, 3, 4), (4,))
    return [torch.randn(*shape, generator=g, dtype=torch.float64).requires_grad_() for shape in shapes]


@SHAPES
def test_a_convolution_is_torchs_with_its_gradients(kernel: int, stride: int, steps: int, batch: int) -> None:
    given = arguments(kernel, steps, batch)
    y, expected = cpu.conv1d(*given, stride), reference.conv1d(*given, stride)
    torch.testing.assert_close(y, expected)
    weights = torch.randn_like(y)
    found = torch.autograd.grad((y * weights).sum(), given)
    torch.testing.assert_close(found, torch.autograd.grad((expected * weights).sum(), given))
    torch.testing.assert_close(conv1d(*given, stride), expected)


@SHAPES
def test_its_gradients_are_those_of_finite_differences(kernel: int, stride: int, steps: int, batch: int) -> None:
    given = arguments(kernel, steps, batch)
    assert torch.autograd.gradcheck(lambda *given: cpu.conv1d(*given, stride), given)
    without = [given[0].detach(), *given[1:]]  # the first convolution of a network, whose input needs none
    assert torch.autograd.gradcheck(lambda *given: cpu.conv1d(*given, stride), without)


def expected_of(module: Convolution, x: Tensor) -> Tensor:
    return reference.conv1d(x, module.weight, module.bias, module.stride)


@pytest.mark.parametrize(("kernel", "stride"), [(5, 1), (1, 1), (3, 2)])
def test_a_single_chunk_follows_the_weights(kernel: int, stride: int) -> None:
    """oneDNN's copy of the weights is made anew after whatever may change them."""
    torch.manual_seed(0)
    convolution, x = Convolution(16, 32, kernel, stride), torch.randn(8, 1, 16)
    average, loaded = Convolution(16, 32, kernel, stride), Convolution(16, 32, kernel, stride)

    def check(module: Convolution) -> None:
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                torch.testing.assert_close(module(x), expected_of(module, x), atol=1e-5, rtol=1e-5)
                assert module._layout.kept is not None

    check(convolution)
    for fused in (False, True):
        optimizer = torch.optim.AdamW(convolution.parameters(), 0.1, fused=fused)
        convolution(x).square().sum().backward()
        optimizer.step()
        check(convolution)
    check(average)
    with torch.no_grad():
        torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
            list(average.parameters()), list(convolution.parameters()), 0.5
        )
    check(average)
    check(loaded)
    loaded.load_state_dict(convolution.state_dict())
    check(loaded)
    check(copy.deepcopy(convolution))


def test_a_copy_lays_its_weights_out_itself() -> None:
    convolution = Convolution(16, 32, 5)
    with torch.no_grad():
        convolution(torch.randn(8, 1, 16))
    copied = copy.deepcopy(convolution)
    assert convolution._layout.kept is not None and copied._layout.kept is None


@pytest.mark.parametrize("missing", ["_reorder_convolution_weight", "_convolution_pointwise"])
@pytest.mark.parametrize(("kernel", "stride"), [(5, 1), (1, 1), (3, 2)])
def test_a_torch_without_the_layout_takes_the_usual_way(
    missing: str, kernel: int, stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gone, or with other arguments: the chunk is the same, after one warning."""
    convolution, x = Convolution(16, 32, kernel, stride), torch.randn(8, 1, 16)
    ops = SimpleNamespace(
        _reorder_convolution_weight=torch.ops.mkldnn._reorder_convolution_weight,
        _convolution_pointwise=torch.ops.mkldnn._convolution_pointwise,
    )
    for change in (lambda: delattr(ops, missing), lambda: setattr(ops, missing, torch.ops.aten.relu)):
        change()
        monkeypatch.setattr(torch.ops, "mkldnn", ops)
        monkeypatch.setattr(WeightLayout, "available", True)
        with torch.no_grad(), pytest.warns(UserWarning, match="single chunks take longer") as told:
            for _ in range(2):
                torch.testing.assert_close(convolution(x), expected_of(convolution, x), atol=1e-5, rtol=1e-5)
        assert len(told) == 1
