"""The batches of a training: each a function of (seed, step, rank), and prepared while the step before it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robostack.policies.processor import Processor
from robostack.policies.protocol import Observation
from robostack.training.config import TrainConfig
from robostack.training.source import Source


@dataclass(frozen=True)
class Batch:
    """What one pass of the policy's loss is given."""

    observation: Observation
    actions: Float[Tensor, "batch chunk_len action_dim"]
    valid: Bool[Tensor, "batch chunk_len action_dim"]
    seed: int
    """Of all that is drawn for it on the device."""
    share: float
    """Its valid numbers as a part of those of its step: what its loss counts in the step's."""

    def to(self, device: torch.device) -> Batch:
        """The batch there; pinned memory is copied while the device computes."""
        return _each_tensor(lambda tensor: tensor.to(device, non_blocking=True), self)


class Batches:
    """The batches of every step, `accumulate` of them each.

    The thread that prepares them reads and converts; nothing that it does depends on when it does it.
    """

    def __init__(
        self, source: Source, processor: Processor, train: TrainConfig, device: torch.device, ahead: bool = True
    ) -> None:
        """`ahead`: those of the next step are prepared while a step runs."""
        self._source, self._processor, self._train, self._device = source, processor, train, device
        self._next: tuple[int, Future[list[Batch]]] | None = None
        self._thread = ThreadPoolExecutor(1, "batches") if ahead else None
        # Beside each other, processes of one training draw other batches; the first draws what one alone does: of the
        # entropy of a generator, zeros at the end change nothing.
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        self._rank = torch.distributed.get_rank() if distributed else 0

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)

    def at(self, step: int) -> list[Batch]:
        """The batches of a step, on the CPU. Raises what reading the data does."""
        if self._thread is None:
            return self._prepare(step)
        step_ahead, batches = self._next or (step, self._thread.submit(self._prepare, step))
        assert step_ahead == step
        found = batches.result()
        if step + 1 < self._train.steps:
            self._next = (step + 1, self._thread.submit(self._prepare, step + 1))
        return found

    def _prepare(self, step: int) -> list[Batch]:
        rng = np.random.default_rng([self._train.seed, step, self._rank])
        batches = []
        for _ in range(self._train.accumulate):
            parts = self._source.draw(self._train.batch, rng)
            batches.append(Batch(*self._processor.training_batch(parts), int(rng.integers(2**63)), 1.0))
        if len(batches) > 1:
            counts = [int(batch.valid.sum()) for batch in batches]
            shares = [count / max(sum(counts), 1) for count in counts]
            batches = [replace(batch, share=share) for batch, share in zip(batches, shares, strict=True)]
        if self._device.type == "cuda":
            batches = [_each_tensor(Tensor.pin_memory, batch) for batch in batches]
        return batches


def _each_tensor(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The same with every tensor in it changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _each_tensor(change, part) for key, part in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _each_tensor(change, getattr(value, f.name)) for f in fields(value)})
    return value
