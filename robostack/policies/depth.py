"""Depth as a policy sees it: z / (1 + z), z in metres, whatever the unit of the camera.

The map is bounded and fixed: half of it is the first metre, where hands work, what lies far off is told apart ever
less, and 0, where the camera measured nothing, stays 0. Nothing of it is taken from the data.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt16

from robostack.datasets.episodes import DataError, Feature

METRES = {"mm": 1e-3, "cm": 1e-2, "m": 1.0}


def metres_per_count(key: str, features: Sequence[tuple[Path, Feature]]) -> float:
    """What one count of a depth camera of one robot is, from (data set, feature) of each data set of it.

    The usual unit is a millimetre: it is taken, with a warning, where a data set records none or another than mm, cm
    or m. Raises DataError when the data sets differ.
    """
    found: dict[float, Path] = {}
    for path, feature in features:
        unit = feature.units[0] if feature.units else ""
        if unit not in METRES:
            got = f"the unit {unit!r}" if unit else "no unit"
            warnings.warn(f"{path}: {key} has {got}, expected one of {', '.join(METRES)}: taken as mm", stacklevel=2)
        found.setdefault(METRES.get(unit, METRES["mm"]), path)
    if len(found) > 1:
        (one, first), (other, second) = list(found.items())[:2]
        raise DataError(
            f"{key} counts {one} m in {first} and {other} m in {second}: tell their robots apart with --robots"
        )
    return next(iter(found))


def bounded_depth(
    counts: UInt16[np.ndarray, "*any height width 1"], metres: float
) -> Float32[np.ndarray, "*any height width 1"]:
    """z / (1 + z) of counts of `metres` each; 0 of 0."""
    z = counts * np.float32(metres)
    return z / (1.0 + z)
