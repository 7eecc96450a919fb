"""Demonstrations of an expert into a data set.

Episode k of the data set is the k-th seed, counted from the first, whose demonstration succeeded; where a mixture is
asked for, the k-th seed, whether it succeeded or not. Either way the same data for the same seed on any number of
workers, and whenever a collection is interrupted and goes on.
"""

from __future__ import annotations

import fcntl
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robostack.common.files import refuse_taken, room_needed
from robostack.common.interrupt import saying
from robostack.common.provenance import describe_run
from robostack.common.serialize import from_json, to_json
from robostack.datasets.episodes import DataError, Feature
from robostack.datasets.store import EpisodeStore, EpisodeWriter
from robostack.envs.description import EnvDescription
from robostack.experts import Asked, make_expert
from robostack.experts.record import Demonstration, demonstrations

OBSERVE = ("observation.state",)
"""What `--observe` says where it is not given: as much as the environment gives by default."""


class CollectionError(RuntimeError):
    """The expert cannot supply the demonstrations."""


@dataclass(frozen=True)
class CollectConfig:
    """Which demonstrations to collect and where to put them."""

    env: str
    """Environment, such as aloha-transfer-cube."""
    out: Path
    """Data set to write; must not exist yet, but for what an interrupted collection with the same settings left: that
    goes on."""
    episodes: int = 50
    """Episodes to keep: successful ones, unless `noise` or more than one `expert` is given."""
    seed: int = 0
    """Seed of the first episode; the next has the next number."""
    cameras: tuple[str, ...] = ()
    """Cameras to record, as NAME or NAME:HEIGHTxWIDTH, such as top_zoom:64x64."""
    expert: tuple[Path, ...] = ()
    """Where no expert is scripted: run or checkpoint of `robostack expert`. Of n of them, episode k is played by number
    k mod n, for data of mixed quality, and is kept whether it succeeds or not."""
    observe: tuple[str, ...] = OBSERVE
    """With `expert`: observations to record, of observation.state, .entities and .images.view."""
    noise: tuple[float, ...] = ()
    """Deviations in radians of a smooth disturbance of the commanded joints, for data of mixed quality: episode k has
    level k mod n of these n, and is kept whether it succeeds or not."""
    workers: int = 0
    """Processes; 0 takes one per core."""

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise ValueError(f"episodes must be at least 1, got {self.episodes}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        if not all(0 <= level < np.inf for level in self.noise):
            raise ValueError(f"noise must be finite and not negative, got {self.noise}")
        if not self.observe:
            raise ValueError("observe must name at least one observation, got none")

    @property
    def asked(self) -> Asked:
        """What the expert is asked for."""
        observe = () if self.observe == OBSERVE else self.observe
        return Asked(self.expert, self.noise, self.cameras, observe, first=self.seed)

    @property
    def mixed(self) -> bool:
        """Whether episodes are kept that fail."""
        return bool(self.noise) or len(self.expert) > 1

    def at_its_best(self, seed: int) -> bool:
        """Whether the expert that plays the episode of a seed is meant to succeed: undisturbed, and no part of a
        mixture, which is meant to have bad ones."""
        disturbed = self.noise and self.noise[(seed - self.seed) % len(self.noise)] > 0
        return not disturbed and len(self.expert) < 2


@dataclass(frozen=True)
class Collected:
    """How far a collection is."""

    kept: int
    failed: int
    """Episodes that did not end in success; with noise they are among those kept."""


def settings_of(folder: Path) -> CollectConfig:
    """Those of an interrupted collection, to go on with it. Raises DataError where there is none, or it has ended."""
    store = EpisodeStore(folder)
    if store.finished:
        raise DataError(f"{folder} is finished, with {store.episodes} episodes: there is nothing to go on with")
    settings = store.provenance.get("collected")
    if not isinstance(settings, dict):
        raise DataError(f"{folder} was not written by `robostack collect`: there is nothing to go on with")
    try:
        return from_json(CollectConfig, settings | {"out": str(folder), "workers": 0})
    except ValueError as error:
        raise DataError(f"{folder} does not say how it was collected: {error}") from error


def collect(config: CollectConfig, report: Callable[[Collected], None] = lambda _: None) -> Collected:
    """Collects and writes the demonstrations; `report` is told after every episode.

    Whatever ends it, what is on disk are the whole episodes it had, and the same settings go on with them: the data
    come out the same. Raises FileExistsError when something else is at `out`, ValueError for an unknown environment,
    what its expert cannot do, or an unfinished collection with other settings, CollectionError when more than half of
    the demonstrations fail in which the expert is at its best, DiskFullError.
    """
    make_expert(config.env, config.asked)  # what it cannot do is told before anything is written
    writer, tally = None, _Tally(config)

    def kept() -> str:
        if writer is None:
            return "no episode was whole yet: nothing is left, and the same command begins anew"
        return f"{config.out} keeps {writer.episodes} whole episodes, and the same command goes on with them"

    with ExitStack() as held, saying(kept), room_needed(config.out, kept):
        if found := _unfinished(config):
            held.enter_context(_alone(config.out))
            writer, tally = EpisodeWriter.resume(config.out), _Tally.of(config, found)
            report(tally.done)
        for seed, episode, world in _from(config, tally, held):
            if writer is None:
                provenance = {"collected": _settings(config), "seeds": [config.seed, config.seed], **describe_run()}
                features = _features(episode, world)
                writer = EpisodeWriter(config.out, features, world.fps, provenance, world.robot)
                held.enter_context(_alone(config.out))
            if tally.add(seed, bool(episode["next.success"][-1])):
                # The range of seeds that were used, kept or not: evaluation must stay out of it.
                writer.append(episode, world.task, {"seeds": [config.seed, seed]})
            report(tally.done)
            if tally.done.kept == config.episodes:
                break
        assert writer is not None
        writer.finish()
    return tally.done


class _Tally:
    """What the episodes so far came to."""

    def __init__(self, config: CollectConfig) -> None:
        self._config, self.done, self.next_seed = config, Collected(0, 0), config.seed
        self._best = Counter[bool]()  # successes and failures where the expert is meant to succeed

    @classmethod
    def of(cls, config: CollectConfig, store: EpisodeStore) -> _Tally:
        """That of a collection which was interrupted after the last whole episode of `store`."""
        tally, seeds = cls(config), store.provenance.get("seeds")
        if store.episodes == 0:
            return tally
        match seeds:
            case [int(first), int(last)] if first == config.seed and last - first + 1 >= store.episodes:
                pass
            case _:
                raise DataError(f"{store.path} holds {store.episodes} episodes of the seeds {seeds}: collect it anew")
        if config.mixed:
            for end in store.episode_ends.tolist():
                tally.add(tally.next_seed, bool(store.read("next.success", end - 1, end)[0]))
        else:
            failed = last - first + 1 - store.episodes
            tally.done, tally.next_seed = Collected(store.episodes, failed), last + 1
            tally._best.update({True: store.episodes, False: failed})
        return tally

    def add(self, seed: int, succeeded: bool) -> bool:
        """Whether the episode of a seed, the next in order, is one to keep. Raises CollectionError."""
        kept = succeeded or self._config.mixed
        self.done = Collected(self.done.kept + kept, self.done.failed + (not succeeded))
        self.next_seed = seed + 1
        if self._config.at_its_best(seed):
            tried = self._best
            tried[succeeded] += 1
            if tried[False] > max(10, tried[True]):
                raise CollectionError(
                    f"{tried[False]} of {tried.total()} demonstrations in {self._config.env} failed: fix the expert"
                )
        return kept


def _settings(config: CollectConfig) -> dict[str, Any]:
    """What is recorded of them."""
    return {**to_json(config), "workers": None}


def _unfinished(config: CollectConfig) -> EpisodeStore | None:
    """What an interrupted collection with these settings left at `out`. Raises as `collect`."""
    try:
        refuse_taken(config.out)
        return None
    except FileExistsError:
        try:
            store = EpisodeStore(config.out)
        except DataError:
            store = None
        before = store.provenance.get("collected") if store else None
        if store is None or store.finished or not isinstance(before, dict):
            raise
    settings, free = _settings(config), ("out", "workers")
    if other := [key for key in settings if key not in free and before.get(key) != settings[key]]:
        told = "; ".join(f"{key} {before.get(key)!r}, now {settings[key]!r}" for key in other)
        raise ValueError(
            f"{config.out} is an unfinished collection with other settings ({told}): give the same, go on by "
            f"`robostack collect --resume {config.out}`, or remove it"
        )
    return store


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Inside, no other process collects into the folder: two would mix their episodes."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FileExistsError(f"{folder} is being collected by another process: wait for its end") from error
        yield
    finally:
        os.close(descriptor)


def _from(config: CollectConfig, tally: _Tally, held: ExitStack) -> Iterable[Demonstration]:
    """Demonstrations of the seeds that come next, without end but that none is made where none is wanted; closed with
    `held`."""
    wanted = config.episodes - tally.done.kept
    if wanted == 0:
        return ()
    folder = config.out.absolute().parent
    while not folder.is_dir():
        folder = folder.parent
    return held.enter_context(
        closing(demonstrations(config.env, config.asked, tally.next_seed, wanted, config.workers, folder))
    )


def _features(episode: Mapping[str, np.ndarray], world: EnvDescription) -> dict[str, Feature]:
    """As the environment names their entries. Raises DataError where it names more or fewer than there are."""
    features = {}
    for key, rows in episode.items():
        names, units = world.names.get(key, ()), world.units.get(key, ())
        try:
            features[key] = Feature(tuple(rows.shape[1:]), str(rows.dtype), names, units)
        except DataError as error:
            raise DataError(f"{key} as the environment describes it: {error}") from error
    return features
