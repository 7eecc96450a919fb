"""What others wrote, or a disk damaged, is one line: never a traceback, a hang, or memory for what cannot be."""

import json
import os
import resource
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_policies import SMALL
from support import FEATURES, RAN, make_episode

from robostack.cli import main
from robostack.datasets.episodes import Feature
from robostack.datasets.store import EpisodeStore, EpisodeWriter
from robostack.policies.checkpoint import RUN_FILE, Checkpoint, PolicyTraining, TrainedOn, checkpoint_folder
from robostack.policies.weights import CheckpointError
from robostack.training.preparation import prepare
from robostack.training.trainer import resume

CASES = ("pi0, camera", "act", "diffusion, dit", "diffusion, unet, camera", "decision_transformer, bins", "energy")


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, EpisodeStore]:
    folder, stores = tmp_path_factory.mktemp("data"), {}
    for camera in (False, True):
        features = {key: of for key, of in FEATURES.items() if camera or not of.is_image}
        features["next.reward"] = Feature((), "float32")
        writer = EpisodeWriter(folder / str(camera), features, fps=50)
        episode = {**make_episode(30), "next.reward": np.ones(30, np.float32)}
        writer.append({key: episode[key] for key in features}, "reach out")
        stores[camera] = EpisodeStore(folder / str(camera))
    return stores


def save(stores: dict[bool, EpisodeStore], case: str, folder: Path) -> Checkpoint:
    config, cameras = SMALL[case]
    processor = prepare([stores[bool(cameras)]], config.chunk_len, history=config.history)
    training = PolicyTraining(config={}, data=(TrainedOn("data", 1, 30, (0, 7), "0" * 64),), **RAN)
    checkpoint = Checkpoint(folder, case.split(",")[0], config, processor, 7, training)
    weights = checkpoint.build().state_dict()
    checkpoint.save({"model": weights, "average": weights})
    return Checkpoint.read(folder)


