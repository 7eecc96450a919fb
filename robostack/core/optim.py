"""Optimisers for a policy: AdamW, or Muon for its hidden matrices and AdamW for the rest.

Muon moves a matrix along the nearest orthogonal matrix to its momentum (the steepest descent where a step is measured
by how much the layer's output can change: modular duality, arXiv 2410.21265). That speaks of maps from hidden features
to hidden features. Embeddings, the layers that read inputs and write outputs, norms (those that are linear in a
condition too), convolutions and biases measure their steps otherwise and stay with AdamW. Which matrices are hidden
says `hidden_matrices`, here alone.

torch brings Muon. Its step is scaled to the size that AdamW's has (0.2 √max(rows, columns), arXiv 2502.16982), so that
one learning rate and weight decay serve both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, assert_never

import torch
from torch import Tensor, nn

from robostack.core.transformer import FeedForward, Projections

OptimizerName = Literal["adamw", "muon"]

STATE: Mapping[type[torch.optim.Optimizer], tuple[str, ...]] = {
    torch.optim.AdamW: ("step", "exp_avg", "exp_avg_sq"),
    torch.optim.Muon: ("momentum_buffer",),
}
"""The tensors that each optimiser keeps of a parameter: what a checkpoint must hold."""


def build_optimizers(
    policy: nn.Module, name: OptimizerName, learning_rate: float, weight_decay: float
) -> tuple[torch.optim.Optimizer, ...]:
    """Optimisers that share the policy's parameters out among them. Only matrices are decayed."""
    if name == "adamw":
        return (_adamw(list(policy.parameters()), learning_rate, weight_decay),)
    if name == "muon":
        matrices = list(hidden_matrices(policy).values())
        if not matrices:
            raise ValueError(f"{type(policy).__name__} has no transformer whose matrices Muon could take: use adamw")
        taken = set(matrices)
        others = [parameter for parameter in policy.parameters() if parameter not in taken]
        muon = torch.optim.Muon(matrices, learning_rate, weight_decay, adjust_lr_fn="match_rms_adamw")
        return (muon, _adamw(others, learning_rate, weight_decay))
    assert_never(name)


def hidden_matrices(module: nn.Module) -> dict[str, Tensor]:
    """The matrices that are Muon's, by name: the linear layers of attention and feed-forward in transformer blocks.

    They are named by type and by what is in, so that a module which nobody thought of here stays with AdamW. Matrices
    that a block stores stacked (query, key and value; gate and up) are taken as the one matrix that they are stored as.
    """
    return {
        f"{path}.{name}.weight": layer.weight
        for path, part in module.named_modules()
        if isinstance(part, Projections | FeedForward)
        for name, layer in part.named_children()
        if isinstance(layer, nn.Linear)
    }


def _adamw(parameters: list[nn.Parameter], learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, learning_rate, (0.9, 0.95), fused=True)
