"""The training loop, the same for every policy.

What a step does is a function of (seed, step): its batch and its noise come from generators made from these two
numbers. A resumed run therefore needs weights, average and optimiser state, and goes on bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robostack.core.devices import pick_device
from robostack.core.optim import STATE, build_optimizers
from robostack.datasets.mixture import Mixture, name_robots
from robostack.datasets.store import EpisodeStore
from robostack.datasets.windows import Windows, WindowSampler
from robostack.policies.augment import augment
from robostack.policies.checkpoint import Checkpoint, CheckpointError, load_strictly
from robostack.policies.processor import Processor
from robostack.policies.protocol import PolicyConfig
from robostack.provenance import describe_run
from robostack.serialize import from_json, to_json
from robostack.training.config import TrainConfig
from robostack.training.log import Report, TrainingLog


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which step and what to do."""


@dataclass
class TrainingState:
    """All that changes from step to step."""

    policy: nn.Module
    average: nn.Module
    optimizers: tuple[torch.optim.Optimizer, ...]
    step: int = 0

    @staticmethod
    def of(policy: nn.Module, average: nn.Module, train: TrainConfig, device: torch.device) -> TrainingState:
        policy.to(device)
        average.to(device).requires_grad_(False).eval()
        average.load_state_dict(policy.state_dict())
        optimizers = build_optimizers(policy, train.optimizer, train.learning_rate, train.weight_decay)
        return TrainingState(policy, average, optimizers)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Everything as flat named tensors, by file."""
        optimizer = {
            f"{name}.{key}": optimizer.state[parameter][key]
            for name, parameter, optimizer in self._shared_out()
            for key in STATE[type(optimizer)]
            if parameter in optimizer.state
        }
        return {"model": self.policy.state_dict(), "average": self.average.state_dict(), "optimizer": optimizer}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Takes weights, average and optimiser state from a checkpoint, strictly."""
        load_strictly(self.policy, checkpoint.tensors("model"), checkpoint.path / "model.safetensors")
        load_strictly(self.average, checkpoint.tensors("average"), checkpoint.path / "average.safetensors")
        stored, file = checkpoint.tensors("optimizer"), checkpoint.path / "optimizer.safetensors"
        for name, parameter, optimizer in self._shared_out():
            keys = STATE[type(optimizer)]
            values = {key: stored.pop(f"{name}.{key}") for key in keys if f"{name}.{key}" in stored}
            if not values:
                continue  # a parameter that never had a gradient has no state
            for key in keys:
                expected = () if key == "step" else tuple(parameter.shape)
                came = tuple(values[key].shape) if key in values else "missing"
                if came != expected:
                    raise CheckpointError(f"{file}: {name}.{key} is {came}, expected {expected}: use another one")
            # On the CPU the fused optimiser keeps its step counter there too; on a GPU, with the parameter.
            optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in values.items()}
        if stored:
            raise CheckpointError(f"{file}: {min(stored)} belongs to no parameter of this run: use another one")
        self.step = checkpoint.step

    def _shared_out(self) -> Iterator[tuple[str, nn.Parameter, torch.optim.Optimizer]]:
        """Every parameter, in the policy's order, with the optimiser that has it."""
        owner = {p: o for o in self.optimizers for group in o.param_groups for p in group["params"]}
        return ((name, parameter, owner[parameter]) for name, parameter in self.policy.named_parameters())


@dataclass(frozen=True)
class Source:
    """The data sets of a run, as the stream of batches that it trains on."""

    stores: Sequence[EpisodeStore]
    robots: Sequence[str]
    mixture: Mixture

    @staticmethod
    def of(stores: Sequence[EpisodeStore], processor: Processor, policy: PolicyConfig, train: TrainConfig) -> Source:
        """Raises DataError when a data set has no window, or lacks what its robot observes."""
        robots = name_robots(stores, (*processor.keys, "action"), train.robots)
        samplers = [
            WindowSampler(
                store,
                processor.keys_of(robot),
                policy.chunk_len,
                train.frame_stride,
                processor.rate,
                policy.history,
            )
            for store, robot in zip(stores, robots, strict=True)
        ]
        return Source(stores, robots, Mixture(samplers, train.weights))

    def draw(self, batch: int, rng: np.random.Generator) -> list[tuple[str, Windows, list[str]]]:
        """(robot, windows, task texts) for each data set that has a share in the batch."""
        return [
            (self.robots[part.source], part.windows, [self.stores[part.source].tasks[i] for i in part.windows.task])
            for part in self.mixture.draw(batch, rng)
        ]

    def describe(self) -> list[dict[str, Any]]:
        """What the checkpoint says of its data, and a resumed run compares."""
        return [
            {"path": str(s.path), "episodes": s.episodes, "frames": s.frames, "seeds": s.provenance.get("seeds")}
            for s in self.stores
        ]


