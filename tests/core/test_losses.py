"""A mean over what is valid does not know what the rest holds."""

import torch

from robostack.core.losses import masked_mean


def test_what_is_not_valid_neither_counts_nor_gets_a_gradient() -> None:
    x = torch.tensor([[1.0, float("nan")], [4.0, float("inf")]], requires_grad=True)
    valid = torch.tensor([[True, False], [True, False]])
    mean = masked_mean(x, valid)
    mean.backward()
    assert mean == 2.5 and torch.equal(x.grad, torch.tensor([[0.5, 0.0], [0.5, 0.0]]))
