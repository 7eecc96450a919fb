"""Constraints as energies: free where they are kept, pushing the right way, and heeded by a trained policy."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from support import write_reaching_data
from torch import Tensor

from robostack.core.energy import barrier
from robostack.datasets.moments import Moments
from robostack.envs.aloha.env import START_QPOS
from robostack.envs.aloha.fingertips import Fingertips
from robostack.envs.aloha.kinematics import ArmKinematics
from robostack.envs.aloha.tasks import TASKS, load_model
from robostack.policies.checkpoint import Checkpoint
from robostack.policies.energy import EnergyConfig
from robostack.policies.pi0 import Pi0Config
from robostack.runtime.constraints import Below, Sphere, chunk_energy, composed_agent, keep_out, limits
from robostack.training.config import TrainConfig
from robostack.training.trainer import train

REST = torch.tensor([*START_QPOS[:6], 0.5, *START_QPOS[8:14], 0.5], dtype=torch.float32)


def test_fingertips_are_where_mujoco_has_them() -> None:
    model, found = load_model(TASKS["transfer_cube"]), Fingertips()(REST.expand(2, 3, 14))
    assert found.shape == (2, 3, 2, 3)
    for arm, side in enumerate(("left", "right")):
        expected = ArmKinematics(model, side).forward(START_QPOS[:6]).position
        np.testing.assert_allclose(found[1, 2, arm].numpy(), expected, atol=1e-6)
    torch.testing.assert_close(Fingertips(("right",))(REST)[0], found[0, 0, 1])


def test_regions_tell_how_deep_a_point_is() -> None:
    points = torch.tensor([[0.0, 0.0, 0.1], [0.0, 0.3, 0.5]])
    torch.testing.assert_close(Below(0.25).depth(points), torch.tensor([0.15, -0.25]))
    torch.testing.assert_close(
        Sphere((0.0, 0.0, 0.5), 0.4).depth(points), torch.tensor([0.0, 0.1]), atol=1e-6, rtol=0.0
    )


def test_a_chunk_outside_costs_nothing_and_one_inside_is_pushed_out() -> None:
    left = Fingertips(("left",))
    height = float(left(REST)[0, 2])
    chunk = REST.expand(1, 5, 14).clone().requires_grad_()
    free, tray = (keep_out(Below(height + depth), left, 0.01, 0.02) for depth in (-0.02, 0.005))
    assert free(chunk).item() == 0.0
    # At rest the way is all time: depth + clearance is three quarters of the softness, at five steps.
    cost = tray(chunk)
    assert cost.item() == pytest.approx(5 * 0.5 * 0.75**2, rel=1e-3)
    (force,) = torch.autograd.grad(cost.sum(), chunk)
    lower = chunk.detach() - 1e-3 * force
    assert bool((left(lower)[..., 2] > height).all()) and not bool(force[..., 6:].any())


def test_a_way_through_a_region_costs_by_its_length_and_not_its_duration() -> None:
    region, left = Below(10.0), Fingertips(("left",))

    def through(steps: int) -> float:
        chunk = REST.expand(1, steps, 14).clone()
        chunk[..., 0] = torch.linspace(0.0, 1.0, steps)  # the waist alone: at one height
        return keep_out(region, left, 0.0, 1.0, pace=1e-6)(chunk).item()

    assert through(41) * 40 / 41 == pytest.approx(through(21) * 20 / 21, rel=0.01)


def test_limits_are_each_numbers_own() -> None:
    low, high = torch.tensor([-1.0, -torch.inf]), torch.tensor([1.0, 0.5])
    chunk = torch.tensor([[[0.0, -9.0], [1.2, 0.5]], [[-1.1, 0.0], [0.0, 0.6]]])
    expected = torch.stack([barrier(torch.tensor(0.2), 0.5), 2 * barrier(torch.tensor(0.1), 0.5)])
    torch.testing.assert_close(limits(low, high, 0.5)(chunk), expected)


def test_a_trained_policy_keeps_a_limit_that_is_added(tmp_path: Path) -> None:
    """Actions of the data are about ±2; with a limit at 0.1 on the first number, the chunk keeps below it."""
    data = write_reaching_data(tmp_path / "data")
    config = EnergyConfig(chunk_len=4, execute_len=2, coefficients=2, width=32, depth=1, encoder_width=16)
    run = train("energy", config, TrainConfig((data,), tmp_path / "run", steps=40, batch=32, device="cpu", threads=1))
    checkpoint = Checkpoint.read(run)
    robot = next(iter(checkpoint.processor.robots))
    cost = limits(torch.full((2,), -torch.inf), torch.tensor([0.1, torch.inf]), softness=0.02)

    def chunks(actor_policy: torch.nn.Module, added: bool) -> Tensor:
        moments = {"observation.state": np.random.default_rng(0).normal(size=(20, 1, 3)).astype(np.float32)}
        observation = checkpoint.processor.observe(_moments(moments), ["reach"] * 20, robot)
        energy = chunk_energy(checkpoint.processor, robot, cost) if added else None
        chunk = actor_policy.sample(observation, torch.Generator().manual_seed(0), energy)  # pyright: ignore
        return torch.from_numpy(checkpoint.processor.denormalize_actions(chunk, _moments(moments), robot))

    policy = composed_agent(run, robot, cost).policy
    free, kept = chunks(policy, False), chunks(policy, True)
    assert (free[..., 0] > 0.3).any() and not (kept[..., 0] > 0.3).any()


def _moments(observation: dict[str, np.ndarray]) -> Moments:
    batch = len(observation["observation.state"])
    return Moments(
        observation=observation,
        valid=np.ones((batch, 1), bool),
        past_action=np.zeros((batch, 0, 2), np.float32),
        acted=np.zeros((batch, 0), bool),
        returns_to_go=np.zeros((batch, 1), np.float32),
    )


def test_other_policies_are_refused(tmp_path: Path) -> None:
    data = write_reaching_data(tmp_path / "data")
    small = dataclasses.replace(
        Pi0Config(), chunk_len=4, execute_len=2, actions_per_token=2, expert_width=32, prefix_width=16, depth=1
    )
    run = train("pi0", small, TrainConfig((data,), tmp_path / "run", steps=1, batch=4, device="cpu", threads=1))
    cost = limits(torch.zeros(2), torch.ones(2), 0.1)
    with pytest.raises(ValueError, match="energies add to an energy"):
        composed_agent(run, "unknown", cost)
