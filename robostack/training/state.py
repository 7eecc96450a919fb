"""All that changes from step to step of a training, and how it goes to a checkpoint and comes back."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robostack.core.optim import STATE, build_optimizers
from robostack.policies.checkpoint import Checkpoint
from robostack.policies.weights import CheckpointError, check_fits, kinds_of, load_strictly, what_is_no_weight
from robostack.training.config import TrainConfig


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which step and what to do."""


@dataclass
class TrainingState:
    """Weights, their average, and what the optimisers remember."""

    policy: nn.Module
    average: dict[str, Tensor]
    """Of what is trained, and the buffers; empty where none is kept."""
    optimizers: tuple[torch.optim.Optimizer, ...]
    step: int = 0
    whole: bool = True
    """False while a step is applied: what is half updated belongs into no checkpoint."""

    @staticmethod
    def of(policy: nn.Module, train: TrainConfig, device: torch.device) -> TrainingState:
        """Of a policy whose parameters require a gradient where they are trained."""
        policy.to(device)
        averaged = {name: value for name, value in policy.state_dict().items() if train.average_decay}
        kept = "cpu" if train.average_device == "cpu" else device
        average = {name: value.to(kept, copy=True) for name, value in averaged.items()}
        optimizers = build_optimizers(policy, train.optimizer, train.learning_rate, train.weight_decay)
        return TrainingState(policy, average, optimizers)

    def apply(self, learning_rate: float, average_decay: float) -> None:
        """Moves the weights by their gradients, and the average after them."""
        self.whole = False
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        if self.average:
            follow(self.average, self.policy, min(average_decay, self.step / (10 + self.step)))
        self.whole = True

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Everything as flat named tensors, by file. Raises TrainingError where the weights are none."""
        found = {"weights": self.policy.state_dict(), "average": self.average}
        for of, tensors in found.items():
            if told := what_is_no_weight(tensors):
                raise TrainingError(f"the {of} are no longer sound after step {self.step}: {told}")
        optimizer = {
            f"{name}.{key}": optimizer.state[parameter][key]
            for name, parameter, optimizer in self._shared_out()
            for key in STATE[type(optimizer)]
            if parameter in optimizer.state
        }
        averages = {"average": self.average} if self.average else {}
        return {"model": found["weights"], **averages, "optimizer": optimizer}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Takes weights, average and optimiser state from a checkpoint, strictly."""
        self._check_optimizer(checkpoint)
        load_strictly(self.policy, checkpoint.tensors("model"), checkpoint.file("model"))
        if self.average:
            stored = checkpoint.tensors("average")
            check_fits(kinds_of(self.average), stored, checkpoint.file("average"))
            for name, value in self.average.items():
                value.copy_(stored[name])
        stored, file = checkpoint.tensors("optimizer"), checkpoint.file("optimizer")
        if unsound := [key for key, value in stored.items() if not bool(value.isfinite().all())]:
            raise CheckpointError(f"{file}: {unsound[0]} is not finite: use another checkpoint")
        for name, parameter, optimizer in self._shared_out():
            keys = [key for key in STATE[type(optimizer)] if f"{name}.{key}" in stored]
            if keys:  # a parameter that never had a gradient has no state
                # On the CPU the fused optimiser keeps its step counter there too; on a GPU, with the parameter.
                state = {key: stored[f"{name}.{key}"].to(parameter.device) for key in keys}
                optimizer.state[parameter] = state
        self.step = checkpoint.step

    def _check_optimizer(self, checkpoint: Checkpoint) -> None:
        stored, file = checkpoint.kinds("optimizer"), checkpoint.file("optimizer")
        for name, parameter, optimizer in self._shared_out():
            keys = STATE[type(optimizer)]
            kinds = {key: stored.pop(f"{name}.{key}") for key in keys if f"{name}.{key}" in stored}
            for key in keys if kinds else ():
                expected = () if key == "step" else tuple(parameter.shape)
                got = kinds[key].shape if key in kinds else "missing"
                if got != expected:
                    raise CheckpointError(f"{file}: {name}.{key} is {got}, expected {expected}: use another one")
                if kinds[key].dtype != "float32":
                    raise CheckpointError(
                        f"{file}: {name}.{key} is {kinds[key].dtype}, expected float32: use another one"
                    )
        if stored:
            raise CheckpointError(f"{file}: {min(stored)} belongs to no parameter of this run: use another one")

    def _shared_out(self) -> Iterator[tuple[str, nn.Parameter, torch.optim.Optimizer]]:
        """Every parameter that is trained, in the policy's order, with the optimiser that has it."""
        owner = {p: o for o in self.optimizers for group in o.param_groups for p in group["params"]}
        parameters = self.policy.named_parameters()
        return ((name, parameter, owner[parameter]) for name, parameter in parameters if parameter in owner)


def schedule(step: int, warmup_steps: int, steps: int) -> float:
    """The share of the full learning rate at `step`: linear to 1 over the warm-up, then half a cosine to 0."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps)))


@torch.no_grad()
def follow(average: dict[str, Tensor], policy: nn.Module, decay: float) -> None:
    """average ← decay · average + (1 − decay) · policy; buffers, such as the statistics of a norm, are copied, and what
    is not trained stays what it is."""
    trained = {name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad}
    kept = [average[name] for name in trained]
    moved = [parameter.to(to.device) for parameter, to in zip(trained.values(), kept, strict=True)]
    torch._foreach_lerp_(kept, moved, 1.0 - decay)  # pyright: ignore[reportPrivateImportUsage]
    for name, buffer in policy.named_buffers():
        if name in average:
            average[name].copy_(buffer)
