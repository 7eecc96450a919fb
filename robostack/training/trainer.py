"""The training loop, the same for every policy.

What a step does is a function of (seed, step): its batch and its noise come from generators made from these two
numbers. A resumed run therefore needs weights, average and optimiser state, and goes on bit for bit.

A run has its folder as soon as its first step is found sound, and not before: what is refused leaves nothing behind.
From then on it can be resumed whatever stops it, if need be from step 0.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robostack.common.files import refuse_taken, room_needed, whole_folder
from robostack.common.interrupt import held_back, saying
from robostack.common.provenance import describe_run
from robostack.common.serialize import from_json, to_json
from robostack.core.devices import pick_device
from robostack.datasets.formats.convert import Progress
from robostack.policies.checkpoint import RUN_FILE, Checkpoint, PolicyTraining, resume_command
from robostack.policies.weights import CheckpointError
from robostack.training.augmentation import augment
from robostack.training.batches import Batch, Batches
from robostack.training.beginning import begin_from, freeze, with_tokens_of
from robostack.training.config import TrainConfig
from robostack.training.data import open_stores
from robostack.training.log import LOG_FILE, TrainingLog, TrainingReport
from robostack.training.preparation import prepare
from robostack.training.source import Source, differing
from robostack.training.state import TrainingError, TrainingState, schedule

__all__ = ["TrainingError", "resume", "schedule", "train"]


def train(
    policy_name: str,
    policy_config: Any,
    train: TrainConfig,
    report: Callable[[TrainingReport], None] = lambda _: None,
    converting: Callable[[Progress], None] = lambda _: None,
) -> Path:
    """Trains a policy, from scratch or from the weights of `train.init`, and returns the folder of the run. `report` is
    told about every logged step, `converting` how far data in another format are.

    Raises FileExistsError when `train.out` is taken, DataError for unfit data, TrainingError when the loss is not
    finite, DiskFullError, and Interrupted, which says what is kept.
    """
    resumable = (train.out / RUN_FILE).exists() or (train.out / "checkpoints").exists()
    go_on = f"{resume_command(train.out)} goes on with it, or choose another folder"
    refuse_taken(train.out, go_on if resumable else "choose another folder, or remove it first")
    pick_device(train.device)
    # From wherever the run is resumed, its data are found again.
    train = replace(train, data=tuple(path.absolute() for path in train.data))
    base = None
    if train.init is not None:
        base = Checkpoint.read(train.init)
        train = replace(train, init=base.path.absolute())
        if base.policy != policy_name:
            raise CheckpointError(f"{base.path} holds the policy {base.policy}, expected {policy_name}: name that one")
    stores = open_stores(train, converting)
    processor = prepare(
        stores,
        policy_config.chunk_len,
        train.observe,
        train.robots,
        train.rate,
        train.scaling,
        policy_config.history,
        train.text,
    )
    if base is not None:
        processor = with_tokens_of(base, processor, {task for store in stores for task in store.tasks})
    source = Source.of(stores, processor, policy_config, train)
    begun_from = {} if base is None else dict(base.files)
    training = PolicyTraining(config=to_json(train), data=source.describe(), begun_from=begun_from, **describe_run())
    checkpoint = Checkpoint(train.out, policy_name, policy_config, processor, 0, training)
    return _run(checkpoint, None, train, source, report)


def resume(
    run: Path,
    policy_name: str | None = None,
    report: Callable[[TrainingReport], None] = lambda _: None,
    converting: Callable[[Progress], None] = lambda _: None,
) -> Path:
    """Continues the run in folder `run` from its newest checkpoint, or from its start where there is none yet, with
    its own settings and data.

    Raises CheckpointError when there is no run, its checkpoint is damaged, it holds another policy than `policy_name`
    or its data are no longer what they were; and as `train`.
    """
    begun = None if any(run.glob("checkpoints/step-*/checkpoint.json")) else Checkpoint.read_start(run)
    checkpoint = begun or Checkpoint.read(run)
    if checkpoint.path == run and begun is None:
        raise CheckpointError(f"{run} is a checkpoint: name the folder of its run, {run.parent.parent}")
    if policy_name is not None and checkpoint.policy != policy_name:
        raise CheckpointError(f"{run} is a run of {checkpoint.policy}, expected {policy_name}: name that policy")
    try:
        train = from_json(TrainConfig, {**checkpoint.training.config, "out": str(run)}, fill=True)
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.path} has no settings of a training ({error}): use another one") from error
    try:
        stores = open_stores(train, converting)
        source = Source.of(stores, checkpoint.processor, checkpoint.config, train)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{run} was trained on data that cannot be used any more: {error}") from error
    if told := differing(checkpoint.training.data, source.describe()):
        raise CheckpointError(f"{run} was trained on {told}: restore it")
    goes_on = replace(checkpoint, training=checkpoint.training.goes_on(checkpoint.step))
    return _run(goes_on, None if begun else checkpoint, train, source, report)


def _run(
    checkpoint: Checkpoint,
    start: Checkpoint | None,
    train: TrainConfig,
    source: Source,
    report: Callable[[TrainingReport], None],
) -> Path:
    if train.threads:
        torch.set_num_threads(train.threads)
    device = pick_device(train.device)
    if start is not None:
        start.check_fits("model")
        if train.average_decay:
            start.check_fits("average")
    torch.manual_seed(train.seed)  # of the initial weights; everything later has generators of its own
    policy: Any = checkpoint.build().train()
    if train.init is not None and start is None:
        base = Checkpoint.read(train.init)
        if base.files != checkpoint.training.begun_from:
            raise CheckpointError(f"{base.path} is no longer the checkpoint that this training began with: restore it")
        begin_from(base, policy, checkpoint.processor, train.init_except)
    freeze(policy, train.freeze)
    state = TrainingState.of(policy, train, device)
    if start is not None:
        state.restore(start)

    run = _Run(checkpoint, train, state)
    batches, trained = Batches(source, checkpoint.processor, train, device), [*policy.parameters()]
    with ExitStack() as opened, saying(run.keep), held_back() as let_through:
        opened.enter_context(batches)
        log, waited, unchecked = None, 0.0, None
        while state.step < train.steps:
            let_through()
            begun = time.perf_counter()
            parts = batches.at(state.step)
            waited += time.perf_counter() - begun
            # `loss` is looked up at the policy itself, where sharding registers it as a forward.
            loss = torch.stack([_backward(policy, batch.to(device), train) for batch in parts]).sum()
            norm = nn.utils.clip_grad_norm_(trained, train.gradient_clip)
            if unchecked is not None:
                run.check(*unchecked)
            unchecked = (state.step + 1, loss, norm)
            if not _is_asked_late(device) or log is None or run.is_due():
                run.check(*unchecked)
                unchecked = None
            # Now the weights are known to be sound, and the settings to work.
            run.save_if_due()
            if log is None:
                log = opened.enter_context(run.begin())
            rate = train.learning_rate * schedule(state.step, train.warmup_steps, train.steps)
            state.apply(rate, train.average_decay)
            if state.step == train.steps or state.step % train.log_every == 0:
                with run.room(LOG_FILE):
                    line = log.write(state.step, train.steps, loss.item(), float(norm), rate, waited)
                report(line)
        if unchecked is not None:
            run.check(*unchecked)
        run.save_if_due()
    return train.out


def _backward(policy: Any, batch: Batch, train: TrainConfig) -> Tensor:
    """Adds the gradients of a batch; gives its part of the loss."""
    generator = torch.Generator(batch.actions.device).manual_seed(batch.seed)
    observation = augment(batch.observation, train.augmentation, generator)
    with _precision(batch.actions.device):
        loss = batch.share * policy.loss(observation, batch.actions, batch.valid, generator)
    loss.backward()
    return loss.detach()


@dataclass
class _Run:
    """The folder of a run: what is in it, and what is said of that when the run is stopped."""

    checkpoint: Checkpoint
    """What is the same in all of its checkpoints."""
    train: TrainConfig
    state: TrainingState
    saved: int = field(init=False)
    """Step of the last checkpoint; 0 where there is none."""

    def __post_init__(self) -> None:
        self.saved = self.state.step

    def begin(self) -> TrainingLog:
        """Makes the folder where there is none yet, and opens its log."""
        out = self.train.out
        with self.room(RUN_FILE):
            if not out.exists():
                with whole_folder(out) as folder:
                    self.checkpoint.save_start(folder)
            elif not self.saved and not (out / RUN_FILE).exists():
                self.checkpoint.save_start(out)
            return TrainingLog(out, self.state.step)

    def check(self, step: int, loss: Tensor, norm: Tensor) -> None:
        """Raises TrainingError for a loss or a gradient that is not finite: nothing of that step is kept."""
        if not (math.isfinite(norm) and math.isfinite(loss)):
            raise TrainingError(
                f"the loss is {loss.item():.4g} and the norm of its gradient is {norm.item():.4g} at step {step}, "
                f"which is not taken: {self.kept()}; try a smaller learning rate"
            )

    def is_due(self) -> bool:
        """A checkpoint is, after every so many steps and the last."""
        step = self.state.step
        return step == self.train.steps or (step > 0 and step % self.train.checkpoint_every == 0)

    def save_if_due(self) -> None:
        if self.is_due():
            self.save()

    def save(self) -> None:
        """A checkpoint of the state as it is, unless there is one."""
        folder = self.train.out / "checkpoints" / f"step-{self.state.step:08d}"
        if self.state.step != self.saved and not folder.exists():
            with self.room(f"checkpoints/{folder.name}"):
                replace(self.checkpoint, path=folder, step=self.state.step).save(self._sound())
        self.saved = self.state.step

    def keep(self) -> str:
        """Saves what is there between two steps; says what is kept and how to go on."""
        if not self.state.step:
            return self.kept()
        if self.state.whole:
            self.save()
        return self.kept()

    def kept(self) -> str:
        if self.saved:
            name = f"{self.train.out}/checkpoints/step-{self.saved:08d}"
            return f"{name} is kept, and {resume_command(self.train.out)} goes on"
        if (self.train.out / RUN_FILE).exists():
            return f"no checkpoint was made yet; {resume_command(self.train.out)} starts from step 0"
        return "nothing was begun"

    def room(self, name: str) -> AbstractContextManager[None]:
        """Turns a full disk into what is kept and how to go on."""
        return room_needed(self.train.out / name, f"{self.kept()}; make room first")

    def _sound(self) -> Any:
        try:
            return self.state.tensors()
        except TrainingError as error:
            raise TrainingError(f"{error}: {self.kept()}; try a smaller learning rate") from error


def _is_asked_late(device: torch.device) -> bool:
    """Whether a number is looked at a step later where nothing hangs on it yet: to ask a GPU for one is to wait."""
    return device.type != "cpu"


def _precision(device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 products on a GPU, float32 on the CPU; weights and sums stay float32 on both."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()
