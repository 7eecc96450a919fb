"""How sure a success rate is: of one policy over its episodes, and of a method over several training seeds.

Two trainings of one method differ by more than chance in their episodes explains, so that n episodes of each of several
training seeds are not so many independent episodes. A bootstrap that draws training seeds as well as episodes knows
that. With two or three seeds it is coarse and, by a factor of about (S − 1) / S in variance, still too narrow: show
each seed, or the range, beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def wilson_interval(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval for a proportion p̂ = successes / n (E. B. Wilson, 1927).

    centre = (p̂ + z²/2n) / (1 + z²/n),  half-width = z √(p̂(1 − p̂)/n + z²/4n²) / (1 + z²/n)

    z is a quantile of the standard normal distribution, 1.96 for 95 %. Unlike p̂ ± z·(standard error) the interval stays
    within [0, 1] and keeps a width when every episode succeeds; with no episode it is (0, 1). Raises ValueError unless
    0 ≤ successes ≤ n.
    """
    if n < 0 or not 0 <= successes <= n:
        raise ValueError(f"expected 0 <= successes <= n, got successes={successes} and n={n}")
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    spread = z * z / n
    centre = p + spread / 2
    half_width = z * math.sqrt(p * (1 - p) / n + spread / (4 * n))
    low, high = (centre - half_width) / (1 + spread), (centre + half_width) / (1 + spread)
    # At the ends the bound is 0 or 1 exactly; in floating point it would miss by an ulp.
    return (0.0 if successes == 0 else low), (1.0 if successes == n else high)


def seeds_interval(
    successes: Sequence[int],
    episodes: Sequence[int],
    rng: np.random.Generator,
    level: float = 0.95,
    resamples: int = 20_000,
) -> tuple[float, float]:
    """An interval for the mean success rate over training seeds, of which seed s succeeded in `successes[s]` of
    `episodes[s]` evaluation episodes that are its own, or of which no more than these counts is known.

    Bootstrap: S training seeds are drawn with replacement, and of each drawn one its episodes, again with replacement
    (their number of successes is binomial); the interval holds the middle `level` of the means. It is never narrower
    than Wilson's for all episodes together, which is right if the seeds do not differ: where all episodes succeed
    nothing is left to resample.

    Raises ValueError for counts that cannot be.
    """
    counts, sizes = np.asarray(successes), np.asarray(episodes)
    if counts.shape != sizes.shape or counts.ndim != 1 or not len(counts) or (sizes < 1).any():
        raise ValueError(f"expected one count of successes and of episodes per training seed, got {counts} and {sizes}")
    wilson = wilson_interval(int(counts.sum()), int(sizes.sum()))
    if len(counts) == 1:
        return wilson
    drawn = rng.integers(len(counts), size=(resamples, len(counts)))
    rates = rng.binomial(sizes[drawn], (counts / sizes)[drawn]) / sizes[drawn]
    return _at_least(rates.mean(axis=1), wilson, level)


def _at_least(means: np.ndarray, wilson: tuple[float, float], level: float) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return min(float(low), wilson[0]), max(float(high), wilson[1])
