"""π0 learns the same from a data set that went through another program's format as from the original: bit for bit."""

from pathlib import Path

import numpy as np
import pytest

from robostack.datasets.episodes import Feature
from robostack.datasets.formats.convert import ConvertConfig, convert
from robostack.datasets.store import EpisodeWriter
from robostack.policies.pi0 import Pi0Config
from robostack.training.config import TrainConfig
from robostack.training.log import read_training_log
from robostack.training.trainer import train

POLICY = Pi0Config(chunk_len=4, execute_len=2, actions_per_token=2, expert_width=32, prefix_width=16, depth=2, heads=2)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "original"
    arms = Feature((14,), "float32")
    features = {"observation.state": arms, "action": arms, "observation.images.top": Feature((32, 48, 3), "uint8")}
    writer, rng = EpisodeWriter(path, features, fps=50, robot="aloha"), np.random.default_rng(0)
    for length in (13, 20, 9):
        state = rng.normal(size=(length, 14)).astype(np.float32).cumsum(0)
        images = rng.integers(0, 256, (length, 32, 48, 3), dtype=np.uint8)
        columns = {"observation.state": state, "action": state[::-1].copy(), "observation.images.top": images}
        writer.append(columns, "Hand the cube over.")
    writer.finish()
    return path


def losses(data: Path) -> list[float]:
    run = data.with_name(data.name + "-run")
    if not run.exists():
        train("pi0", POLICY, TrainConfig((data,), run, steps=12, batch=8, log_every=1, threads=1))
    return [line["loss"] for line in read_training_log(run)]


@pytest.mark.parametrize("by", ["lerobot", "aloha", "diffusion-policy"])
def test_the_loss_curve_is_the_same_after_a_conversion_there_and_back(original: Path, by: str) -> None:
    there, back = original.with_name(f"{by}-there"), original.with_name(f"{by}-back")
    images = {"lerobot": "png"}.get(by, "raw")
    convert(ConvertConfig(original, there, to=by, images=images))
    convert(ConvertConfig(there, back))
    assert losses(back) == losses(original) and len(losses(back)) == 12
