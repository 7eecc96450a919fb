"""A policy is loaded without drawing weights that a file has, and is the one that was drawn and overwritten."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from observations import interface, make_observation, seeded
from safetensors.torch import load_file
from small_policies import CAMERAS, PI0, SMALL
from support import RAN, write_reaching_data
from torch import Tensor, nn

from robostack.common.serialize import to_json
from robostack.common.tensors import Seal
from robostack.datasets.store import EpisodeStore
from robostack.policies.checkpoint import Checkpoint, PolicyTraining
from robostack.policies.encoder import EncoderConfig
from robostack.policies.registry import policy_class
from robostack.policies.weights import CheckpointError, load_strictly, without_weights
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


@pytest.mark.parametrize("name", ["average", "model"])
def test_what_is_too_large_for_a_file_is_in_several_as_hugging_face_has_them(name: Any, saved: Checkpoint) -> None:
    stored = saved.load(name).state_dict()
    most = sum(value.nbytes for value in stored.values()) // 3
    split = replace(saved, path=saved.path.with_name("split"))
    split.save({"average": stored, "model": stored}, shard_bytes=most)
    read = Checkpoint.read(split.path)
    index = json.loads((read.path / f"{name}.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    count = len(files)
    assert count >= 3 and files == [f"{name}-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in stored.values())
    assert set(read.files) == {file.name for file in read.path.iterdir()} - {"checkpoint.json"}
    for file in files:
        held = load_file(read.path / file)
        assert held.keys() == {key for key, of in index["weight_map"].items() if of == file}
        assert len(held) == 1 or sum(value.nbytes for value in held.values()) <= most
    loaded = read.load(name).state_dict()
    assert loaded.keys() == stored.keys() and all(torch.equal(loaded[key], stored[key]) for key in stored)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda folder: (folder / "model-00002-of-00004.safetensors").unlink(), "No such file"),
        (lambda folder: move(folder / "model-00002-of-00004.safetensors", -9), "is damaged"),
        (lambda folder: move(folder / "model.safetensors.index.json", 9), "is damaged"),
        (lambda folder: (folder / "model.safetensors.index.json").unlink(), "No such file"),
    ],
)
def test_what_is_in_several_files_is_read_strictly(damage: Any, told: str, saved: Checkpoint) -> None:
    split = replace(saved, path=saved.path.with_name("split"))
    stored = saved.load().state_dict()
    split.save({"model": stored}, shard_bytes=sum(value.nbytes for value in stored.values()) // 3)
    assert len(list(split.path.glob("model-*"))) == 4
    damage(split.path)
    with pytest.raises(CheckpointError, match=told) as caught:
        Checkpoint.read(split.path).load()
    assert "model.safetensors.index.json cannot be read" in str(caught.value) and "\n" not in str(caught.value)


def test_an_index_must_say_what_the_files_hold(saved: Checkpoint) -> None:
    """Even where its hash is that of checkpoint.json."""
    split = replace(saved, path=saved.path.with_name("split"))
    split.save({"model": saved.load().state_dict()}, shard_bytes=1000)
    file = split.path / "model.safetensors.index.json"
    values, description = json.loads(file.read_text()), json.loads((split.path / "checkpoint.json").read_text())
    first, *_, last = values["weight_map"]
    for change, told in (
        ({first: values["weight_map"][last]}, "does not hold the tensors that the index says"),
        ({first: "../run/model.safetensors"}, "expected files beside the index"),
        ({first: 3}, "expected a weight_map"),
    ):
        file.write_text(json.dumps({**values, "weight_map": {**values["weight_map"], **change}}))
        description["files"][file.name] = to_json(Seal.of(file))
        (split.path / "checkpoint.json").write_text(json.dumps(description))
        with pytest.raises(CheckpointError, match=told):
            Checkpoint.read(split.path).load()


def move(file: Path, place: int) -> None:
    """Changes one byte."""
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(bytes(data))


def test_without_an_average_the_weights_act(saved: Checkpoint) -> None:
    stored = saved.load().state_dict()
    alone = replace(saved, path=saved.path.with_name("alone"))
    alone.save({"model": stored})
    read = Checkpoint.read(alone.path)
    assert (saved.best, read.best) == ("average", "model")
    assert all(torch.equal(value, stored[key]) for key, value in read.load().state_dict().items())


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
