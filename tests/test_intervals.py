"""Wilson's interval."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robostack.intervals import wilson_interval


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # Newcombe (1998), Statistics in Medicine 17, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_published_intervals(successes, n, low, high):
    assert wilson_interval(successes, n, z=1.959964) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("n", [1, 10, 100])
def test_all_or_nothing_has_a_closed_form(n):
    z = 1.96
    assert wilson_interval(n, n, z) == pytest.approx((n / (n + z * z), 1.0))
    assert wilson_interval(0, n, z) == pytest.approx((0.0, z * z / (n + z * z)))


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.1, 5))
def test_bounds_solve_the_score_equation(counts, z):
    """Wilson's bounds are the p at which |p̂ − p| is z standard errors *of p*."""
    successes, n = counts
    low, high = wilson_interval(successes, n, z)
    assert 0 <= low <= successes / n <= high <= 1
    for p in (low, high):
        assert abs(successes / n - p) == pytest.approx(z * math.sqrt(p * (1 - p) / n), abs=1e-7)


def test_failures_mirror_successes():
    low, high = wilson_interval(30, 100)
    assert wilson_interval(70, 100) == pytest.approx((1 - high, 1 - low))


def test_no_episode_says_nothing():
    assert wilson_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("successes", "n"), [(3, 2), (-1, 2), (0, -1)])
def test_impossible_counts_are_refused(successes, n):
    with pytest.raises(ValueError, match="expected 0 <= successes <= n"):
        wilson_interval(successes, n)
