"""Several data sets in one run: shares as asked, the same for a seed, and what a robot lacks is masked."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robostack.datasets.episodes import DataError, Feature
from robostack.datasets.mixture import Layout, Mixture, name_robots, pooled_relative_statistics, pooled_statistics
from robostack.datasets.moments import Moments
from robostack.datasets.statistics import Statistics
from robostack.datasets.store import EpisodeStore, EpisodeWriter
from robostack.datasets.windows import WindowSampler
from robostack.training.preparation import prepare

ARM = ("shoulder", "elbow", "gripper")


def write(
    path: Path, names: tuple[str, ...], robot: str | None = None, fps: float = 10, cameras: tuple[str, ...] = (),
    lengths: tuple[int, ...] = (8, 12), seed: int = 0, task: str = "reach"
) -> EpisodeStore:  # fmt: skip
    vector = Feature((len(names),), "float32", names if names[0] else ())
    features = {"observation.state": vector, "action": vector}
    features |= {f"observation.images.{camera}": Feature((24, 32, 3), "uint8") for camera in cameras}
    writer, rng = EpisodeWriter(path, features, fps, robot=robot), np.random.default_rng(seed)
    for length in lengths:
        columns = {
            key: rng.integers(0, 255, (length, *f.shape), np.uint8)
            if f.is_image
            else rng.normal(seed, 1 + seed, (length, *f.shape)).astype(np.float32)
            for key, f in features.items()
        }
        writer.append(columns, task)
    writer.finish()
    return EpisodeStore(path)


def mixture(stores: list[EpisodeStore], weights: tuple[float, ...] = ()) -> Mixture:
    return Mixture([WindowSampler(store, ("observation.state",), chunk_len=3) for store in stores], weights)


def test_shares_are_those_asked_for_and_sizes_by_default(tmp_path: Path) -> None:
    stores = [write(tmp_path / "a", ARM, lengths=(10,)), write(tmp_path / "b", ARM, lengths=(30,))]
    for weights, expected in (((), 0.25), ((3.0, 1.0), 0.75)):
        drawn = mixture(stores, weights)
        counts = np.zeros(2)
        for step in range(200):
            for part in drawn.draw(20, np.random.default_rng([0, step])):
                counts[part.source] += len(part.windows.action)
        assert counts.sum() == 4000
        assert abs(counts[0] / 4000 - expected) < 5 * np.sqrt(expected * (1 - expected) / 4000)


def test_a_batch_is_a_function_of_its_generator_and_one_data_set_draws_as_alone(tmp_path: Path) -> None:
    stores = [write(tmp_path / "a", ARM), write(tmp_path / "b", ARM, seed=1)]
    one, two = (mixture(stores).draw(16, np.random.default_rng([3, 7])) for _ in range(2))
    for a, b in zip(one, two, strict=True):
        assert a.source == b.source and np.array_equal(a.windows.action, b.windows.action)
    alone = WindowSampler(stores[0], ("observation.state",), chunk_len=3).draw(16, np.random.default_rng(5))
    (part,) = mixture(stores[:1]).draw(16, np.random.default_rng(5))
    assert np.array_equal(part.windows.action, alone.action)


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 0.0), (1.0, -1.0), (1.0, float("inf")), (1.0, float("nan"))])
def test_weights_that_are_none_are_refused(tmp_path: Path, weights: tuple[float, ...]) -> None:
    stores = [write(tmp_path / "a", ARM), write(tmp_path / "b", ARM)]
    with pytest.raises(DataError, match="a positive weight for each of 2 data sets"):
        mixture(stores, weights)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abcdefg"), min_size=1, unique=True), min_size=1, max_size=4))
def test_entries_of_one_name_share_a_place_and_others_do_not(names: list[list[str]]) -> None:
    features = {f"robot {i}": Feature((len(own),), "float32", tuple(own)) for i, own in enumerate(names)}
    layout = Layout.of(features)
    assert layout.size == len({name for own in names for name in own})
    place = {name: layout.places[r][i] for r, f in features.items() for i, name in enumerate(f.names)}
    assert sorted(place.values()) == list(range(layout.size))
    assert all(layout.places[r] == tuple(place[name] for name in f.names) for r, f in features.items())


def test_without_names_every_robot_fills_from_the_front() -> None:
    layout = Layout.of({"a": Feature((2,), "float32", ("x", "y")), "b": Feature((3,), "float32")})
    assert layout == Layout(3, {"a": (0, 1), "b": (0, 1, 2)})


def test_scalars_matrices_and_repeated_names_have_places() -> None:
    left, right = Feature((2,), "float32", ("j", "j")), Feature((3,), "float32", ("j", "g", "j"))
    assert Layout.of({"a": left, "b": right}) == Layout(3, {"a": (0, 1), "b": (0, 2, 1)})
    assert Layout.of({"a": Feature((), "int64"), "b": Feature((2, 3), "bool")}).places["b"] == (0, 1, 2, 3, 4, 5)


def test_data_sets_of_one_robot_must_agree_and_share_statistics(tmp_path: Path) -> None:
    one, two = write(tmp_path / "a", ARM, "arm"), write(tmp_path / "b", ARM, "arm", seed=3)
    keys = ("observation.state", "action")
    assert name_robots([one, two], keys) == ("arm", "arm")
    assert name_robots([one, two], keys, ("left", "right")) == ("left", "right")
    both = np.concatenate([one.read("action"), two.read("action")])
    pooled, expected = pooled_statistics([one, two], ["action"])["action"], Statistics.of(both)
    np.testing.assert_allclose(pooled.std, expected.std, rtol=1e-12)
    assert dataclasses.replace(pooled, std=expected.std, mean=expected.mean) == expected
    other = write(tmp_path / "c", ("shoulder", "gripper"), "arm")
    with pytest.raises(DataError, match=r"are both of the robot 'arm' and differ in observation.state"):
        name_robots([one, other], keys)
    with pytest.raises(DataError, match="a robot for each of 2 data sets"):
        name_robots([one, two], keys, ("left",))


def test_relative_statistics_are_of_the_time_that_a_chunk_takes(tmp_path: Path) -> None:
    """Three actions at 5 Hz span five frames at 10 Hz and nine at 20 Hz."""
    slow, fast = write(tmp_path / "a", ARM, "arm"), write(tmp_path / "b", ARM, "arm", fps=20, seed=1, lengths=(11, 14))
    assert pooled_relative_statistics([slow], 3) == slow.relative_statistics(3)
    assert pooled_relative_statistics([slow], 3, rate=5.0) == slow.relative_statistics(5)
    found = pooled_relative_statistics([slow, fast], 3, rate=5.0)
    alone = [slow.relative_statistics(5), fast.relative_statistics(9)]
    assert found.count == sum(one.count for one in alone)
    assert found.max == tuple(np.max([one.max for one in alone], axis=0))


def robots(tmp_path: Path):
    """A mobile robot of four joints with two cameras, and an arm of two of these joints, in another order, with one."""

    mobile = write(tmp_path / "mobile", (*ARM, "base"), "mobile", cameras=("top", "wrist"), seed=1, task="drive")
    arm = write(tmp_path / "arm", ("gripper", "shoulder"), "arm", cameras=("top",), seed=2, task="hold")
    return (mobile, arm), prepare([mobile, arm], chunk_len=3)


def test_what_a_robot_lacks_is_zero_and_does_not_count(tmp_path: Path) -> None:
    stores, processor = robots(tmp_path)
    assert processor.interface.state_dim == processor.interface.action_dim == 4
    parts = []
    for store, robot in zip(stores, ("mobile", "arm"), strict=True):
        sampler = WindowSampler(store, processor.keys_of(robot), chunk_len=3)
        parts.append((robot, sampler.gather(np.array([0, 7])), [store.tasks[0]] * 2))  # 7 is the last of its episode
    observation, actions, counts = processor.training_batch(parts)
    assert observation.state.shape == (4, 1, 4) and actions.shape == counts.shape == (4, 3, 4)
    assert observation.present["top"].tolist() == [True] * 4
    assert observation.present["wrist"].tolist() == [True, True, False, False]
    assert not observation.images["wrist"][2:].any() and observation.images["wrist"][:2].any()
    # The shared vector is shoulder, elbow, gripper, base: the arm has its first and third.
    assert counts[:, 0].tolist() == [[True] * 4] * 2 + [[True, False, True, False]] * 2
    assert not counts[[1, 3], 1:].any()  # past the end
    assert not observation.state[2:, 0, [1, 3]].any() and not actions[2:, :, [1, 3]].any()
    mine = processor.robots["arm"].statistics["observation.state"]
    first = stores[1].read("observation.state", 0, 1)[0]
    expected = (first - np.array(mine.mean)) / np.array(mine.std)
    np.testing.assert_allclose(observation.state[2, 0, [2, 0]], expected, rtol=1e-4, atol=1e-5)
    for (robot, windows, _), rows in zip(parts, (actions[:2], actions[2:]), strict=True):
        back = processor.denormalize_actions(rows, windows, robot)
        np.testing.assert_allclose(back, windows.action, atol=1e-5)


def test_pi0_does_not_look_through_a_camera_that_is_not_there(tmp_path: Path) -> None:
    from robostack.policies.pi0 import Pi0, Pi0Config

    stores, processor = robots(tmp_path)
    torch.manual_seed(0)
    policy = Pi0(Pi0Config(chunk_len=3, execute_len=1, actions_per_token=3, depth=2), processor.interface)
    for parameter in policy.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    rows = {key: stores[1].gather(key, np.array([0, 1])) for key in processor.keys_of("arm")}
    seen = processor.observe(Moments.of(rows, 2), ["hold", "hold"], "arm")
    other = dataclasses.replace(seen, images={**seen.images, "wrist": torch.full_like(seen.images["wrist"], 200)})
    one, two = (policy.sample(o, torch.Generator().manual_seed(0)) for o in (seen, other))
    assert torch.equal(one, two)
    there = dataclasses.replace(other, present={**seen.present, "wrist": torch.ones(2, dtype=torch.bool)})
    assert not torch.equal(policy.sample(there, torch.Generator().manual_seed(0)), one)


def test_what_does_not_fit_together_is_told(tmp_path: Path) -> None:

    (mobile, arm), processor = robots(tmp_path)
    fast = write(tmp_path / "fast", ARM, "fast", fps=25)
    with pytest.raises(DataError, match=r"10, 25 frames a second: give one with --rate"):
        prepare([mobile, fast], chunk_len=3)
    assert prepare([mobile, fast], chunk_len=3, rate=20.0).rate == 20.0
    large = {**arm.features, "observation.images.top": Feature((32, 32, 3), "uint8")}
    writer = EpisodeWriter(tmp_path / "large", large, 10, robot="large")
    writer.append({key: np.zeros((5, *f.shape), f.dtype) for key, f in writer.features.items()}, "wait")
    with pytest.raises(DataError, match=r"observation.images.top of large is \(32, 32\), of another robot \(24, 32\)"):
        prepare([arm, EpisodeStore(tmp_path / "large")], chunk_len=3)
    assert processor.choose("arm") == "arm"
    with pytest.raises(DataError, match="trained on mobile, arm: expected one of them, got hand"):
        processor.choose("hand")
