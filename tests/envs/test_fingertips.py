"""Forward kinematics against MuJoCo's, and its gradient against differences."""

import numpy as np
import pytest
import torch

from robostack.envs.aloha.fingertips import Chain, rotation
from robostack.envs.aloha.kinematics import FINGERTIP, ArmKinematics, Side
from robostack.envs.aloha.tasks import TASKS, load_model

F64 = torch.float64


def aloha_arm(side: Side) -> tuple[Chain, ArmKinematics]:
    arm = ArmKinematics(load_model(TASKS["transfer_cube"]), side)
    links = arm.links()
    return Chain(*map(torch.from_numpy, (links.positions, links.rotations, links.axes, FINGERTIP))), arm


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_fingertip_is_where_mujoco_has_it(side: Side) -> None:
    chain, arm = aloha_arm(side)
    angles = np.random.default_rng(0).uniform(-2.0, 2.0, (5, 4, 6))
    expected = np.array([[arm.forward(joints).position for joints in row] for row in angles])
    found = chain.forward(torch.from_numpy(angles))
    assert found.shape == (5, 4, 3)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0.0, atol=1e-9)
    single = Chain(*(part.float() for part in (chain.positions, chain.rotations, chain.axes, chain.tip)))
    np.testing.assert_allclose(single.forward(torch.from_numpy(angles).float()).numpy(), expected, rtol=0.0, atol=1e-6)


def test_its_gradient_is_that_of_the_position() -> None:
    chain, _ = aloha_arm("left")
    angles = torch.linspace(-1.0, 1.0, 12, dtype=F64).view(2, 6).requires_grad_()
    assert torch.autograd.gradcheck(chain.forward, (angles,), fast_mode=True)


def test_a_rotation_turns_by_the_angle_about_the_axis() -> None:
    axis = torch.tensor([[0.0, 0.6, 0.8]], dtype=F64)
    angles = torch.tensor([[0.3], [-1.2]], dtype=F64)
    turns = rotation(axis, angles)[:, 0]
    torch.testing.assert_close(turns @ turns.mT, torch.eye(3, dtype=F64).expand(2, 3, 3))
    torch.testing.assert_close(turns @ axis[0], axis.expand(2, 3))
    torch.testing.assert_close((turns.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2, angles[:, 0].cos())
    quarter = rotation(torch.tensor([0.0, 0.0, 1.0], dtype=F64), torch.tensor(torch.pi / 2, dtype=F64))
    torch.testing.assert_close(
        quarter @ torch.tensor([1.0, 0.0, 0.0], dtype=F64), torch.tensor([0.0, 1.0, 0.0], dtype=F64)
    )