BAD: tuple[Any, ...] = (
    None, True, "", "x" * 5000, "3", [], {}, [[[[1]]]], {"a": {"b": 1}}, 0, -1, 1, 3, 7, 10**9, 10**30, 10**400, 0.5,
    1e308, float("nan"), float("inf"), [10**9] * 3, [-1, 2], "\x1b[31m\n", [None],
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value, of long lists the first and the last."""
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*path, key))
    elif isinstance(value, list):
        for index in sorted({0, len(value) - 1} if value else ()):
            yield from places(value[index], (*path, index))


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = changed(value[path[0]], path[1:], new)
    return copy


@pytest.mark.parametrize("case", CASES)
def test_other_values_in_a_description_are_told_in_one_line(
    case: str, stores: dict[bool, EpisodeStore], tmp_path: Path
) -> None:
    """A random sample of all places and values; what is still taken loads in no time."""
    checkpoint = save(stores, case, tmp_path / "checkpoint")
    file = checkpoint.path / "checkpoint.json"
    values, rng = json.loads(file.read_text()), np.random.default_rng(0)
    where = list(places(values))
    refused = 0
    for _ in range(250):
        path, new = where[rng.integers(len(where))], BAD[rng.integers(len(BAD))]
        file.write_text(json.dumps(changed(values, path, new)))
        begun = time.process_time()
        try:
            Checkpoint.read(checkpoint.path).load()
        except CheckpointError as error:
            refused += 1
            assert "\n" not in str(error) and str(error).isprintable() and len(str(error)) < 1000, (path, error)
        except Exception as error:
            raise AssertionError(f"{path} = {new!r}: {error!r}") from error
        assert time.process_time() - begun < 2.0, (path, new)
    assert refused > 125


@pytest.mark.parametrize(
    ("case", "path", "value"),
    [
        ("pi0, camera", ("config", "chunk_len"), 10**9),
        ("pi0, camera", ("config", "depth"), 1000),
        ("pi0, camera", ("config", "expert_width"), 99_000),
        ("pi0, camera", ("config", "heads"), 0),
        ("pi0, camera", ("processor", "action_dim"), 900_000),
        ("pi0, camera", ("processor", "tokenizer", "length"), 10**9),
        ("pi0, camera", ("processor", "cameras", "top"), [10**6, 10**6]),
        ("pi0, camera", ("processor", "rate"), 0),
        ("pi0, camera", ("processor", "rate"), float("nan")),
        ("pi0, camera", ("processor", "robots", "robot", "places", "action"), [0, 10**9]),
        ("pi0, camera", ("processor", "robots", "robot", "statistics", "action", "mean"), [1.0]),
        ("pi0, camera", ("processor", "robots", "robot", "statistics", "action", "std"), [-1.0, 1.0]),
        ("pi0, camera", ("training", "data", 0, "seeds"), "0-49"),
        ("pi0, camera", ("training", "data", 0, "seeds"), [0]),
        ("pi0, camera", ("training", "data", 0, "seeds"), [True, 3]),
        ("pi0, camera", ("training", "data"), 3),
        ("pi0, camera", ("step",), -1),
        ("pi0, camera", ("files",), {}),
        ("diffusion, dit", ("config", "sample_steps"), 0),
        ("diffusion, dit", ("config", "noising_steps"), 10**9),
        ("diffusion, unet, camera", ("config", "unet", "widths"), [8] * 1000),
        ("decision_transformer, bins", ("config", "context"), 10**8),
        ("energy", ("config", "level_steps"), 10**9),
        ("energy", ("config", "candidates"), 10**9),
        ("act", ("config", "latent"), 0),
        ("diffusion, unet, camera", ("config", "encoder", "channels", 2), 10**49),
    ],
)
def test_what_cannot_be_is_refused(
    case: str, path: tuple[Any, ...], value: Any, stores: dict[bool, EpisodeStore], tmp_path: Path
) -> None:
    checkpoint = save(stores, case, tmp_path / "checkpoint")
    file = checkpoint.path / "checkpoint.json"
    file.write_text(json.dumps(changed(json.loads(file.read_text()), path, value)))
    with pytest.raises(CheckpointError) as told:
        Checkpoint.read(checkpoint.path).load()
    assert "\n" not in str(told.value)


def test_a_huge_model_takes_no_memory(stores: dict[bool, EpisodeStore], tmp_path: Path) -> None:
    """Each layer is of a size that anybody may mean; together they are 50 GB."""
    checkpoint = save(stores, "pi0, camera", tmp_path / "checkpoint")
    file = checkpoint.path / "checkpoint.json"
    values = json.loads(file.read_text())
    values["config"] |= {"expert_width": 8192, "prefix_width": 8192, "depth": 40}
    file.write_text(json.dumps(values))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match="does not fit"):
        Checkpoint.read(checkpoint.path).load()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def zeros(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))


def one_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-9] ^= 1
    file.write_bytes(bytes(data))


def shorter(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-5])


def longer(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0\0\0\0")


def pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def device(file: Path) -> None:
    file.unlink()
    file.symlink_to("/dev/zero")


def folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def huge(file: Path) -> None:
    os.truncate(file, 1 << 40)  # without taking so much of the disk


def header(file: Path) -> None:
    file.write_bytes((10**15).to_bytes(8, "little") + file.read_bytes()[8:])


@pytest.mark.parametrize("damage", [zeros, one_bit, shorter, longer, pipe, device, folder, huge, header, Path.unlink])
@pytest.mark.parametrize("name", ["average", "model"])
def test_a_file_that_is_not_what_was_written_is_refused(
    damage: Any, name: Any, stores: dict[bool, EpisodeStore], tmp_path: Path
) -> None:
    checkpoint = save(stores, "pi0, camera", tmp_path / "checkpoint")
    damage(checkpoint.path / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match=rf"{name}\.safetensors cannot be read") as told:
        Checkpoint.read(checkpoint.path).load(name)
    assert "\n" not in str(told.value)


def nested(file: Path) -> None:
    file.write_text('{"format": ' + "[" * 100_000)


def nested_within(file: Path) -> None:
    values = json.loads(file.read_text())
    text = json.dumps({**values, "training": {**values["training"], "config": "HERE"}})
    file.write_text(text.replace('"HERE"', '{"a": ' * 900 + "1" + "}" * 900))


def gigabyte(file: Path) -> None:
    os.truncate(file, 1 << 30)


def bytes_of_none(file: Path) -> None:
    file.write_bytes(b"\xff\xfe\x00")


def digits(file: Path) -> None:
    file.write_text('{"format": ' + "9" * 10_000 + "}")


def other(file: Path) -> None:
    file.write_text("[1, 2]")


@pytest.mark.parametrize("damage", [nested, nested_within, gigabyte, bytes_of_none, digits, other, zeros, shorter])
@pytest.mark.parametrize("name", ["checkpoint.json", RUN_FILE])
def test_a_description_that_cannot_be_read_is_told(
    damage: Any, name: str, stores: dict[bool, EpisodeStore], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By `inspect` and by a training that should go on, in one line."""
    checkpoint = save(stores, "pi0, camera", tmp_path / "run" / "checkpoints" / "step-00000007")
    if name == RUN_FILE:
        shutil.rmtree(tmp_path / "run" / "checkpoints")
        checkpoint.save_start(tmp_path / "run")
        damage(tmp_path / "run" / RUN_FILE)
    else:
        damage(checkpoint_folder(tmp_path / "run") / name)
        assert main(["inspect", str(checkpoint.path)]) == 1
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert main(["train", "--resume", str(tmp_path / "run")]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert name in line and len(line) < 1000


def test_pipes_and_devices_are_no_runs(stores: dict[bool, EpisodeStore], tmp_path: Path) -> None:
    checkpoint = save(stores, "act", tmp_path / "run" / "checkpoints" / "step-00000007")
    os.mkfifo(tmp_path / "run" / RUN_FILE)
    for name in ("checkpoint.json",):
        pipe(checkpoint.path / name)
    for path in (tmp_path / "run", checkpoint.path, tmp_path / "run" / RUN_FILE, Path("/dev/zero")):
        with pytest.raises((CheckpointError, OSError)) as told:
            resume(path)
        assert "\n" not in str(told.value)