def train(
    policy_name: str, policy_config: Any, train: TrainConfig, report: Callable[[Report], None] = lambda _: None
) -> Path:
    """Trains a policy from scratch and returns the folder of the run. `report` is told about every logged step.

    Raises FileExistsError when `train.out` exists, DataError for unfit data, TrainingError when the loss is not finite.
    """
    if train.out.exists():
        raise FileExistsError(f"{train.out} already exists: choose another folder, or continue it with --resume")
    stores = [EpisodeStore(path) for path in train.data]
    processor = Processor.of(
        stores,
        policy_config.chunk_len,
        train.observe,
        train.robots,
        train.rate,
        train.scaling,
        policy_config.history,
    )
    source = Source.of(stores, processor, policy_config, train)
    training = {"config": to_json(train), "data": source.describe(), **describe_run()}
    checkpoint = Checkpoint(train.out, policy_name, policy_config, processor, 0, training)
    train.out.mkdir(parents=True)
    return _run(checkpoint, None, train, source, report)


def resume(run: Path, policy_name: str | None = None, report: Callable[[Report], None] = lambda _: None) -> Path:
    """Continues the run in folder `run` from its newest checkpoint, with its own settings and data.

    Raises CheckpointError when there is none, it is damaged, or it holds another policy than `policy_name`.
    """
    checkpoint = Checkpoint.read(run)
    if policy_name is not None and checkpoint.policy != policy_name:
        raise CheckpointError(f"{run} is a run of {checkpoint.policy}, expected {policy_name}: name that policy")
    train = from_json(TrainConfig, {**checkpoint.training["config"], "out": str(run)})
    stores = [EpisodeStore(path) for path in train.data]
    source = Source.of(stores, checkpoint.processor, checkpoint.config, train)
    if (then := checkpoint.training["data"]) != (now := source.describe()):
        raise CheckpointError(f"{run} was trained on {_differing(then, now)}: restore it")
    return _run(checkpoint, checkpoint, train, source, report)


def _run(
    checkpoint: Checkpoint,
    start: Checkpoint | None,
    train: TrainConfig,
    source: Source,
    report: Callable[[Report], None],
) -> Path:
    if train.threads:
        torch.set_num_threads(train.threads)
    device = pick_device(train.device)
    torch.manual_seed(train.seed)  # of the initial weights; everything later has generators of its own
    policy, average = checkpoint.build(), checkpoint.build()
    state = TrainingState.of(policy.train(), average, train, device)
    if start is not None:
        state.restore(start)

    with TrainingLog(train.out, state.step) as log:
        waited = 0.0
        while state.step < train.steps:
            begun = time.perf_counter()
            rng = np.random.default_rng([train.seed, state.step])
            parts = source.draw(train.batch, rng)
            observation, actions, counts = checkpoint.processor.training_batch(parts, device)
            generator = torch.Generator(device).manual_seed(int(rng.integers(2**63)))
            observation = augment(observation, train.augmentation, generator)
            waited += time.perf_counter() - begun

            rate = train.learning_rate * schedule(state.step, train.warmup_steps, train.steps)
            for group in (group for optimizer in state.optimizers for group in optimizer.param_groups):
                group["lr"] = rate
            with _precision(device):
                loss = policy.loss(observation, actions, counts, generator)  # pyright: ignore[reportCallIssue]
            loss.backward()
            norm = nn.utils.clip_grad_norm_(policy.parameters(), train.gradient_clip)
            for optimizer in state.optimizers:
                optimizer.step()
                optimizer.zero_grad()
            state.step += 1
            _follow(state.average, policy, min(train.average_decay, state.step / (10 + state.step)))

            last = state.step == train.steps
            if last or state.step % train.log_every == 0:
                if not math.isfinite(loss.item()):
                    raise TrainingError(
                        f"the loss is {loss.item()} at step {state.step}: the last checkpoint is kept; "
                        "try a smaller learning rate"
                    )
                report(log.write(state.step, train.steps, loss.item(), float(norm), rate, waited))
            if last or state.step % train.checkpoint_every == 0:
                folder = train.out / "checkpoints" / f"step-{state.step:08d}"
                if not folder.exists():
                    replace(checkpoint, path=folder, step=state.step).save(state.tensors())
    return train.out


def schedule(step: int, warmup_steps: int, steps: int) -> float:
    """The share of the full learning rate at `step`: linear to 1 over the warm-up, then half a cosine to 0."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps)))


@torch.no_grad()
def _follow(average: nn.Module, policy: nn.Module, decay: float) -> None:
    """average ← decay · average + (1 − decay) · policy; buffers, such as the statistics of a norm, are copied."""
    torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
        list(average.parameters()), list(policy.parameters()), 1.0 - decay
    )
    for kept, buffer in zip(average.buffers(), policy.buffers(), strict=True):
        kept.copy_(buffer)


def _precision(device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 products on a GPU, float32 on the CPU; weights and sums stay float32 on both."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()


def _differing(then: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> str:
    """The first data set that is not what it was, in words."""
    for old, new in zip(then, now, strict=True):
        if old != new:
            return f"{old['episodes']} episodes of {old['path']}, which now has {new['episodes']}"
    raise AssertionError("the two are equal")
