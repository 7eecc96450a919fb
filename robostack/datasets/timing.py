"""Whether timestamps keep the beat of the frames: one bound for inspection, conversion and training.

Frame i is due at (anchor + i) / fps. A frame within half a period of its due time is that frame, whatever jitter a
camera's clock has; a dropped frame puts all that follow a whole period late, and another rate soon does the same.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped

from robostack.datasets.episodes import DataError

LARGEST_DEVIATION = 0.49
"""Periods. Just below half, since one dropped frame is half a period on either side of the best anchor."""


class Deviation(NamedTuple):
    """How far timestamps are off the beat at the worst frame."""

    periods: float
    frame: int


def resolves(times: Shaped[np.ndarray, " frames"], fps: float) -> bool:
    """Whether the type of the timestamps tells neighbouring frames apart: float32 seconds since 1970 do not."""
    return len(times) == 0 or times.dtype.kind != "f" or float(np.spacing(np.abs(times).max())) * fps < 0.1


def deviation(times: Shaped[np.ndarray, " frames"], fps: float) -> Deviation:
    """The largest distance of timestamps (seconds) from the beat, for the anchor that makes it smallest."""
    if len(times) == 0:
        return Deviation(0.0, 0)
    late = (times.astype(np.float64) - float(times[0])) * fps - np.arange(len(times))
    worst = np.abs(late - np.median(late)).argmax()  # an outlier, and not the many that it moves the anchor from
    return Deviation(float(late.max() - late.min()) / 2, int(worst))


def check_times(times: Shaped[np.ndarray, " frames"], fps: float) -> Deviation:
    """The deviation of an episode's timestamps. Raises DataError where it is so large that it is not sure which frame
    is which."""
    found = deviation(times, fps)
    if not found.periods <= LARGEST_DEVIATION:  # nor where it is NaN
        seconds = float(times[-1]) - float(times[0])
        raise DataError(
            f"the timestamps do not keep {fps:g} frames a second: frame {found.frame} is {found.periods:.3g} periods "
            f"off, and {len(times)} frames take {seconds:.4g} s: repair the rate or the timestamps"
        )
    return found
