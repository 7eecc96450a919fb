"""The norm computes in float32 whatever it is given."""

import pytest
import torch

from robostack.kernels.rms_norm import rms_norm


@pytest.mark.parametrize("width", [5, 16])
def test_norm_computes_in_float32_and_keeps_the_type(width: int) -> None:
    x, weight = torch.randn(3, width, dtype=torch.bfloat16) * 100, torch.randn(width)
    y = rms_norm(x, weight)
    exact = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt() * (1 + weight.double())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), exact, rtol=2**-8, atol=1e-6)
