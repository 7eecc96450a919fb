"""Optimisers for a policy: AdamW, or Muon for its hidden matrices and AdamW for the rest.

Muon moves a matrix along the nearest orthogonal matrix to its momentum (the steepest descent where a step is measured
by how much the layer's output can change: modular duality, arXiv 2410.21265). That speaks of maps from hidden features
to hidden features. Embeddings, the layers that read inputs and write outputs, norms (those that are linear in a
condition too), convolutions and biases measure their steps otherwise and stay with AdamW. Which matrices are hidden
says `hidden_matrices`, here alone.

Its step is scaled to the size that AdamW's has (0.2 √max(rows, columns), arXiv 2502.16982), so that one learning rate
and weight decay serve both. torch has a Muon with the same step, but it orthogonalises in bfloat16 everywhere, which a
CPU without bfloat16 products pays with several times the cost of the whole training step: ours does so on a GPU alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import assert_never

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robostack.core.names import OptimizerName
from robostack.core.transformer_parts import HIDDEN


class Muon(torch.optim.Optimizer):
    """m ← μ m + (1 − μ) g;  W ← (1 − η λ) W − η 0.2 √max(rows, columns) · orthogonalize(μ m + (1 − μ) g).

    The momentum m looks one gradient ahead (Nesterov). η is the learning rate, λ the weight decay.
    """

    def __init__(
        self, matrices: Iterable[Tensor], learning_rate: float, weight_decay: float, momentum: float = 0.95
    ) -> None:
        super().__init__(matrices, {"lr": learning_rate, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(matrix)
                average = state["momentum_buffer"].lerp_(matrix.grad, 1.0 - group["momentum"])
                direction = orthogonalize(matrix.grad.lerp(average, group["momentum"]))
                matrix.mul_(1.0 - group["lr"] * group["weight_decay"])
                matrix.add_(direction, alpha=-0.2 * math.sqrt(max(matrix.shape)) * group["lr"])


def orthogonalize(matrix: Float[Tensor, "rows columns"], steps: int = 5) -> Float[Tensor, "rows columns"]:
    """About U Vᵀ of the matrix U S Vᵀ: its singular values are brought near 1.

    Each Newton–Schulz step maps a singular value s, in parts of the matrix's norm, to 3.4445 s − 4.775 s³ + 2.0315 s⁵.
    These coefficients of Keller Jordan's Muon (2024) lift small values fast: after five steps all that were above
    1/500 lie in 0.68..1.21, near enough for a direction, and those below are lifted up to 485-fold. In bfloat16 on a
    GPU, in float32 on a CPU.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide.to(torch.bfloat16 if wide.is_cuda else torch.float32)
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=-4.775, alpha=2.0315), x, beta=3.4445)
    return (x if wide is matrix else x.T).to(matrix.dtype)


STATE: Mapping[type[torch.optim.Optimizer], tuple[str, ...]] = {
    torch.optim.AdamW: ("step", "exp_avg", "exp_avg_sq"),
    Muon: ("momentum_buffer",),
}
"""The tensors that each optimiser keeps of a parameter: what a checkpoint must hold."""


def build_optimizers(
    policy: nn.Module, name: OptimizerName, learning_rate: float, weight_decay: float
) -> tuple[torch.optim.Optimizer, ...]:
    """Optimisers that share out among them the policy's parameters that require a gradient. Only `layer_weights` are
    decayed."""
    decayed = layer_weights(policy)
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    if name == "adamw":
        return (_adamw(trained, decayed, learning_rate, weight_decay),)
    if name == "muon":
        matrices = [matrix for matrix in hidden_matrices(policy).values() if matrix.requires_grad]
        if not matrices:
            raise ValueError(f"{type(policy).__name__} trains no transformer whose matrices Muon could take: use adamw")
        taken = set(matrices)
        others = [parameter for parameter in trained if parameter not in taken]
        muon = Muon(matrices, learning_rate, weight_decay)
        return (muon, _adamw(others, decayed, learning_rate, weight_decay))
    assert_never(name)


def layer_weights(module: nn.Module) -> set[nn.Parameter]:
    """What is multiplied with what comes in: the weights of linear layers and convolutions.

    Their size alone is what decay is for. It would pull embeddings (of words, of places, of observation steps) and
    learned tokens to one and the same zero, and norms to silence; biases are too few to matter.
    """
    return {
        parameter
        for part in module.modules()
        if not isinstance(part, nn.Embedding)
        for name, parameter in part.named_parameters(recurse=False)
        if name == "weight" and parameter.ndim > 1
    }


def hidden_matrices(module: nn.Module) -> dict[str, Tensor]:
    """The matrices that are Muon's, by name: the linear layers of attention and feed-forward in transformer blocks.

    They are named by type and by what is in, so that a module which nobody thought of here stays with AdamW. Matrices
    that a block stores stacked (query, key and value; gate and up) are taken as the one matrix that they are stored as.
    """
    return {
        f"{path}.{name}.weight": layer.weight
        for path, part in module.named_modules()
        if isinstance(part, HIDDEN)
        for name, layer in part.named_children()
        if isinstance(layer, nn.Linear)
    }


def _adamw(
    parameters: list[nn.Parameter], decayed: set[nn.Parameter], learning_rate: float, weight_decay: float
) -> torch.optim.AdamW:
    groups = [
        {"params": [p for p in parameters if p in decayed], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p not in decayed], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, learning_rate, (0.9, 0.95), fused=True)
