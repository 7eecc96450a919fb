"""How the actions of demonstrations vary: whether the expert solves one situation in two ways, which a policy that
imitates both would average."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from robostack.datasets.store import EpisodeStore

ANGLE = "rad"
"""The unit of entries that can take branches. Others may jump: a gripper opens at slightly different times."""
GAP = 1.0
"""Radians between two groups of joint values that count as two branches: variation of the task moves joints less."""


@dataclass(frozen=True)
class Spread:
    """How one entry of the action varies: over episodes at a moment of the episode, and from step to step."""

    name: str
    largest_std: float
    """Largest deviation over episodes, over the moments of an episode."""
    largest_step: float
    """Largest change from one step to the next."""
    branches: bool
    """It is an angle, and its values fall into two groups far apart."""


def action_spread(store: EpisodeStore) -> list[Spread]:
    """The spread of every action entry over the episodes of a data set, cut to the shortest of them."""
    bounds = zip(store.episode_starts.tolist(), store.episode_ends.tolist(), strict=True)
    actions = [store.read("action", start, end).reshape(end - start, -1).astype(float) for start, end in bounds]
    steps = np.max([np.abs(np.diff(episode, axis=0)).max(axis=0, initial=0.0) for episode in actions], axis=0)
    length = min(map(len, actions))
    together = np.stack([episode[:length] for episode in actions])
    deviations = together.std(axis=0).max(axis=0)
    gaps = np.diff(np.sort(together, axis=0), axis=0).max(axis=(0, 1), initial=0.0)
    feature = store.features["action"]
    units = feature.units or ("",) * len(deviations)
    return [
        Spread(name, float(deviation), float(step), unit == ANGLE and bool(gap > GAP))
        for name, unit, deviation, step, gap in zip(feature.entry_names, units, deviations, steps, gaps, strict=True)
    ]
