"""Training in bfloat16, as on a GPU, is training in float32 but for rounding."""

import pytest
import torch
from observations import interface, make_observation, seeded
from small_policies import SMALL

from robostack.policies.registry import policy_class

# The U-Net's kernels for the CPU are written for float32; a GPU takes torch's.
CASES = [name for name in SMALL if "unet" not in name]


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_changes_a_loss_and_its_gradient_by_rounding_alone(name: str) -> None:
    config, cameras = SMALL[name]
    torch.manual_seed(0)
    policy = policy_class(name.split(",")[0])(config, interface(cameras))
    observation = make_observation(16, cameras, config.history)
    actions = torch.randn(16, config.chunk_len, 3, generator=seeded())
    valid = torch.ones_like(actions, dtype=torch.bool)
    found = []
    for smaller in (False, True):
        policy.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=smaller):
            loss = policy.loss(observation, actions, valid, seeded())
        loss.backward()
        found.append((loss.item(), torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])))
    (exact, gradient), (rounded, rounded_gradient) = found
    assert rounded == pytest.approx(exact, rel=0.02)
    assert torch.nn.functional.cosine_similarity(gradient, rounded_gradient, dim=0) > 0.95
