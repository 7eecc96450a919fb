"""The U-Net's own convolutions are torch's, with their gradients, and what is kept of the weights follows them."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robostack.core.unet import Convolution, Doubling, GroupNorm, UNet, UNetConfig

SMALL = UNetConfig(widths=(16, 16, 32), kernel=5, groups=4, time_width=8)


def reference(convolution: Convolution, x: Tensor) -> Tensor:
    """torch's convolution on the usual layout, (batch, channels, steps)."""
    weight = convolution.weight.permute(2, 1, 0)
    y = F.conv1d(x.permute(1, 2, 0), weight, convolution.bias, convolution.stride, len(convolution.weight) // 2)
    return y.permute(2, 0, 1)


@pytest.mark.parametrize(("kernel", "stride", "steps"), [(5, 1, 8), (5, 1, 2), (5, 1, 1), (1, 1, 4), (3, 2, 6)])
def test_a_convolution_is_torchs_with_its_gradients(kernel: int, stride: int, steps: int) -> None:
    torch.manual_seed(0)
    convolution = Convolution(3, 4, kernel, stride).double()
    x = torch.randn(steps, 2, 3, dtype=torch.float64, requires_grad=True)
    y, expected = convolution(x), reference(convolution, x)
    torch.testing.assert_close(y, expected)
    weights = torch.randn_like(y)
    parameters = [x, convolution.weight, convolution.bias]
    found = torch.autograd.grad((y * weights).sum(), parameters)
    torch.testing.assert_close(found, torch.autograd.grad((expected * weights).sum(), parameters))


@pytest.mark.parametrize(("kernel", "stride"), [(5, 1), (1, 1), (3, 2)])
def test_a_single_chunk_follows_the_weights(kernel: int, stride: int) -> None:
    """oneDNN's copy of the weights is made anew after whatever may change them."""
    torch.manual_seed(0)
    convolution, x = Convolution(16, 32, kernel, stride), torch.randn(8, 1, 16)
    average, loaded = Convolution(16, 32, kernel, stride), Convolution(16, 32, kernel, stride)

    def check(module: Convolution) -> None:
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                torch.testing.assert_close(module(x), reference(module, x), atol=1e-5, rtol=1e-5)
                assert module._laid_out is not None

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
        monkeypatch.setattr(Convolution, "_layouts", True)
        with torch.no_grad(), pytest.warns(UserWarning, match="single chunks take longer") as told:
            for _ in range(2):
                torch.testing.assert_close(convolution(x), reference(convolution, x), atol=1e-5, rtol=1e-5)
        assert len(told) == 1


def test_group_norm_is_torchs_with_its_gradients() -> None:
    torch.manual_seed(0)
    norm = GroupNorm(4, 8).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(6, 3, 8, dtype=torch.float64, requires_grad=True)
    y = norm(x)
    expected = F.group_norm(x.permute(1, 2, 0), 4, norm.weight, norm.bias).permute(2, 0, 1)
    torch.testing.assert_close(y, expected)
    weights, parameters = torch.randn_like(y), [x, norm.weight, norm.bias]
    found = torch.autograd.grad((y * weights).sum(), parameters)
    torch.testing.assert_close(found, torch.autograd.grad((expected * weights).sum(), parameters))


def test_doubling_is_torchs_transposed_convolution() -> None:
    torch.manual_seed(0)
    doubling, x = Doubling(8), torch.randn(5, 3, 8)
    weight = doubling.weight.unflatten(1, (4, 8)).permute(0, 2, 1)
    expected = F.conv_transpose1d(x.permute(1, 2, 0), weight, doubling.bias, stride=2, padding=1)
    torch.testing.assert_close(doubling(x), expected.permute(2, 0, 1))


def test_the_parts_of_the_modulation_add_up_and_rows_do_not_touch_each_other() -> None:
    torch.manual_seed(0)
    net = UNet(SMALL, channels=3, condition=5).double()
    x, condition = torch.randn(4, 8, 3, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    t = torch.rand(4, dtype=torch.float64)
    together = net(x, t, condition)
    assert together.shape == x.shape
    for i in range(4):
        film = net.time_part(t[i : i + 1]) + net.condition_part(condition[i : i + 1])
        torch.testing.assert_close(net.denoise(x[i : i + 1], film)[0], together[i])


def test_a_field_is_the_network_at_the_times_it_was_made_for() -> None:
    torch.manual_seed(0)
    net, times = UNet(SMALL, channels=3, condition=5), torch.linspace(0, 1, 4)[:-1]
    x, condition = torch.randn(2, 8, 3), torch.randn(2, 5)
    field = net.field(condition, times)
    for t in times:
        torch.testing.assert_close(field(x, t.expand(2)), net(x, t.expand(2), condition))


def test_every_parameter_is_trained() -> None:
    torch.manual_seed(0)
    net = UNet(SMALL, channels=3, condition=5)
    net(torch.randn(2, 8, 3), torch.rand(2), torch.randn(2, 5)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in net.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [({"kernel": 4}, "odd"), ({"widths": (16, 30)}, "does not divide 30"), ({"time_width": 3}, "time_width")],
)
def test_sizes_that_do_not_fit_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNetConfig(**{"groups": 4, **change})


def test_a_number_of_steps_that_cannot_be_halved_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 4, got 6"):
        UNet(SMALL, channels=3, condition=5)(torch.randn(2, 6, 3), torch.rand(2), torch.randn(2, 5))
