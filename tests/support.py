"""Small data sets that tests share."""

from pathlib import Path

import numpy as np

from robostack.datasets.episodes import Feature
from robostack.datasets.store import EpisodeWriter

FEATURES = {
    "observation.state": Feature((3,), "float32", ("a", "b", "c"), ("rad", "rad", "m")),
    "observation.images.top": Feature((6, 5, 3), "uint8"),
    "action": Feature((2,), "float32"),
    "next.success": Feature((), "bool"),
}


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


def write_reaching_data(path: Path, episodes: int = 8, length: int = 24) -> Path:
    """A data set a policy can learn in seconds: each action is a fixed linear map of the first state."""
    features = {"observation.state": Feature((3,), "float32"), "action": Feature((2,), "float32")}
    writer = EpisodeWriter(path, features, fps=50, provenance={"seeds": [0, episodes - 1]})
    rng = np.random.default_rng(0)
    for _ in range(episodes):
        state = rng.normal(size=(length, 3)).astype(np.float32)
        writer.append({"observation.state": state, "action": state[:, :2] - state[:, 2:]}, "reach")
    return path
