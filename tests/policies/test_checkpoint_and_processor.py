"""A checkpoint comes back as it was saved or not at all; a processor tells what it misses."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support import RAN, write, write_reaching_data

from robostack.common.serialize import from_json, to_json
from robostack.datasets.episodes import DataError, Feature
from robostack.datasets.moments import Moments
from robostack.datasets.store import EpisodeStore, EpisodeWriter
from robostack.datasets.windows import WindowSampler
from robostack.policies.act import ActConfig
from robostack.policies.checkpoint import Checkpoint, PolicyTraining, TrainedOn, checkpoint_folder
from robostack.policies.decision_transformer import DecisionTransformerConfig
from robostack.policies.diffusion import DiffusionConfig
from robostack.policies.pi0 import Pi0Config
from robostack.policies.processor import Processor
from robostack.policies.protocol import PolicyConfig
from robostack.policies.settings import Scaling
from robostack.policies.weights import CheckpointError
from robostack.training.preparation import prepare

RNG = np.random.default_rng(0)
CONFIG = Pi0Config(chunk_len=4, execute_len=2, actions_per_token=2, expert_width=16, prefix_width=16, depth=1, heads=2)


@pytest.fixture
def saved(tmp_path: Path) -> Checkpoint:
    processor = prepare([EpisodeStore(write_reaching_data(tmp_path / "data"))], CONFIG.chunk_len)
    folder = tmp_path / "run" / "checkpoints" / "step-00000007"
    training = PolicyTraining(config={}, data=(TrainedOn("data", 8, 192, (0, 7), "0" * 64),), **RAN)
    checkpoint = Checkpoint(folder, "pi0", CONFIG, processor, 7, training)
    weights = checkpoint.build().state_dict()
    checkpoint.save({"model": weights, "average": weights})
    return Checkpoint.read(folder)


def test_round_trip(saved: Checkpoint) -> None:
    read = Checkpoint.read(saved.path.parent.parent)  # by its run
    assert read == dataclasses.replace(saved)
    stored = load_file(saved.path / "average.safetensors")
    assert all(torch.equal(value, stored[key]) for key, value in read.load().state_dict().items())
    assert read.processor.interface == saved.processor.interface


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: t.pop("action_out.bias"), "action_out.bias missing"),
        (lambda t: t.update(extra=torch.zeros(1)), "extra unknown"),
        (lambda t: t.update({"action_out.bias": torch.zeros(3)}), r"is \(3,\), expected \(4,\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused(saved: Checkpoint, damage, message: str) -> None:
    file = saved.path / "average.safetensors"
    tensors = load_file(file)
    damage(tensors)
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.read(saved.path).load()


def test_weights_that_average_words_are_told_as_such(saved: Checkpoint) -> None:
    config = ActConfig(chunk_len=4, execute_len=2, width=16, hidden=16, heads=2)
    checkpoint = dataclasses.replace(saved, path=saved.path.with_name("step-00000008"), policy="act", config=config)
    weights = checkpoint.build().state_dict()
    earlier = {name: value for name, value in weights.items() if not name.startswith("observe.text.")}
    earlier["observe.word.weight"] = weights["observe.text.word.weight"]
    checkpoint.save({"average": earlier})
    with pytest.raises(CheckpointError, match="whose policies averaged the words of a task: train it again"):
        Checkpoint.read(checkpoint.path).load()


def test_a_damaged_or_foreign_checkpoint_is_named(saved: Checkpoint, tmp_path: Path) -> None:
    file = saved.path / "average.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="cannot be read"):
        Checkpoint.read(saved.path).load()
    description = saved.path / "checkpoint.json"
    values = json.loads(description.read_text())
    for change, message in (
        ({"policy": "telepathy"}, "holds the policy 'telepathy'; this version knows pi0"),
        ({"format": "other"}, "expected format"),
        ({"config": {**values["config"], "colour": 1}}, "not whole"),
        ({"processor": {}}, "not whole"),
    ):
        description.write_text(json.dumps({**values, **change}))
        with pytest.raises(CheckpointError, match=message):
            Checkpoint.read(saved.path)
    description.write_text("{")
    with pytest.raises(CheckpointError, match="not whole"):
        Checkpoint.read(saved.path)
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        Checkpoint.read(tmp_path / "nowhere")


def test_a_save_that_was_killed_is_not_a_checkpoint(saved: Checkpoint) -> None:
    partial = saved.path.with_name(".step-00000009.new")
    partial.mkdir()
    (partial / "checkpoint.json").write_text("{}")
    assert checkpoint_folder(saved.path.parent.parent) == saved.path


def test_state_keys_are_joined_and_images_pass_untouched(tmp_path: Path) -> None:
    write(tmp_path / "data", [9, 8])
    store = EpisodeStore(tmp_path / "data")
    processor = prepare([store], 4)
    assert processor.keys == ("observation.state", "observation.images.top")
    assert processor.interface.cameras == {"top": (6, 5)}
    rows = {key: store.read(key, 0, 3) for key in processor.keys}
    observation = processor.observe(Moments.of(rows, 2), ["task 0", "task 1", "task 0"], "robot")
    assert np.array_equal(observation.images["top"][:, 0].numpy(), rows["observation.images.top"])
    state = store.read("observation.state")
    expected = (rows["observation.state"] - state.mean(0)) / state.std(0)
    np.testing.assert_allclose(observation.state[:, 0], expected, atol=1e-5)
    actions, moments = store.read("action", 0, 4)[None], Moments.of(rows, 2)
    unit = processor.normalize_actions(actions, moments, "robot")
    np.testing.assert_allclose(processor.denormalize_actions(unit, moments, "robot"), actions, atol=1e-5)
    assert from_json(Processor, json.loads(json.dumps(to_json(processor)))) == processor


def test_a_checkpoint_says_what_the_entries_of_a_robot_are(tmp_path: Path) -> None:
    """So that a robot can be held against the policy that should move it."""
    write(tmp_path / "data", [9])
    processor = prepare([EpisodeStore(tmp_path / "data")], 4)
    robot = processor.robots["robot"]
    assert robot.names == {"observation.state": ("a", "b", "c")}
    assert robot.units == {"observation.state": ("rad", "rad", "m")}
    values = to_json(processor)
    assert from_json(Processor, json.loads(json.dumps(values))) == processor
    for what in ("names", "units"):
        described = values["robots"]["robot"]
        for key, told in (("observation.state", ["x"]), ("telepathy", ["x"])):
            changed = {**values, "robots": {"robot": {**described, what: {key: told}}}}
            with pytest.raises(ValueError, match=f"robot robot: it has 1 {what} of {key}"):
                from_json(Processor, changed)


def test_what_is_missing_or_broken_is_named(tmp_path: Path) -> None:
    write(tmp_path / "data", [9])
    store = EpisodeStore(tmp_path / "data")
    with pytest.raises(DataError, match=r"lacks observation\.depth"):
        prepare([store], 4, ["observation.depth"])
    with pytest.raises(DataError, match="expected a state to observe"):
        prepare([store], 4, ["observation.images.top"])
    processor = prepare([store], 4)
    rows = {key: store.read(key, 0, 1) for key in processor.keys}

    def observe(rows: dict[str, np.ndarray], task: str = "task 0") -> None:
        processor.observe(Moments.of(rows, 2), [task], "robot")

    with pytest.raises(DataError, match=r"the policy observes observation\.images\.top"):
        observe({"observation.state": rows["observation.state"]})
    with pytest.raises(DataError, match="expected shape"):
        observe({**rows, "observation.state": np.zeros((1, 4), np.float32)})
    with pytest.raises(DataError, match="not finite"):
        observe({**rows, "observation.state": np.full((1, 3), np.nan, np.float32)})
    for dtype in (np.float32, np.uint16, np.int64, bool):
        frames = rows["observation.images.top"].astype(dtype)
        with pytest.raises(DataError, match=rf"images\.top: expected pixels as uint8, 0 to 255, got {dtype.__name__}"):
            observe({**rows, "observation.images.top": frames})
    for rows_of_no_numbers in (rows["observation.state"].astype(str), rows["observation.state"].astype(object)):
        with pytest.raises(DataError, match=r"observation\.state: expected numbers, got"):
            observe({**rows, "observation.state": rows_of_no_numbers})
    with pytest.raises(ValueError, match="dance"):
        observe(rows, task="dance")
    robot = processor.robots["robot"]
    robot = dataclasses.replace(robot, statistics={"action": robot.statistics["action"]})
    incomplete = dataclasses.replace(processor, robots={"robot": robot})
    with pytest.raises(DataError, match=r"statistics of observation\.state of robot are missing"):
        incomplete.observe(Moments.of(rows, 2), ["task 0"], "robot")


@pytest.mark.parametrize(
    ("config", "refused"),
    [
        (DecisionTransformerConfig(context=3, chunk_len=4, execute_len=2), True),
        (DecisionTransformerConfig(context=1, chunk_len=4, execute_len=2), False),
        (DiffusionConfig(chunk_len=9, execute_len=4, observe_len=2, predict_past=1), True),
        (DiffusionConfig(chunk_len=10, execute_len=4, observe_len=2), False),
        (CONFIG, False),
    ],
)
def test_actions_of_the_past_are_not_relative_to_what_came_after_them(
    tmp_path: Path, config: PolicyConfig, refused: bool
) -> None:
    features = {"observation.state": Feature((2,), "float32"), "action": Feature((2,), "float32")}
    writer, rng = EpisodeWriter(tmp_path / "data", {**features, "next.reward": Feature((), "float32")}, fps=10), RNG
    columns = {key: rng.normal(size=(20, 2)).astype(np.float32) for key in features}
    writer.append({**columns, "next.reward": np.ones(20, np.float32)}, "turn")
    stores, relative = [EpisodeStore(tmp_path / "data")], Scaling(relative_actions=True)
    prepare(stores, config.chunk_len, history=config.history)
    if not refused:
        prepare(stores, config.chunk_len, scaling=relative, history=config.history)
        return
    with pytest.raises(DataError, match=r"leave --relative-actions out, or use no past") as told:
        prepare(stores, config.chunk_len, scaling=relative, history=config.history)
    assert "\n" not in str(told.value)


def test_relative_actions_are_those_of_the_chunk_less_the_state(tmp_path: Path) -> None:
    features = {"observation.state": Feature((2,), "float32", ("wrist", "gripper"))}
    features["action"] = features["observation.state"]
    writer, rng = EpisodeWriter(tmp_path / "data", features, fps=10), np.random.default_rng(0)
    for length in (9, 12):
        writer.append({key: rng.normal(size=(length, 2)).astype(np.float32) for key in features}, "turn")
    writer.finish()
    store = EpisodeStore(tmp_path / "data")
    scaling = Scaling("quantiles", relative_actions=True, absolute_entries=("gripper",))
    processor = prepare([store], chunk_len=3, scaling=scaling)
    robot = processor.robots["robot"]
    relative, absolute = store.relative_statistics(3), store.statistics()["action"]
    assert robot.relative == (True, False)
    assert robot.statistics["action"].q99 == (relative.q99[0], absolute.q99[1])

    windows = WindowSampler(store, processor.keys_of("robot"), chunk_len=3).gather(np.arange(5))
    unit = processor.normalize_actions(windows.action, windows, "robot").numpy()
    moved = windows.action - windows.observation["observation.state"] * np.array([1, 0], np.float32)
    low, high = np.array(robot.statistics["action"].q01), np.array(robot.statistics["action"].q99)
    np.testing.assert_allclose(unit, 2 * (moved - low) / (high - low) - 1, atol=1e-5)
    back = processor.denormalize_actions(torch.from_numpy(unit), windows, "robot")
    np.testing.assert_allclose(back, windows.action, atol=1e-5)
    assert from_json(Processor, json.loads(json.dumps(to_json(processor)))) == processor
    with pytest.raises(DataError, match=r"the action has no entry thumb: it has wrist, gripper"):
        prepare([store], 3, scaling=Scaling(relative_actions=True, absolute_entries=("thumb",)))
    with pytest.raises(DataError, match=r"relative actions need observation\.state, got only action"):
        stateless = Moments.of({"action": windows.action[:, 0]}, 2)
        processor.normalize_actions(windows.action, stateless, "robot")


def test_numbers_of_every_shape_and_type_are_observed_and_acted(tmp_path: Path) -> None:
    features = {
        "observation.keypoint": Feature((3, 2), "float64"),
        "observation.contacts": Feature((), "int64"),
        "observation.closed": Feature((2,), "bool"),
        "observation.state": Feature((2, 2), "float32"),
        "action": Feature((2, 2), "float32"),
    }
    writer = EpisodeWriter(tmp_path / "data", features, 10.0)
    rng = np.random.default_rng(0)
    columns = {key: rng.integers(0, 9, (12, *f.shape)).astype(f.dtype) for key, f in features.items()}
    writer.append(columns, "push")
    writer.finish()
    store = EpisodeStore(tmp_path / "data")
    for scaling in (Scaling(), Scaling(normalization="min_max", relative_actions=True)):
        processor = prepare([store], 3, scaling=scaling)
        assert dict(processor.state) == {f"observation.{key}": n for key, n in
                                         (("keypoint", 6), ("contacts", 1), ("closed", 2), ("state", 4))}  # fmt: skip
        windows = WindowSampler(store, tuple(processor.state), 3).gather(np.array([4]))
        assert windows.action.shape == (1, 3, 4)
        observation, actions, _ = processor.training_batch([("robot", windows, ["push"])])
        assert observation.state.shape == (1, 1, 13)
        keypoints = columns["observation.keypoint"].reshape(12, 6)
        if scaling.normalization == "mean_std":
            unit = (keypoints[4] - keypoints.mean(0)) / keypoints.std(0)
            np.testing.assert_allclose(observation.state[0, 0, :6], unit, rtol=1e-5, atol=1e-5)
        back = processor.denormalize_actions(actions, windows, "robot")
        np.testing.assert_allclose(back[0], columns["action"][4:7].reshape(3, 4), rtol=1e-5, atol=1e-5)


def test_what_is_no_state_is_named(tmp_path: Path) -> None:
    features = {"observation.heat": Feature((80, 80), "float32"), "action": Feature((2,), "float32")}
    writer = EpisodeWriter(tmp_path / "data", features, 10.0)
    writer.append({key: np.ones((5, *f.shape), np.float32) for key, f in features.items()}, "push")
    with pytest.raises(DataError, match=r"observation.heat of 80×80 is no state of numbers: leave it out with"):
        prepare([EpisodeStore(tmp_path / "data")], 3)
