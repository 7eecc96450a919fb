"""Small data sets that tests share, and a pool of no processes."""

from concurrent.futures import Future
from pathlib import Path

import numpy as np

from robostack.common.provenance import Ran
from robostack.datasets.episodes import Feature
from robostack.datasets.store import EpisodeWriter

FEATURES = {
    "observation.state": Feature((3,), "float32", ("a", "b", "c"), ("rad", "rad", "m")),
    "observation.images.top": Feature((6, 5, 3), "uint8"),
    "action": Feature((2,), "float32"),
    "next.success": Feature((), "bool"),
}

RAN: Ran = {"command": "train", "commit": "abc", "date": "today", "machine": "here"}
"""Where a training was run."""


def make_episode(length: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "observation.state": rng.normal(size=(length, 3)).astype(np.float32),
        "observation.images.top": rng.integers(0, 256, (length, 6, 5, 3), dtype=np.uint8),
        "action": rng.normal(size=(length, 2)).astype(np.float32),
        "next.success": rng.random(length) > 0.5,
    }


def write(path: Path, lengths: list[int]) -> list[dict[str, np.ndarray]]:
    writer = EpisodeWriter(path, FEATURES, fps=50, provenance={"seeds": [0, 0]})
    episodes = [make_episode(length, seed) for seed, length in enumerate(lengths)]
    for i, episode in enumerate(episodes):
        writer.append(episode, f"task {i % 2}", {"seeds": [0, i]})
    return episodes


def write_reaching_data(path: Path, episodes: int = 8, length: int = 24, seed: int = 0) -> Path:
    """A data set a policy can learn in seconds: each action is a fixed linear map of the first state."""
    features = {"observation.state": Feature((3,), "float32"), "action": Feature((2,), "float32")}
    writer = EpisodeWriter(path, features, fps=50, provenance={"seeds": [0, episodes - 1]})
    rng = np.random.default_rng(seed)
    for _ in range(episodes):
        state = rng.normal(size=(length, 3)).astype(np.float32)
        writer.append({"observation.state": state, "action": state[:, :2] - state[:, 2:]}, "reach")
    return path


ARM_FEATURES = {
    "observation.state": Feature((3,), "float32", ("a", "b", "c")),
    "action": Feature((2,), "float32", ("x", "y")),
    "next.reward": Feature((1,), "float32"),
    "next.done": Feature((1,), "bool"),
    "forces": Feature((2, 3), "float64"),
    "observation.images.top": Feature((32, 48, 3), "uint8"),
}


def make_arm_episode(length: int, seed: int = 0) -> dict[str, np.ndarray]:
    """What a LeRobot data set can hold, with pictures that a video keeps well: a disc on a shaded ground."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:32, 0:48]
    frames = np.empty((length, 32, 48, 3), np.uint8)
    for i in range(length):
        disc = (x - 6 - 2 * i) ** 2 + (y - 10 - seed) ** 2 < 5**2
        frames[i] = np.where(disc[..., None], [200, 60, 40], (60 + 3 * x + 4 * seed)[..., None])
    return {
        "observation.state": rng.normal(size=(length, 3)).astype(np.float32),
        "action": rng.normal(size=(length, 2)).astype(np.float32),
        "next.reward": rng.random((length, 1), np.float32),
        "next.done": np.arange(length)[:, None] == length - 1,
        "forces": rng.normal(size=(length, 2, 3)),
        "observation.images.top": frames,
    }


def arm_tasks(length: int, seed: int = 0) -> list[str]:
    """A text for each frame; every episode has one of its own and one that all share."""
    return ["reach"] * (length - 3) + [f"grasp {seed}"] * 3


class InProcess:
    """A worker pool without processes, in which a test's stand-in for the expert is seen."""

    def __init__(self, workers: int, start, *arguments) -> None:
        start(*arguments)

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None: ...

    def submit(self, function, *arguments) -> Future:
        future = Future()
        future.set_result(function(*arguments))
        return future

    def shutdown(self, **_) -> None: ...
