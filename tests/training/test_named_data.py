"""What `--data` may name, and what is said of all else."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from support import write_reaching_data

from robostack.cli import main
from robostack.datasets.episodes import DataError
from robostack.datasets.formats.convert import ConvertConfig, convert
from robostack.policies.checkpoint import Checkpoint
from robostack.policies.pi0 import Pi0Config
from robostack.training import data as training_data
from robostack.training.config import TrainConfig
from robostack.training.log import read_training_log
from robostack.training.trainer import resume, train

POLICY = Pi0Config(chunk_len=4, execute_len=2, actions_per_token=2, expert_width=32, prefix_width=16, depth=1, heads=2)


def settings(data: Path, out: Path, **changes: Any) -> TrainConfig:
    return dataclasses.replace(TrainConfig((data,), out, steps=2, batch=8, log_every=1, threads=1), **changes)


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A data set in another format."""
    own = write_reaching_data(tmp_path / "own")
    convert(ConvertConfig(own, tmp_path / "other", to="diffusion-policy"))
    return tmp_path / "other"


@pytest.mark.parametrize(
    ("named", "told"),
    [
        ("nowhere", "it does not exist"),
        ("empty", "it is an empty folder"),
        ("lerobot/pusht", "hf download lerobot/pusht --repo-type dataset --local-dir pusht"),
        ("notes", "no data set that is known"),
        ("notes/todo.txt", "no data set that is known"),
        ("other", "in the format diffusion-policy: robostack convert"),
        ("other", "or train with --convert"),
    ],
)
def test_what_cannot_be_trained_on_is_told_in_one_line(
    named: str, told: str, other: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(other.parent)
    Path("empty").mkdir()
    Path("notes").mkdir()
    Path("notes/todo.txt").write_text("train")
    assert main(["train", "pi0", "--data", named, "--out", "run"]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and told in lines[0], lines
    assert not Path("run").exists() and not Path(f"{named}.robostack").exists()


def test_a_conversion_lies_beside_its_source_and_is_used_again(
    other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    direct = train("pi0", POLICY, settings(tmp_path / "own", tmp_path / "direct"))
    seen: list[Any] = []
    config = settings(other, tmp_path / "one", convert=True)
    train("pi0", POLICY, config, converting=seen.append)
    assert seen and seen[-1].done == 8 and (tmp_path / "other.robostack" / "zarr.json").is_file()
    monkeypatch.setattr(training_data, "convert", None)  # from here on nothing is converted
    train("pi0", POLICY, dataclasses.replace(config, out=tmp_path / "two"))
    losses = [[line["loss"] for line in read_training_log(run)] for run in (direct, tmp_path / "one", tmp_path / "two")]
    assert losses[0] == losses[1] == losses[2]
    resume(tmp_path / "two")
    (data,) = Checkpoint.read(tmp_path / "two").training.data
    assert data.path == str(tmp_path / "other.robostack")


def more(source: Path, cache: Path) -> None:
    (source / "more").write_text("")


def of_another(source: Path, cache: Path) -> None:
    (cache / training_data.SOURCE_FILE).write_text(json.dumps({"files": "0"}))


def of_none(source: Path, cache: Path) -> None:
    (cache / training_data.SOURCE_FILE).unlink()


def something_else(source: Path, cache: Path) -> None:
    cache.rename(cache.with_name("away"))
    cache.mkdir()
    (cache / "todo.txt").write_text("mine")


@pytest.mark.parametrize("change", [more, of_another, of_none, something_else])
def test_a_cache_that_does_not_match_is_told_and_not_touched(other: Path, tmp_path: Path, change: Any) -> None:
    config = settings(other, tmp_path / "run", convert=True)
    train("pi0", POLICY, config)
    cache = tmp_path / "other.robostack"
    change(other, cache)
    before = sorted(path.name for path in cache.iterdir())
    with pytest.raises(DataError, match=r"other\.robostack was not made of .* as it is now: remove it"):
        train("pi0", POLICY, dataclasses.replace(config, out=tmp_path / "again"))
    assert sorted(path.name for path in cache.iterdir()) == before and not (tmp_path / "again").exists()


def test_what_a_conversion_has_to_be_told_is_asked_for(tmp_path: Path) -> None:
    convert(ConvertConfig(write_reaching_data(tmp_path / "own"), tmp_path / "other", to="diffusion-policy"))
    attributes = tmp_path / "other" / ".zattrs"
    values = json.loads(attributes.read_text()) if attributes.exists() else {}
    if not values:
        pytest.skip("this format keeps its rate elsewhere")
    attributes.write_text("{}")
    with pytest.raises(DataError, match=r"give --fps.*robostack convert .* NEW") as told:
        train("pi0", POLICY, settings(tmp_path / "other", tmp_path / "run", convert=True))
    assert "\n" not in str(told.value) and not (tmp_path / "run").exists()
