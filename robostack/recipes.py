"""Recipes: settings of every stage that are known to work together. A recipe may as well live outside the package."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path


@dataclass(frozen=True)
class Recipe:
    """Collect, train and evaluate, all below one folder."""

    env: str
    out: Path
    episodes: int
    """Demonstrations to collect."""
    steps: int
    """Training steps."""
    evaluation_episodes: int = 100
    cameras: tuple[str, ...] = ()
    """As NAME:HEIGHTxWIDTH; with cameras the policy sees joints and images and not where the objects are."""
    train: tuple[str, ...] = ()
    """More flags of `robostack train pi0`."""
    seed: int = 0
    """Of training; demonstrations are always those of the first seeds."""

    def commands(self) -> list[tuple[str, list[str]]]:
        """The verbs of the command line, each with its flags, that carry out the recipe."""
        data, run = str(self.out / "data"), str(self.out / "run")
        collect = ["--env", self.env, "--episodes", str(self.episodes), "--out", data]
        train = ["pi0", "--data", data, "--out", run, "--steps", str(self.steps), "--seed", str(self.seed), *self.train]
        if self.cameras:
            collect += ["--cameras", *self.cameras]
            images = [f"observation.images.{camera.split(':')[0]}" for camera in self.cameras]
            train += ["--observe", "observation.state", *images]
        evaluate = [run, "--env", self.env, "--episodes", str(self.evaluation_episodes)]
        return [("collect", collect), ("train", train), ("eval", evaluate)]


def aloha_transfer_cube(out: Path) -> Recipe:
    """Transfer cube from joint positions and the cube's pose."""
    return Recipe("aloha-transfer-cube", out, episodes=50, steps=2000)


def aloha_insertion(out: Path) -> Recipe:
    """Insertion from joint positions and the poses of peg and socket."""
    return replace(aloha_transfer_cube(out), env="aloha-insertion")
