"""A run keeps the tokenizer and the prompt that it was trained with, whatever becomes of the file they are from."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from published_prompts import PI05
from support import write_reaching_data
from token_files import hugging_face, sentencepiece_model

from robostack.cli import main
from robostack.core.text.files import FileTokenizer
from robostack.core.text.prompt import Prompt
from robostack.datasets.moments import Moments
from robostack.policies.checkpoint import Checkpoint
from robostack.policies.pi0 import Pi0Config
from robostack.policies.settings import Scaling, TextSettings
from robostack.policies.weights import CheckpointError
from robostack.training.config import TrainConfig
from robostack.training.trainer import resume, train

POLICY = Pi0Config(chunk_len=4, execute_len=2, actions_per_token=2, expert_width=16, prefix_width=16, depth=1, heads=2)
MOMENTS = Moments.of({"observation.state": np.array([[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]], np.float32)}, 2)


def settings(folder: Path, text: TextSettings, normalization: str = "min_max") -> TrainConfig:
    data = (write_reaching_data(folder / "data"),)
    scaling = Scaling(normalization)
    return TrainConfig(
        data, folder / "run", scaling=scaling, text=text, steps=2, batch=4, checkpoint_every=2, threads=1
    )


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json"])
def test_a_checkpoint_is_whole_with_the_tokenizer_in_it(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / f"gemma{Path(name).suffix}"
    (hugging_face if name.endswith("json") else sentencepiece_model)(source)
    text = TextSettings(source, 12, text_before=("<bos>",), prompt=Prompt("{task}\n"))
    run = train("pi0", POLICY, settings(tmp_path, text))
    here = FileTokenizer.of(source, 12, ["<bos>"])
    source.unlink()

    checkpoint = Checkpoint.read(run)
    assert (checkpoint.path / name).is_file()
    observation = checkpoint.processor.observe(MOMENTS, ["reach", "reach"], "robot")
    assert np.array_equal(observation.text.ids, here.encode(["reach\n"] * 2).ids)
    policy = checkpoint.load()
    assert torch.isfinite(policy.sample(observation, torch.Generator().manual_seed(0))).all()
    assert main(["inspect", str(run), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["tokenizer"], said["words"], said["prompt"]) == (name, here.size, "{task}\n")

    begun = tmp_path / "begun"
    begun.mkdir()
    for file in ("run.json", name):
        shutil.copy(run / file, begun / file)
    assert Checkpoint.read(resume(begun)).processor == checkpoint.processor

    content = bytearray((checkpoint.path / name).read_bytes())
    content[-1] ^= 1
    (checkpoint.path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name} cannot be read \(.* is damaged"):
        Checkpoint.read(run)
    (checkpoint.path / name).unlink()
    with pytest.raises(CheckpointError, match=rf"{name} cannot be read"):
        Checkpoint.read(run)


def test_a_state_can_be_told_in_words(tmp_path: Path) -> None:
    run = train("pi0", POLICY, settings(tmp_path, TextSettings(prompt=PI05)))
    processor = Checkpoint.read(run).processor
    observation = processor.observe(MOMENTS, ["reach", "reach"], "robot")
    expected = [PI05.write("reach", state) for state in observation.state[:, -1].numpy()]
    assert expected[0] != expected[1]
    assert np.array_equal(observation.text.ids, processor.tokenizer.encode(expected).ids)
    assert observation.text.valid.all()


def test_a_state_that_lies_anywhere_is_not_told_in_words(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"needs it in −1\.\.1: set --normalization to quantiles or min_max"):
        train("pi0", POLICY, settings(tmp_path, TextSettings(prompt=PI05), "mean_std"))


def test_a_tokenizer_that_cannot_say_the_tasks_is_told_before_training(tmp_path: Path) -> None:
    hugging_face(tmp_path / "tokenizer.json")
    told = settings(tmp_path, TextSettings(tmp_path / "tokenizer.json", 2))
    with pytest.raises(ValueError, match=r"tokens, expected at most 2"):
        train("pi0", POLICY, told)
    with pytest.raises(ValueError, match="does not have the token '<start>'"):
        train("pi0", POLICY, dataclasses.replace(told, text=TextSettings(told.text.tokenizer, 9, ("<start>",))))
    assert not told.out.exists()
