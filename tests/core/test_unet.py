"""The U-Net treats every row by itself, under a condition and a time that it takes in apart."""

import pytest
import torch
import torch.nn.functional as F

from robostack.core.unet import Doubling, UNet, UNetConfig

SMALL = UNetConfig(widths=(16, 16, 32), kernel=5, groups=4, time_width=8)


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
