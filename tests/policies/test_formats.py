"""What an earlier robostack wrote is still read: checkpoints/POLICY-FORMAT.json are as it wrote them.

When a policy's settings or a processor change, these files stay as they are: a new field has a default, and a changed
meaning a migration in `robostack.policies.formats`.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from observations import seeded

from robostack.common.serialize import from_json, to_json
from robostack.common.tensors import Seal
from robostack.datasets.moments import Moments
from robostack.policies.checkpoint import Checkpoint
from robostack.policies.formats import FORMAT
from robostack.policies.weights import CheckpointError
from robostack.training.config import TrainConfig

WRITTEN = {path.stem: path for path in sorted((Path(__file__).parent / "checkpoints").glob("*.json"))}


def placed(values: dict[str, Any], folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "checkpoint.json").write_text(json.dumps(values))
    return folder


def test_every_version_that_is_read_has_an_example() -> None:
    versions = {int(name.rpartition("-")[2]) for name in WRITTEN}
    assert versions >= set(FORMAT.migrations)


@pytest.mark.parametrize("name", WRITTEN)
def test_what_an_earlier_robostack_wrote_is_read_and_acts(name: str, tmp_path: Path) -> None:
    values = json.loads(WRITTEN[name].read_text())
    policy, version = name.split("-")
    read = Checkpoint.read(placed(values, tmp_path))
    assert (read.policy, read.step, read.training.data[0].seeds) == (policy, 2, (0, 0))
    assert read.sealed == (version != "4")
    assert from_json(TrainConfig, read.training.config, fill=True).batch == 4
    whole = tmp_path / "whole"
    replace(read, path=whole).save({"average": read.build().state_dict()})
    if read.sealed:
        values["files"] = to_json({file.name: Seal.of(file) for file in whole.glob("*.safetensors")})
    loaded: Any = Checkpoint.read(placed(values, whole)).load()

    processor, history = read.processor, read.config.history
    shapes = processor.shapes_of("robot")
    rows = {
        key: np.zeros((1, history.length, *shape), np.uint8 if "images" in key else np.float32)
        for key, shape in shapes.items()
    }
    moments = Moments(
        rows,
        valid=np.ones((1, history.length), bool),
        past_action=np.zeros((1, history.steps, 2), np.float32),
        acted=np.ones((1, history.steps), bool),
        returns_to_go=np.ones((1, history.length), np.float32),
    )
    with torch.inference_mode():
        chunk = loaded.sample(processor.observe(moments, ["reach out"], "robot"), seeded())
    assert chunk.shape == (1, read.config.chunk_len, 2) and bool(chunk.isfinite().all())


def test_a_field_that_was_not_yet_takes_its_default_and_one_that_is_not_yet_is_refused(tmp_path: Path) -> None:
    values = json.loads(WRITTEN["pi0-5"].read_text())
    values["config"]["sample_steps"] = 3
    shorter = {key: value for key, value in values["config"].items() if key != "sample_steps"}
    read = Checkpoint.read(placed({**values, "config": shorter}, tmp_path))
    assert read.config.sample_steps == type(read.config)().sample_steps != 3
    placed({**values, "config": {**values["config"], "colour": 1}}, tmp_path)
    with pytest.raises(CheckpointError, match=r"a later robostack wrote it .*colour"):
        Checkpoint.read(tmp_path)


def test_what_version_4_left_open_is_as_it_was(tmp_path: Path) -> None:
    values = json.loads(WRITTEN["pi0-4"].read_text())
    robot = Checkpoint.read(placed(values, tmp_path)).processor.robots["robot"]
    least = values["processor"]["scaling"]["smallest_scale"]
    assert robot.smallest == {"observation.state": (least,) * 3, "action": (least,) * 2} and robot.depth == {}
    placed({**values, "training": {"data": 3}}, tmp_path)
    with pytest.raises(CheckpointError, match="is not whole"):
        Checkpoint.read(tmp_path)


def test_weights_of_pi0s_prefix_that_nothing_read_are_left_behind(tmp_path: Path) -> None:
    """What version 5 wrote: a last block of the prefix with queries, an output, a feed-forward and a final norm."""
    values = json.loads(WRITTEN["pi0-5"].read_text())
    read = Checkpoint.read(placed(values, tmp_path))
    current = read.build().state_dict()
    block, config = f"transformer.layers.{read.config.depth - 1}", read.config
    name, width = f"{block}.projections.0.query_key_value.weight", config.prefix_width
    queries = torch.randn(config.heads * config.head_dim, width)
    written = {
        **current,
        name: torch.cat([queries, current[name]]),
        f"{block}.projections.0.output.weight": queries.T.contiguous(),
        f"{block}.feed_forward_norms.0.weight": torch.zeros(width),
        f"{block}.feed_forwards.0.gate_up.weight": torch.randn(2 * config.prefix_hidden, width),
        f"{block}.feed_forwards.0.down.weight": torch.randn(width, config.prefix_hidden),
        "transformer.norms.0.weight": torch.zeros(width),
    }
    whole = tmp_path / "whole"
    replace(read, path=whole).save({"average": written})
    values["files"] = to_json({file.name: Seal.of(file) for file in whole.glob("*.safetensors")})
    loaded = Checkpoint.read(placed(values, whole)).load().state_dict()
    assert loaded.keys() == current.keys() and all(torch.equal(loaded[key], current[key]) for key in current)


def test_pi0s_settings_of_version_5_have_their_names_of_now(tmp_path: Path) -> None:
    values = json.loads(WRITTEN["pi0-5"].read_text())
    then, config = values["config"], Checkpoint.read(placed(values, tmp_path)).config
    assert config.expert_hidden == then["hidden_multiple"] * then["expert_width"]
    assert config.prefix_hidden == then["hidden_multiple"] * then["prefix_width"]
    assert (config.weighting, config.solver) == ("data", "ddim") and config.largest_weight == pytest.approx(400.0)
