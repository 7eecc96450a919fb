"""From the data sets of a run to the processor that its policy is trained with and keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from robostack.core.text.files import FileTokenizer
from robostack.core.text.prompt import state_words
from robostack.core.text.words import Vocabulary
from robostack.datasets.episodes import IMAGES, DataError, Feature
from robostack.datasets.mixture import Layout, name_robots, pooled_relative_statistics, pooled_statistics
from robostack.datasets.moments import History
from robostack.datasets.normalize import smallest_scales, warn_of_floored
from robostack.datasets.statistics import Statistics
from robostack.datasets.store import EpisodeStore
from robostack.datasets.windows import returns_to_go
from robostack.policies.depth import metres_per_count
from robostack.policies.processor import ENTITIES, Processor, Robot
from robostack.policies.settings import Scaling, TextSettings

MOST_ENTRIES = 4096
"""Numbers that one feature may add to the state; more are rather a picture."""


def prepare(
    stores: Sequence[EpisodeStore],
    chunk_len: int,
    keys: Sequence[str] = (),
    robots: Sequence[str] = (),
    rate: float | None = None,
    scaling: Scaling = Scaling(),
    history: History = History(),
    text: TextSettings = TextSettings(),
) -> Processor:
    """The processor for the observation features `keys` of the data sets of a run; for all of them when none is named.

    `robots` names the robot of each data set, which by default is the one that it records; `rate`, in actions a second,
    is needed where the data sets differ in it; `chunk_len` is for the statistics of relative actions.

    Raises DataError where a feature is in none of the data sets, they have no state to observe or do not fit together,
    or actions of the past should be relative to a state after them. Warns of entries that are still.
    """
    if scaling.relative_actions and history.actions and history.steps:
        raise DataError(
            f"relative actions are relative to the state now, and this policy uses the {history.steps} actions "
            "before it too: leave --relative-actions out, or use no past (decision_transformer: "
            "--policy.context 1; diffusion: --policy.predict-past 0)"
        )
    if without := [store for store in stores if "action" not in store.features]:
        raise DataError(f"{without[0].path} has no actions, and a policy is trained on what was done: leave it out")
    keys = tuple(keys) or tuple(
        dict.fromkeys(key for store in stores for key in store.features if key.startswith("observation."))
    )
    for key in keys:
        if not any(key in store.features for store in stores):
            stores[0].require([key])
    entities = _entities(stores) if ENTITIES in keys else None
    keys = tuple(key for key in keys if key != ENTITIES)
    rates = sorted({store.fps for store in stores})
    if rate is None and len(rates) > 1:
        raise DataError(f"the data sets have {', '.join(map(str, rates))} frames a second: give one with --rate")
    names = name_robots(stores, (*keys, "action"), robots)
    by_robot = {name: [s for s, n in zip(stores, names, strict=True) if n == name] for name in names}
    features = {name: {key: of[0].features[key] for key in (*keys, "action") if key in of[0].features}
                for name, of in by_robot.items()}  # fmt: skip
    images = {key for key in keys for has in features.values() if key in has and has[key].is_camera}
    if unnamed := sorted(key for key in images if not key.startswith(IMAGES)):
        raise DataError(
            f"{stores[0].path}: a camera is called {IMAGES}NAME, got {', '.join(unnamed)}: rename it with "
            "`robostack convert --rename`, or leave it out with --observe"
        )
    state_keys = tuple(key for key in keys if key not in images)
    if not state_keys and entities is None:
        raise DataError(f"{stores[0].path}: expected a state to observe, got {', '.join(keys) or 'no features'}")
    layouts = {
        key: Layout.of({name: has[key] for name, has in features.items() if key in has})
        for key in (*state_keys, "action")
    }
    return Processor(
        state={key: layouts[key].size for key in state_keys},
        action_dim=layouts["action"].size,
        cameras=_cameras(keys, features),
        tokenizer=_tokenizer(stores, text, sum(layouts[key].size for key in state_keys)),
        robots={
            name: _robot(name, by_robot[name], features[name], layouts, chunk_len, rate or rates[0], scaling)
            for name in by_robot
        },
        rate=rate or rates[0],
        scaling=scaling,
        largest_return=_largest_return(stores) if history.returns else None,
        entities=entities,
        prompt=text.prompt,
    )


def _tokenizer(stores: Sequence[EpisodeStore], text: TextSettings, state_dim: int) -> Vocabulary | FileTokenizer:
    """One that can say all tasks of the data."""
    tasks, prompt = dict.fromkeys(task for store in stores for task in store.tasks), text.prompt
    prompts = [prompt.write(task, np.zeros(state_dim)) for task in tasks]
    if text.tokenizer is None:
        return Vocabulary.of(prompts, state_words() if prompt.tells_state else ())
    tokenizer = FileTokenizer.of(text.tokenizer, text.text_length, text.text_before, text.text_after)
    tokenizer.encode(prompts)
    return tokenizer


def _largest_return(stores: Sequence[EpisodeStore]) -> float:
    largest = max(float(np.abs(returns_to_go(store)).max(initial=0.0)) for store in stores)
    if not largest:
        raise DataError(
            f"{stores[0].path}: every reward is zero, and the policy is conditioned on the return: use others"
        )
    return largest


def _entities(stores: Sequence[EpisodeStore]) -> tuple[int, int]:
    """(places, features) of the largest world. Raises DataError where data sets have none, or others."""
    shapes = {store.path: store.features[ENTITIES].shape for store in stores if ENTITIES in store.features}
    places, features = ({shape[i : i + 1] for shape in shapes.values()} for i in (0, 1))
    if len(shapes) < len(stores) or len(features) > 1 or any(len(shape) != 2 for shape in shapes.values()):
        found = "; ".join(f"{store.path} {shapes.get(store.path, 'none')}" for store in stores)
        raise DataError(f"expected {ENTITIES} of (places, features), with the same features everywhere, got {found}")
    return max(places)[0], max(features)[0]


def _cameras(keys: Sequence[str], features: Mapping[str, Mapping[str, Feature]]) -> dict[str, tuple[int, int]]:
    """Camera name to (height, width). Raises DataError when robots differ in it."""
    cameras: dict[str, tuple[int, int]] = {}
    for key in keys:
        for robot, has in features.items():
            if key not in has or not has[key].is_camera:
                continue
            size = (has[key].shape[0], has[key].shape[1])
            if cameras.setdefault(key.removeprefix(IMAGES), size) != size:
                raise DataError(
                    f"{key} of {robot} is {size}, of another robot {cameras[key.removeprefix(IMAGES)]}: convert one "
                    "with --resize"
                )
        if len({has[key].is_depth for has in features.values() if key in has and has[key].is_camera}) > 1:
            raise DataError(f"{key} is colour of one robot and depth of another: rename one")
    return cameras


def _robot(
    name: str,
    stores: Sequence[EpisodeStore],
    features: Mapping[str, Feature],
    layouts: Mapping[str, Layout],
    chunk_len: int,
    rate: float,
    scaling: Scaling,
) -> Robot:
    """One robot from its data sets; warns of entries that are still."""
    vectors = [key for key in layouts if key in features]
    if wide := [key for key in vectors if features[key].is_camera or features[key].entries > MOST_ENTRIES]:
        shape = "×".join(map(str, features[wide[0]].shape))
        raise DataError(f"{stores[0].path}: {wide[0]} of {shape} is no state of numbers: leave it out with --observe")
    statistics = pooled_statistics(stores, vectors)
    action = features["action"]
    if unknown := [entry for entry in scaling.absolute_entries if entry not in action.names]:
        known = ", ".join(action.names) or "none by name"
        raise DataError(f"{stores[0].path}: the action has no entry {', '.join(unknown)}: it has {known}")
    relative = tuple(
        scaling.relative_actions and not (action.names and action.names[i] in scaling.absolute_entries)
        for i in range(action.entries)
    )
    if any(relative):
        moved = pooled_relative_statistics(stores, chunk_len, rate)
        statistics["action"] = _choose(moved, statistics["action"], relative)
    smallest = {
        key: smallest_scales(values, scaling.normalization, features[key].units, scaling.smallest_scale)
        for key, values in statistics.items()
    }
    told = {key: (values, features[key].names, smallest[key]) for key, values in statistics.items()}
    warn_of_floored(told, scaling.normalization)
    cameras = tuple(key.removeprefix(IMAGES) for key, feature in features.items() if feature.is_camera)
    depth = {
        key.removeprefix(IMAGES): metres_per_count(key, [(store.path, store.features[key]) for store in stores])
        for key, feature in features.items()
        if feature.is_depth
    }
    places = {key: layouts[key].places[name] for key in vectors}
    names = {key: features[key].names for key in vectors if features[key].names}
    units = {key: next(filter(None, (store.features[key].units for store in stores)), ()) for key in vectors}
    units = {key: said for key, said in units.items() if said}
    return Robot(statistics, smallest, places, cameras, relative, depth, names, units)


def _choose(relative: Statistics, absolute: Statistics, is_relative: Sequence[bool]) -> Statistics:
    """Entry by entry, one or the other; counts are those of the relative ones."""
    chosen = {
        name: tuple(
            r if take else a
            for r, a, take in zip(getattr(relative, name), getattr(absolute, name), is_relative, strict=True)
        )
        for name in ("mean", "std", "min", "max", "q01", "q99")
    }
    return replace(relative, **chosen)
