"""What Gymnasium's `seed` of a vector environment means."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import SupportsIndex


def seed_of_each(
    seed: SupportsIndex | Iterable[SupportsIndex | None] | None, environments: int
) -> Sequence[int | None]:
    """A seed for each environment: s means s, s + 1, …; None leaves each one's generator where it is. Integers of any
    library are integers. Raises ValueError for more or fewer seeds than environments, TypeError for one that is no
    integer.
    """
    if seed is None:
        return [None] * environments
    if not isinstance(seed, Iterable):
        return [operator.index(seed) + i for i in range(environments)]
    seeds = [None if one is None else operator.index(one) for one in seed]
    if len(seeds) != environments:
        raise ValueError(f"expected {environments} seeds, got {len(seeds)}")
    return seeds
