"""Demonstrations of an expert into a data set, over processes, and a check of what came out.

Episode k of the data set is the k-th seed, counted from the first, whose demonstration succeeded; where noise is asked
for, the k-th seed as it went. Either way the same data for the same seed on any number of workers.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from robostack import envs
from robostack.datasets.aloha_hdf5 import ARM_NAMES, ARM_UNITS
from robostack.datasets.episodes import Feature
from robostack.datasets.store import EpisodeStore, EpisodeWriter
from robostack.envs.aloha.cameras import Camera, parse_camera
from robostack.experts import Expert, make_expert
from robostack.processes import cores, worker_pool
from robostack.provenance import describe_run

STATE = "observation.state"
KINETIX_NAMES = ("motor0", "motor1", "motor2", "motor3", "thruster0", "thruster1")
POSE_NAMES, POSE_UNITS = ("x", "y", "z", "qw", "qx", "qy", "qz"), ("m", "m", "m", "1", "1", "1", "1")


class CollectionError(RuntimeError):
    """The expert cannot supply the demonstrations."""


@dataclass(frozen=True)
class CollectConfig:
    """Which demonstrations to collect and where to put them."""

    env: str
    """Environment, such as aloha-transfer-cube."""
    out: Path
    """Data set to write; must not exist yet."""
    episodes: int = 50
    """Episodes to keep: successful ones, unless `noise` or more than one `expert` is given."""
    seed: int = 0
    """Seed of the first episode; the next has the next number."""
    cameras: tuple[str, ...] = ()
    """Cameras to record, as NAME or NAME:HEIGHTxWIDTH, such as top_zoom:64x64."""
    expert: tuple[Path, ...] = ()
    """Where no expert is scripted: run or checkpoint of `robostack expert`. Of n of them, episode k is played by number
    k mod n, for data of mixed quality, and is kept whether it succeeds or not."""
    observe: tuple[str, ...] = (STATE,)
    """With `expert`: observations to record, of observation.state, .entities and .images.view."""
    noise: tuple[float, ...] = ()
    """Deviations in radians of a smooth disturbance of the commanded joints, for data of mixed quality: episode k has
    level k mod n of these n, and is kept whether it succeeds or not."""
    workers: int = 0
    """Processes; 0 takes one a core."""

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise ValueError(f"episodes must be at least 1, got {self.episodes}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        if not all(0 <= level < np.inf for level in self.noise):
            raise ValueError(f"noise must be finite and not negative, got {self.noise}")
        if self.expert and (self.noise or self.cameras):
            raise ValueError("noise and cameras are for scripted experts, got them with --expert")
        if not self.expert and self.observe != (STATE,):
            raise ValueError("observe goes with --expert: a scripted expert records all, and --cameras")
        if not self.observe:
            raise ValueError("observe must name at least one observation, got none")

    @property
    def mixed(self) -> bool:
        """Whether episodes are kept that fail."""
        return bool(self.noise) or len(self.expert) > 1

    def noise_of(self, seed: int) -> float:
        """The deviation of the disturbance in the episode of a seed."""
        return self.noise[(seed - self.seed) % len(self.noise)] if self.noise else 0.0


@dataclass(frozen=True)
class Collected:
    """How far a collection is."""

    kept: int
    failed: int
    """Episodes that did not end in success; with noise they are among those kept."""


def collect(config: CollectConfig, report: Callable[[Collected], None] = lambda _: None) -> Collected:
    """Collects and writes the demonstrations; `report` is told after every episode.

    An interrupted collection leaves the whole episodes it had. Raises FileExistsError when `out` exists, ValueError
    for an unknown environment or camera, CollectionError when more than half of the undisturbed demonstrations fail.
    """
    cameras = tuple(parse_camera(text) for text in config.cameras)
    if config.expert:
        envs.resolve(config.env)
    else:
        make_expert(config.env)  # a wrong name is told before anything is written
    if config.out.exists():
        raise FileExistsError(f"{config.out} already exists: choose another path or remove it first")
    done = Collected(0, 0)
    writer: EpisodeWriter | None = None
    undisturbed = Counter[bool]()  # how many succeeded and failed
    demonstrations = _played(config) if config.expert else _demonstrations(config, cameras)
    for seed, (episode, task, fps, robot) in enumerate(demonstrations, start=config.seed):
        if writer is None:
            paths = {"out": str(config.out), "expert": [str(path) for path in config.expert]}
            settings = {**asdict(config), **paths, "workers": None}
            provenance = {"collected": settings, "seeds": [config.seed, config.seed], **describe_run()}
            writer = EpisodeWriter(config.out, _features(episode, robot), fps, provenance, robot)
        succeeded = bool(episode["next.success"][-1])
        kept = succeeded or config.mixed
        done = Collected(done.kept + kept, done.failed + (not succeeded))
        # What a disturbance spoils is no fault of the expert's, and a mixture is meant to have bad ones.
        if config.noise_of(seed) == 0.0 and len(config.expert) < 2:
            undisturbed[succeeded] += 1
            if undisturbed[False] > max(10, undisturbed[True]):
                tried = undisturbed.total()
                raise CollectionError(
                    f"{undisturbed[False]} of {tried} demonstrations in {config.env} failed: fix the expert"
                )
        # The range of seeds that were used, kept or not: evaluation must stay out of it.
        if kept:
            writer.append(episode, task, {"seeds": [config.seed, seed]})
        report(done)
        if done.kept == config.episodes:
            writer.finish()
            break
    return done


Demonstration = tuple[dict[str, np.ndarray], str, float, str]
"""An episode; its task, frames a second and robot."""


def _demonstrations(config: CollectConfig, cameras: Sequence[Camera]) -> Iterator[Demonstration]:
    """Demonstrations for rising seeds without end; workers run a few seeds ahead."""
    workers = min(config.workers or cores(), config.episodes)
    with worker_pool(workers, _start_worker, config.env, tuple(cameras)) as pool:
        seeds, pending = count(config.seed), deque[Future[Demonstration]]()
        try:
            while True:
                while len(pending) < 2 * workers:
                    seed = next(seeds)
                    pending.append(pool.submit(_demonstrate, seed, config.noise_of(seed)))
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _played(config: CollectConfig) -> Iterator[Demonstration]:
    """Episodes of trained experts for rising seeds without end, many at once in one program."""
    from robostack.experts.ppo_expert import PpoExpert

    experts = [PpoExpert.load(path) for path in config.expert]
    kind = envs.vector_class(config.env)
    worlds: Any = envs.make_vector(config.env, kind.together, **kind.evaluation)
    for first in count(config.seed, kind.together):
        seeds = range(first, first + kind.together)
        players = (np.arange(kind.together) + first - config.seed) % len(experts)
        for episode in play_together(worlds, experts, players, seeds, config.observe):
            yield episode, worlds.task, worlds.metadata["render_fps"], worlds.robot


def play_together(
    worlds: Any, experts: Sequence[Any], players: np.ndarray, seeds: Sequence[int], observe: Sequence[str]
) -> list[dict[str, np.ndarray]]:
    """An episode in every row of a vector environment of Kinetix, row i by experts[players[i]] from seeds[i].

    Row t of an observation is what was seen before action t; the actions are those that the expert asked for, before
    the environment's noise on them. Raises ValueError for an observation that there is not.
    """
    wanted = dict.fromkeys((STATE, *observe), ())
    worlds.reset(seed=list(seeds))
    steps: list[dict[str, np.ndarray]] = []
    lengths = np.zeros(len(seeds), dtype=int)
    while not lengths.all():
        seen = worlds.look(wanted)
        if unknown := [key for key in observe if key not in seen]:
            raise ValueError(
                f"there is no {unknown[0]} to record: expected observation.state, .entities or .images.view"
            )
        actions = np.zeros(worlds.action_space.shape, np.float32)
        for number, expert in enumerate(experts):
            rows = players == number
            actions[rows] = expert.act({STATE: seen[STATE][rows]})
        _, rewards, terminated, truncated, info = worlds.step(actions)
        steps.append(
            {
                **{key: seen[key] for key in observe},
                "action": actions,
                "next.reward": rewards.astype(np.float32),
                "next.success": info["success"].astype(bool),
            }
        )
        lengths[(terminated | truncated) & (lengths == 0)] = len(steps)
    return [
        {key: np.stack([step[key][i] for step in steps[:length]]) for key in steps[0]}
        for i, length in enumerate(lengths)
    ]


_worker: tuple[gym.Env, Expert, tuple[Camera, ...]] | None = None


def _start_worker(env_name: str, cameras: tuple[Camera, ...]) -> None:
    global _worker
    _worker = (envs.make(env_name), make_expert(env_name), cameras)


def _demonstrate(seed: int, noise: float) -> Demonstration:
    assert _worker is not None
    env, expert, cameras = _worker
    episode = expert.demonstrate(env, seed, cameras, noise)
    return episode, env.get_wrapper_attr("task"), env.metadata["render_fps"], env.get_wrapper_attr("robot")


def _features(episode: dict[str, np.ndarray], robot: str) -> dict[str, Feature]:
    named: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {"action": (KINETIX_NAMES, ("1",) * len(KINETIX_NAMES))}
    if robot == "aloha":
        named = dict.fromkeys((STATE, "action"), (ARM_NAMES, ARM_UNITS))
    if "observation.environment_state" in episode:
        objects = episode["observation.environment_state"].shape[1] // len(POSE_NAMES)
        names = tuple(f"object{i}_{name}" for i in range(objects) for name in POSE_NAMES)
        named["observation.environment_state"] = (names, POSE_UNITS * objects)
    return {
        key: Feature(tuple(rows.shape[1:]), str(rows.dtype), *named.get(key, ((), ()))) for key, rows in episode.items()
    }


@dataclass(frozen=True)
class Spread:
    """How one entry of the action varies: over episodes at a moment of the episode, and from step to step."""

    name: str
    largest_std: float
    """Largest deviation over episodes, over the moments of an episode."""
    largest_step: float
    """Largest change from one step to the next."""
    branches: bool
    """Its values fall into two groups far apart: the expert solves the same situation in two ways."""


GAP = 1.0
"""Radians between two groups of joint values that count as two branches: variation of the task moves joints less."""


def spread(store: EpisodeStore) -> list[Spread]:
    """The spread of every action entry over the episodes of a data set, cut to the shortest of them."""
    bounds = zip(store.episode_starts.tolist(), store.episode_ends.tolist(), strict=True)
    actions = [store.read("action", start, end) for start, end in bounds]
    steps = [np.abs(np.diff(episode, axis=0)).max(axis=0) for episode in actions]
    length = min(map(len, actions))
    together = np.stack([episode[:length] for episode in actions])
    deviation = together.std(axis=0).max(axis=0)
    gaps = np.diff(np.sort(together, axis=0), axis=0) if len(actions) > 1 else np.zeros((1, length, together.shape[2]))
    names = store.features["action"].names or tuple(map(str, range(together.shape[2])))
    return [
        Spread(
            name,
            float(deviation[i]),
            float(np.max(steps, axis=0)[i]),
            # A gripper opens at slightly different times: between 0 and 1 it may jump without two ways of solving.
            bool(gaps[:, :, i].max() > GAP) and "gripper" not in name,
        )
        for i, name in enumerate(names)
    ]
