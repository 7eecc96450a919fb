"""How sure a success rate is."""

import math


def wilson_interval(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval for a proportion p̂ = successes / n (E. B. Wilson, 1927).

    centre = (p̂ + z²/2n) / (1 + z²/n),  half-width = z √(p̂(1 − p̂)/n + z²/4n²) / (1 + z²/n)

    Unlike p̂ ± z·(standard error) it stays within [0, 1] and keeps a width when every episode succeeds.

    Args:
        successes: 0 ≤ successes ≤ n.
        n: number of episodes; with none, nothing is known and the interval is (0, 1).
        z: standard normal quantile, 1.96 for 95 %.

    Raises:
        ValueError: counts that cannot be.
    """
    if n < 0 or not 0 <= successes <= n:
        raise ValueError(f"expected 0 <= successes <= n, came successes={successes} and n={n}")
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    spread = z * z / n
    centre = p + spread / 2
    half_width = z * math.sqrt(p * (1 - p) / n + spread / (4 * n))
    low, high = (centre - half_width) / (1 + spread), (centre + half_width) / (1 + spread)
    # At the ends the bound is 0 or 1 exactly; in floating point it would miss by an ulp.
    return (0.0 if successes == 0 else low), (1.0 if successes == n else high)
