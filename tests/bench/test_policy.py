"""`robostack bench policy`: that both programs do the same work, and what is told of it; not how fast it is."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robostack.bench import policy as bench_policy
from robostack.bench.policy import Case, Program


def small_program() -> Program:
    net, x = nn.Linear(64, 64), torch.randn(32, 64)

    def loss() -> Tensor:
        return net(x).square().mean()

    return Program(loss, torch.optim.Adam(net.parameters()), lambda: net(x), bench_policy.weight_bytes(net))


def test_a_case_tells_rates_latency_and_what_bounds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_policy, "_bandwidth", lambda: 10.0)

    def here(call: Any, *arguments: Any) -> Any:
        return call(*arguments)

    found = list(bench_policy._case("small", Case(small_program, small_program), here))
    assert [(line["metric"], line["unit"]) for line in found] == [
        ("training steps, batch 64", "per CPU second"),
        ("training steps, batch 64, without the optimiser", "per CPU second"),
        ("training steps, batch 64, without the optimiser", "per CPU second"),
        ("chunk latency", "CPU ms"),
        ("weights read in a chunk", "GB/s"),
    ]
    assert all(line["value"] > 0 and line["peer_value"] > 0 and line["ratio"] > 0 for line in found)
    assert found[2]["peer"] == "its matrix products alone" and found[2]["ratio"] < 1
    assert found[4]["peer_value"] == 10.0


def test_a_program_trains_only_where_it_steps() -> None:
    net = nn.Linear(4, 4)
    program = Program(
        lambda: net(torch.ones(1, 4)).sum(), torch.optim.SGD(net.parameters(), 1.0), lambda: net(torch.ones(1, 4)), 0
    )
    before = net.weight.clone()
    program.run("gradient")
    program.run("chunk")
    assert torch.equal(net.weight, before)
    program.run("step")
    assert not torch.equal(net.weight, before)


def test_both_diffusion_policies_are_of_one_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_policy, "WIDTHS", (16, 32, 64))
    monkeypatch.setattr(bench_policy, "CALLS", 4)
    programs = [bench_policy.our_diffusion(), bench_policy.lerobot_diffusion()]
    assert programs[0].read == programs[1].read
    for program in programs:
        assert program.loss().isfinite()
        program.run("step")
        with torch.inference_mode():
            assert program.chunk().shape[2] == bench_policy.ACTION


def test_both_acts_are_of_one_size_but_for_what_only_one_needs() -> None:
    ours, lerobots = bench_policy.our_act(), bench_policy.lerobot_act()
    # LeRobot's first self-attention of the decoder, and its norm, are one vector of ours.
    assert lerobots.read - ours.read == 4 * (4 * 512 * 512 + 4 * 512 + 2 * 512 - 512)
    assert ours.run("chunk") == bench_policy.CHUNKS
