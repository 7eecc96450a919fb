"""Recipes: settings of every stage that are known to work together. A recipe may as well live outside the package.

recipe = aloha_transfer_cube(Path("demo"))
other = dataclasses.replace(recipe, run=Path("wide"), train=("--policy.expert-width", "256"))
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path


@dataclass(frozen=True)
class Recipe:
    """Collect, train and evaluate: `commands` says how to do it on the command line."""

    policy: str
    env: str
    data: Path
    run: Path
    demonstrations: int
    steps: int
    cameras: tuple[str, ...] = ()
    """Recorded, as NAME:HEIGHTxWIDTH; with cameras the policy sees images and joints, and not where the objects are."""
    eyes: tuple[str, ...] = ()
    """Names of the cameras that the policy sees; all that are recorded by default."""
    collect: tuple[str, ...] = ()
    """More flags of `robostack collect`."""
    train: tuple[str, ...] = ()
    """More flags of `robostack train`."""
    seed: int = 0
    """Of the training; the demonstrations are always those of the first seeds."""
    evaluations: int = 100

    def collect_command(self) -> list[str]:
        """Arguments of `robostack` that collect the demonstrations."""
        cameras = ["--cameras", *self.cameras] if self.cameras else []
        count = str(self.demonstrations)
        return ["collect", "--env", self.env, "--episodes", count, "--out", str(self.data), *cameras, *self.collect]

    def train_command(self) -> list[str]:
        """Arguments of `robostack` that train the policy."""
        names = self.eyes or [camera.split(":")[0] for camera in self.cameras]
        images = [f"observation.images.{name}" for name in names]
        observe = ["--observe", "observation.state", *images] if images else []
        settings = ["--steps", str(self.steps), "--seed", str(self.seed), *self.train]
        return ["train", self.policy, "--data", str(self.data), "--out", str(self.run), *settings, *observe]

    def evaluate_command(self) -> list[str]:
        """Arguments of `robostack` that evaluate the policy."""
        return ["eval", str(self.run), "--env", self.env, "--episodes", str(self.evaluations)]

    def commands(self) -> list[list[str]]:
        """All of it, in order."""
        return [self.collect_command(), self.train_command(), self.evaluate_command()]


def aloha_transfer_cube(out: Path, seed: int = 0) -> Recipe:
    """Transfer cube from joint positions and the cube's pose."""
    return Recipe("pi0", "aloha-transfer-cube", out / "data", out / "run", demonstrations=150, steps=3000, seed=seed)


def aloha_insertion(out: Path, seed: int = 0) -> Recipe:
    """Insertion from joint positions and the poses of peg and socket."""
    return replace(aloha_transfer_cube(out, seed), env="aloha-insertion")


def aloha_transfer_cube_pixels(out: Path, seed: int = 0) -> Recipe:
    """Transfer cube from joint positions and a top camera that is narrowed to 42 degrees (see `CAMERAS`)."""
    return Recipe(
        "pi0",
        "aloha-transfer-cube",
        out / "data",
        out / "run",
        demonstrations=200,
        steps=4000,
        cameras=("top_zoom:64x64",),
        # Neighbouring frames look the same: every eighth says as much in an eighth of the memory.
        train=("--frame-stride", "8", "--batch", "64"),
        seed=seed,
    )
