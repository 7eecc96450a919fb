"""Several data sets in one training run.

Every sample of a batch is from data set i with probability weights[i], and uniform over its windows. Data sets of one
robot share statistics; robots with other joints or cameras are laid into one action and one state vector by the names
of their entries (see `Layout`), so that what one robot lacks is masked and not made up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from robostack.datasets.episodes import DataError, Feature, unique_names
from robostack.datasets.moments import Windows
from robostack.datasets.statistics import Statistics, of_columns, of_relative_actions
from robostack.datasets.store import EpisodeStore
from robostack.datasets.windows import WindowSampler


@dataclass(frozen=True)
class Part:
    """The windows of a batch that come from one data set."""

    source: int
    windows: Windows


class Mixture:
    """Draws batches from several samplers; `weights` need not sum to one, and are the samplers' sizes by default.

    Raises DataError when the weights are not one a data set, or not positive.
    """

    def __init__(self, samplers: Sequence[WindowSampler], weights: Sequence[float] = ()) -> None:
        weights = tuple(weights) or tuple(float(len(sampler)) for sampler in samplers)
        if len(weights) != len(samplers) or not all(0 < weight < np.inf for weight in weights):
            raise DataError(f"expected a positive weight for each of {len(samplers)} data sets, got {weights}")
        self._samplers = tuple(samplers)
        self.weights = np.asarray(weights) / sum(weights)

    def draw(self, batch: int, rng: np.random.Generator) -> list[Part]:
        """`batch` windows, the same for the same generator state, data set by data set; a data set that was not drawn
        has no part."""
        # One data set draws as it would alone.
        counts = rng.multinomial(batch, self.weights).tolist() if len(self._samplers) > 1 else [batch]
        return [Part(i, self._samplers[i].draw(count, rng)) for i, count in enumerate(counts) if count]


@dataclass(frozen=True)
class Layout:
    """Where the entries of each robot's vector stand in the vector that all robots share."""

    size: int
    places: Mapping[str, tuple[int, ...]]
    """Robot to the places of its entries, in their order."""

    @staticmethod
    def of(features: Mapping[str, Feature]) -> Layout:
        """By name, in the order of first appearance, where every robot names its entries; else each from the front.

        `features` maps robots to what the feature is for them; robots without it are left out.
        The entries of a matrix stand row by row, a scalar is one entry, and names that repeat are told apart.
        """
        if all(feature.names for feature in features.values()):
            own = {robot: unique_names(feature.names) for robot, feature in features.items()}
            names = list(dict.fromkeys(name for robot in own.values() for name in robot))
            return Layout(len(names), {robot: tuple(map(names.index, own[robot])) for robot in own})
        sizes = {robot: feature.entries for robot, feature in features.items()}
        return Layout(max(sizes.values()), {robot: tuple(range(size)) for robot, size in sizes.items()})


def name_robots(stores: Sequence[EpisodeStore], keys: Sequence[str], names: Sequence[str] = ()) -> tuple[str, ...]:
    """The robot of each data set: as named, else as recorded, else "robot". Raises DataError when data sets of one
    robot differ in one of the features `keys`."""
    if names and len(names) != len(stores):
        raise DataError(f"expected a robot for each of {len(stores)} data sets, got {', '.join(names)}")
    robots = tuple(names) or tuple(store.robot or "robot" for store in stores)
    first: dict[str, EpisodeStore] = {}
    for store, robot in zip(stores, robots, strict=True):
        known = first.setdefault(robot, store)
        for key in keys:
            one, other = known.features.get(key), store.features.get(key)
            if (one is None) != (other is None) or (one and other and not _are_alike(one, other)):
                raise DataError(
                    f"{known.path} and {store.path} are both of the robot {robot!r} and differ in {key}: leave it out "
                    "with --observe, or tell them apart with --robots"
                )
    return robots


def _are_alike(one: Feature, other: Feature) -> bool:
    units = one.units == other.units or not one.units or not other.units or one.is_camera
    return units and (one.shape, one.names) == (other.shape, other.names)


def pooled_statistics(stores: Sequence[EpisodeStore], keys: Sequence[str]) -> dict[str, Statistics]:
    """Statistics of these features of data sets of one robot together, those of all their frames."""
    if len(stores) == 1:
        return stores[0].statistics(keys)
    return {key: of_columns([(partial(store.read_finite, key), store.frames) for store in stores]) for key in keys}


def pooled_relative_statistics(stores: Sequence[EpisodeStore], chunk_len: int, rate: float | None = None) -> Statistics:
    """The same for actions relative to the state, over the frames that a chunk of actions at `rate` (Hz, by default the
    data set's) spans. Raises DataError when they cannot be taken from it."""
    if problems := [problem for store in stores if (problem := store.why_not_relative())]:
        raise DataError(problems[0])
    spans = [1 + int(np.ceil(round((chunk_len - 1) * store.fps / (rate or store.fps), 9))) for store in stores]
    if len(stores) == 1:
        return stores[0].relative_statistics(spans[0])
    data_sets = [
        (store.state_and_action, store.lengths.tolist(), span) for store, span in zip(stores, spans, strict=True)
    ]
    return of_relative_actions(data_sets)
