"""`robostack bench policy`: training steps a second and chunk latency of the policies that LeRobot has too.

Both programs have the same configuration, random weights and random data, and one thread; they take turns, LeRobot in a
process of its own. Time is CPU time, so that other work on the machine counts little. Beside the rates stands what
bounds them: for training, what its matrix products and convolutions alone would take, in which the processor does all
it can; for a chunk, reading as much memory as it has weights to read and doing nothing with them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robostack.bench import compare, measurement, take_turns, timed
from robostack.bench.lerobot import lerobot_name, lerobot_process
from robostack.core.optim import build_optimizers
from robostack.core.unet import UNetConfig
from robostack.policies.act import Act, ActConfig
from robostack.policies.diffusion import Diffusion, DiffusionConfig
from robostack.policies.protocol import Interface, Observation, Text

What = Literal["step", "gradient", "chunk"]
BATCH = 64
ROBOT, ENVIRONMENT, ACTION = 14, 7, 14
"""Numbers in the robot's state, the environment's and an action: ALOHA's transfer cube."""
PRODUCTS = ("mm", "addmm", "addmm_", "bmm", "baddbmm", "convolution", "convolution_backward", "_convolution_pointwise")
"""Names of torch's operations, or their ends, that multiply matrices or convolve."""


@dataclass(frozen=True)
class Program:
    """A policy of one program, ready to train and to sample."""

    loss: Callable[[], Tensor]
    """Of a batch of BATCH."""
    optimizer: torch.optim.Optimizer
    chunk: Callable[[], Any]
    """Samples one chunk."""
    read: int
    """Bytes of weights that sampling a chunk reads."""
    chunks: int = 1
    """Chunks in a block of measurement: more where one takes milliseconds."""

    def run(self, what: What) -> int:
        """One training step, the same without the optimiser, or `chunks` chunks; returns how many."""
        if what == "chunk":
            with torch.inference_mode():
                for _ in range(self.chunks):
                    self.chunk()
            return self.chunks
        self.loss().backward()
        if what == "step":
            self.optimizer.step()
        self.optimizer.zero_grad()
        return 1


@dataclass(frozen=True)
class Case:
    """A policy of both programs; both makers are functions of a module, since LeRobot's runs in another process."""

    ours: Callable[[], Program]
    lerobots: Callable[[], Program]


def bench_policy() -> Iterator[dict[str, Any]]:
    """Measurements with the keys of `robostack bench`; takes about 10 minutes."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler looks for a GPU, and says that there is none
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with TemporaryDirectory() as folder, lerobot_process(Path(folder)) as process:
            process.submit(torch.set_num_threads, 1).result()
            for name, case in CASES.items():
                yield from _case(name, case, lambda call, *arguments: process.submit(call, *arguments).result())
    finally:
        torch.set_num_threads(threads)


def _case(name: str, case: Case, there: Callable[..., Any]) -> Iterator[dict[str, Any]]:
    ours, peer = case.ours(), lerobot_name()
    training: dict[What, str] = {"step": "", "gradient": ", without the optimiser"}
    for what, note in training.items():
        metric = f"training steps, batch {BATCH}{note}"
        rates = _turns(ours, case.lerobots, there, what, blocks=5)
        yield measurement("policy", name, metric, "per CPU second", compare(*rates), peer)
    rate, share = median(rates[0]), product_share(ours)
    bound = "its matrix products alone"
    yield measurement("policy", name, metric, "per CPU second", (rate, rate / share, share), bound)

    rates = _turns(ours, case.lerobots, there, "chunk", blocks=3)
    rate, peer_rate, ratio = compare(*rates)
    yield measurement("policy", name, "chunk latency", "CPU ms", (1e3 / rate, 1e3 / peer_rate, ratio), peer)
    bandwidth = _bandwidth()
    read = ours.read * rate / 1e9
    found = read, bandwidth, read / bandwidth
    yield measurement("policy", name, "weights read in a chunk", "GB/s", found, "reading memory")


def _turns(
    ours: Program, lerobots: Callable[[], Program], there: Callable[..., Any], what: What, blocks: int
) -> tuple[list[float], list[float]]:
    our_rate = timed(lambda: ours.run(what), time.process_time)
    rates = take_turns({"ours": our_rate, "peer": lambda: there(_peer_rate, lerobots, what)}, blocks)
    return rates["ours"], rates["peer"]


def product_share(program: Program) -> float:
    """The share of matrix products and convolutions in the time of a training step without the optimiser."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profile:
        program.run("gradient")
    events = profile.key_averages()
    times = {event.key.rsplit("::", 1)[-1]: 0.0 for event in events}
    for event in events:
        times[event.key.rsplit("::", 1)[-1]] += event.self_cpu_time_total
    products = sum(spent for name, spent in times.items() if name.removeprefix("mkldnn_") in PRODUCTS)
    return products / sum(times.values())


