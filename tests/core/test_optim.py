"""Muon takes the hidden matrices and moves them along an orthogonal matrix; AdamW has all the rest."""

import math

import pytest
import torch
from small_policies import SMALL
from torch import nn

from robostack.core.optim import STATE, Muon, OptimizerName, build_optimizers, hidden_matrices, orthogonalize
from robostack.core.unet import Convolution, Doubling
from robostack.policies.pi0 import Pi0, Pi0Config
from robostack.policies.protocol import Interface
from robostack.policies.registry import policy_class


def make_policy() -> Pi0:
    torch.manual_seed(0)
    config = Pi0Config(
        chunk_len=4, execute_len=2, actions_per_token=2, expert_width=32, prefix_width=16, depth=2, heads=2
    )
    return Pi0(config, Interface(state_dim=3, action_dim=2, words=2, vocabulary=5, cameras={"top": (32, 32)}))


def test_every_parameter_has_one_optimizer() -> None:
    policy = make_policy()
    for name in ("adamw", "muon"):
        shares = [
            parameter
            for optimizer in build_optimizers(policy, name, 1e-3, 0.01)
            for group in optimizer.param_groups
            for parameter in group["params"]
        ]
        assert len(shares) == len(set(shares)) and set(shares) == set(policy.parameters())


def test_muon_takes_attention_and_feed_forward_and_nothing_else() -> None:
    """Embedding, camera, layers that read and write, and norms linear in the flow time are AdamW's."""
    taken = hidden_matrices(make_policy())
    kinds = (
        "projections.{}.query_key_value",
        "projections.{}.output",
        "feed_forwards.{}.gate_up",
        "feed_forwards.{}.down",
    )
    assert set(taken) == {
        f"transformer.layers.{layer}.{kind.format(stream)}.weight"
        for layer in range(2)
        for stream in range(2)
        for kind in kinds
        if (layer, stream) != (1, 0) or kind == kinds[0]  # the last block takes no more than that of the prefix
    }
    named = dict(make_policy().named_parameters())
    assert all(taken[name].shape == named[name].shape for name in taken)


@pytest.mark.parametrize("case", SMALL)
@pytest.mark.parametrize("optimizer_name", ["adamw", "muon"])
def test_only_the_weights_of_layers_are_decayed(case: str, optimizer_name: OptimizerName) -> None:
    """Not embeddings, learned tokens and places, norms and biases: without a gradient they stay what they are."""
    config, cameras = SMALL[case]
    policy = policy_class(case.split(",")[0])(config, Interface(5, 3, 4, 9, cameras))
    before = {name: parameter.detach().clone() for name, parameter in policy.named_parameters()}
    try:
        optimizers = build_optimizers(policy, optimizer_name, 0.1, 0.5)
    except ValueError:
        assert optimizer_name == "muon" and not hidden_matrices(policy)
        return
    for parameter in policy.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for optimizer in optimizers:
        optimizer.step()
    layers = (nn.Linear, nn.Conv2d, Convolution, Doubling)
    weights = {f"{path}.weight" for path, part in policy.named_modules() if isinstance(part, layers)}
    for name, parameter in policy.named_parameters():
        kept = 0.95 if name in weights else 1.0
        torch.testing.assert_close(parameter.detach(), kept * before[name], msg=name)


@pytest.mark.parametrize("condition", [1.0, 30.0])
def test_muon_moves_a_matrix_along_an_orthogonal_one(condition: float) -> None:
    """The step is 0.2 lr √max(rows, columns) times a matrix whose singular values lie in 0.65..1.25, and whose singular
    vectors are those of the gradient, for gradients whose singular values differ by up to `condition`."""
    policy = make_policy()
    muon, _ = build_optimizers(policy, "muon", 0.01, 0.0)
    matrices = hidden_matrices(policy)
    before = {name: matrix.detach().clone() for name, matrix in matrices.items()}
    exact = {}
    for name, matrix in matrices.items():
        left, _, right = torch.linalg.svd(torch.randn(matrix.shape, generator=torch.Generator().manual_seed(1)), False)
        matrix.grad = left @ torch.linspace(1.0, 1.0 / condition, len(right)).diag() @ right
        exact[name] = left @ right
    muon.step()
    for name, matrix in matrices.items():
        step = (before[name] - matrix.detach()) / (0.01 * 0.2 * math.sqrt(max(matrix.shape)))
        values = torch.linalg.svdvals(step)
        assert float(values.min()) > 0.65 and float(values.max()) < 1.25
        assert float((step * exact[name]).sum() / (step.norm() * exact[name].norm())) > 0.97


def test_muon_steps_as_that_of_torch() -> None:
    """Five steps of both on equal gradients; torch's orthogonalises in bfloat16, which is what the two differ by."""
    ours, theirs = (torch.nn.Parameter(torch.ones(24, 40)) for _ in range(2))
    optimizers = [
        Muon([ours], 0.1, 0.3),
        torch.optim.Muon([theirs], 0.1, 0.3, adjust_lr_fn="match_rms_adamw"),
    ]
    for step in range(5):
        ours.grad = torch.randn(24, 40, generator=torch.Generator().manual_seed(step))
        theirs.grad = ours.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    moved = (theirs.detach() - 1.0).norm()
    assert float((ours - theirs).detach().norm() / moved) < 0.02
    torch.testing.assert_close(optimizers[0].state[ours], dict(optimizers[1].state[theirs]))


@pytest.mark.parametrize("shape", [(5, 123), (123, 5), (32, 32), (1, 7)])
def test_orthogonalize_brings_singular_values_near_one(shape: tuple[int, int]) -> None:
    values = torch.linalg.svdvals(orthogonalize(torch.randn(shape, generator=torch.Generator().manual_seed(0))))
    assert float(values.min()) > 0.65 and float(values.max()) < 1.2
    assert not orthogonalize(torch.zeros(shape)).any()


def test_adamw_in_the_same_run_is_plain_adamw() -> None:
    """One step on equal gradients moves what Muon leaves alone exactly as the AdamW run does."""
    policies = make_policy(), make_policy()
    for policy, name in zip(policies, ("adamw", "muon"), strict=True):
        for parameter in policy.parameters():
            parameter.grad = torch.ones_like(parameter)
        for optimizer in build_optimizers(policy, name, 1e-3, 0.01):
            optimizer.step()
            assert all(set(kept) == set(STATE[type(optimizer)]) for kept in optimizer.state.values())
    one, other = (dict(policy.named_parameters()) for policy in policies)
    taken = hidden_matrices(policies[0])
    assert all(torch.equal(one[name], other[name]) == (name not in taken) for name in one)


def test_a_policy_without_a_transformer_is_told_to_take_adamw() -> None:
    with pytest.raises(ValueError, match="use adamw"):
        build_optimizers(nn.Sequential(nn.Linear(3, 4)), "muon", 1e-3, 0.0)
