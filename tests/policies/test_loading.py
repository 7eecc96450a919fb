"""A policy is loaded without drawing weights that a file has, and is the one that was drawn and overwritten."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from observations import interface, make_observation, seeded
from small_policies import CAMERAS, PI0, SMALL
from support import RAN, write_reaching_data
from torch import Tensor, nn

from robostack.datasets.store import EpisodeStore
from robostack.policies.checkpoint import Checkpoint, PolicyTraining
from robostack.policies.encoder import EncoderConfig
from robostack.policies.registry import policy_class
from robostack.policies.weights import load_strictly, without_weights
from robostack.training.preparation import prepare

CASES = {**SMALL, "pi0, vit": (replace(PI0, encoder=EncoderConfig(vision="vit")), CAMERAS)}


def held(module: nn.Module) -> dict[str, Tensor]:
    """Everything that a module computes with, also what no file has."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("world", [None, (3, 4)])
def test_what_is_loaded_is_bit_for_bit_what_was_drawn_and_overwritten(
    case: str, world: tuple[int, int] | None, tmp_path: Path
) -> None:
    config, cameras = CASES[case]
    sizes = replace(interface(cameras), entities=world)

    def make() -> Any:
        return policy_class(case.split(",")[0])(config, sizes)

    torch.manual_seed(0)
    drawn = make().eval()
    stored = {name: torch.randn_like(value) * 0.1 for name, value in drawn.state_dict().items()}
    drawn.load_state_dict(stored)
    before = torch.get_rng_state()
    loaded: Any = without_weights(make)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.is_meta for parameter in loaded.parameters())
    load_strictly(loaded.eval(), stored, tmp_path, assign=True)
    expected, got = held(drawn), held(loaded)
    assert expected.keys() == got.keys() and loaded.state_dict().keys() == drawn.state_dict().keys()
    for name, value in expected.items():
        assert got[name].device == value.device and torch.equal(got[name], value), name
        assert got[name].requires_grad == value.requires_grad
    observation = make_observation(2, cameras, config.history)
    if world is not None:
        observation = replace(observation, entities=torch.rand(2, config.history.length, *world))
    with torch.inference_mode():
        chunks = [policy.sample(observation, seeded()) for policy in (drawn, loaded)]
    assert torch.equal(*chunks)


@pytest.fixture
def saved(tmp_path: Path) -> Checkpoint:
    config = replace(PI0, chunk_len=4, execute_len=2)
    processor = prepare([EpisodeStore(write_reaching_data(tmp_path / "data"))], config.chunk_len)
    checkpoint = Checkpoint(tmp_path / "run", "pi0", config, processor, 7, PolicyTraining(config={}, data=(), **RAN))
    weights = checkpoint.build().state_dict()
    checkpoint.save({"model": weights, "average": weights})
    return Checkpoint.read(tmp_path / "run")


def test_each_tensor_is_in_memory_once(saved: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read from the file is what the policy computes with."""
    read, places = Checkpoint.tensors, {}

    def noting(*arguments: Any) -> dict[str, Tensor]:
        found = read(*arguments)
        places.update({name: value.data_ptr() for name, value in found.items()})
        return found

    monkeypatch.setattr(Checkpoint, "tensors", noting)
    assert {name: value.data_ptr() for name, value in saved.load().named_parameters()} == places


def test_a_policy_at_work_does_not_see_its_file_change(saved: Checkpoint) -> None:
    """Whoever copies another checkpoint over the one that a robot acts by does not change how it acts."""
    policy, file = saved.load(), saved.path / "average.safetensors"
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    with file.open("r+b") as opened:
        opened.seek(-4096, os.SEEK_END)
        opened.write(bytes(4096))
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())


def test_a_policy_is_loaded_in_another_type(saved: Checkpoint) -> None:
    stored, policy = saved.load().state_dict(), saved.load(dtype=torch.bfloat16)
    for name, value in policy.state_dict().items():
        assert value.dtype == torch.bfloat16 and torch.equal(value, stored[name].bfloat16()), name