def _bandwidth(size: int = 256 * 1024**2) -> float:
    """GB/s at which one thread sums up memory."""
    memory = torch.ones(size // 4)

    def read() -> int:
        memory.sum()
        return size

    return median(take_turns({"read": timed(read, time.process_time)}, 5)["read"]) / 1e9


@cache
def _peer(lerobots: Callable[[], Program]) -> Program:
    return lerobots()


def _peer_rate(lerobots: Callable[[], Program], what: What) -> float:
    program = _peer(lerobots)
    return timed(lambda: program.run(what), time.process_time)()


def weight_bytes(module: nn.Module) -> int:
    """Bytes of a module's parameters."""
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


def numbers(batch: int, obs_steps: int) -> Observation:
    """Random moments of ROBOT + ENVIRONMENT numbers, without text and cameras."""
    return Observation(
        state=torch.randn(batch, obs_steps, ROBOT + ENVIRONMENT),
        text=Text(torch.zeros(batch, 1, dtype=torch.long), torch.zeros(batch, 1, dtype=torch.bool)),
        images={},
        present={},
        valid=torch.ones(batch, obs_steps, dtype=torch.bool),
        past_actions=torch.randn(batch, obs_steps - 1, ACTION),
    )


def lerobot_numbers(batch: int, obs_steps: int) -> dict[str, Tensor]:
    """The same for LeRobot; its policies of one observation step take no axis for it."""
    shape = (batch, obs_steps) if obs_steps > 1 else (batch,)
    return {
        "observation.state": torch.randn(*shape, ROBOT),
        "observation.environment_state": torch.randn(*shape, ENVIRONMENT),
    }


def lerobot_features() -> dict[str, Any]:
    """The inputs and outputs of a LeRobot policy, and that it stays on this machine."""
    from lerobot.configs.types import FeatureType, PolicyFeature

    return {
        "input_features": {
            "observation.state": PolicyFeature(FeatureType.STATE, (ROBOT,)),
            "observation.environment_state": PolicyFeature(FeatureType.ENV, (ENVIRONMENT,)),
        },
        "output_features": {"action": PolicyFeature(FeatureType.ACTION, (ACTION,))},
        "device": "cpu",
        "push_to_hub": False,
    }


LOOKS, HORIZON, CALLS, WIDTHS = 2, 16, 100, (256, 512, 1024)


def our_diffusion() -> Program:
    """With the optimiser of our training."""
    config = DiffusionConfig(
        chunk_len=HORIZON - LOOKS + 1,
        execute_len=8,
        observe_len=LOOKS,
        predict_past=LOOKS - 1,
        condition="state",
        network="unet",
        unet=UNetConfig(widths=WIDTHS),
        prediction="noise",
        weighting="noise",
        solver="ddpm",
        sample_steps=CALLS,
        clip=1.0,
    )
    policy = Diffusion(config, Interface(ROBOT + ENVIRONMENT, ACTION, words=1, vocabulary=1, cameras={}))
    observation, moment = numbers(BATCH, LOOKS), numbers(1, LOOKS)
    actions = torch.randn(BATCH, config.chunk_len, ACTION)
    valid, generator = torch.ones_like(actions, dtype=torch.bool), torch.Generator().manual_seed(0)
    (optimizer,) = build_optimizers(policy, "adamw", 1e-4, 1e-6)
    return Program(
        lambda: policy.loss(observation, actions, valid, generator),
        optimizer,
        lambda: policy.sample(moment, generator),
        CALLS * weight_bytes(policy.network),
    )


def lerobot_diffusion() -> Program:
    """With the optimiser of its preset."""
    from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig as Config
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy

    sizes = {"n_obs_steps": LOOKS, "horizon": HORIZON, "n_action_steps": 8, "down_dims": WIDTHS}
    config = Config(**lerobot_features(), **sizes, num_train_timesteps=CALLS)
    policy = DiffusionPolicy(config)
    actions = {"action": torch.randn(BATCH, HORIZON, ACTION), "action_is_pad": torch.zeros(BATCH, HORIZON).bool()}
    batch, moment = {**lerobot_numbers(BATCH, LOOKS), **actions}, lerobot_numbers(1, LOOKS)
    optimizer = config.get_optimizer_preset().build(policy.get_optim_params())
    assert isinstance(optimizer, torch.optim.Optimizer)
    return Program(
        lambda: policy(batch)[0],
        optimizer,
        lambda: policy.diffusion.generate_actions(moment),
        CALLS * weight_bytes(policy),  # without cameras, its U-Net alone
    )


CHUNK, CHUNKS = 50, 30


def our_act() -> Program:
    """LeRobot's default sizes under our names, with the optimiser of our training."""
    config = ActConfig(
        chunk_len=CHUNK,
        execute_len=CHUNK,
        width=512,
        hidden=3200,
        heads=8,
        posterior_depth=4,
        encoder_depth=4,
        decoder_depth=1,
        order="post_norm",
        state_parts=(ROBOT, ENVIRONMENT),
    )
    policy = Act(config, Interface(ROBOT + ENVIRONMENT, ACTION, words=1, vocabulary=1, cameras={}))
    observation, moment = numbers(BATCH, 1), numbers(1, 1)
    actions = torch.randn(BATCH, CHUNK, ACTION)
    valid, generator = torch.ones_like(actions, dtype=torch.bool), torch.Generator().manual_seed(0)
    (optimizer,) = build_optimizers(policy, "adamw", 1e-5, 1e-4)
    return Program(
        lambda: policy.loss(observation, actions, valid, generator),
        optimizer,
        lambda: policy.sample(moment, generator),
        weight_bytes(policy) - weight_bytes(policy.posterior),
        CHUNKS,
    )


def lerobot_act(dropout: float = 0.0) -> Program:
    """With the optimiser of its preset."""
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.act.modeling_act import ACTPolicy

    config = ACTConfig(**lerobot_features(), chunk_size=CHUNK, n_action_steps=CHUNK, dropout=dropout)
    policy = ACTPolicy(config).train()
    actions = {"action": torch.randn(BATCH, CHUNK, ACTION), "action_is_pad": torch.zeros(BATCH, CHUNK).bool()}
    batch, moment = {**lerobot_numbers(BATCH, 1), **actions}, lerobot_numbers(1, 1)
    optimizer = config.get_optimizer_preset().build(policy.get_optim_params())
    assert isinstance(optimizer, torch.optim.Optimizer)

    def loss() -> Tensor:
        return policy.train()(batch)[0]  # sampling a chunk leaves it in evaluation mode

    posterior = sum(weight_bytes(part) for name, part in policy.model.named_children() if name.startswith("vae_"))
    return Program(
        loss, optimizer, lambda: policy.predict_action_chunk(moment), weight_bytes(policy) - posterior, CHUNKS
    )


def lerobot_act_with_dropout() -> Program:
    """As its default is; ours has none."""
    return lerobot_act(0.1)


CASES: Mapping[str, Case] = {
    f"diffusion, U-Net, state, {CALLS} DDPM steps": Case(our_diffusion, lerobot_diffusion),
    "act, state": Case(our_act, lerobot_act),
    "act, state, LeRobot's with its dropout": Case(our_act, lerobot_act_with_dropout),
}
