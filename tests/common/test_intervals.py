"""Wilson's interval, and those that know about training seeds."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robostack.common.intervals import seeds_interval, wilson_interval


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


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_one_training_seed_has_wilsons_interval():
    assert seeds_interval([80], [100], rng()) == wilson_interval(80, 100)


def test_it_is_never_narrower_than_if_the_seeds_did_not_differ():
    low, high = wilson_interval(300, 300)
    assert seeds_interval([100] * 3, [100] * 3, rng()) == (low, high)
    # Where the seeds agree, the binomial part is all there is.
    agreed = seeds_interval([80] * 10, [100] * 10, rng())
    assert agreed == pytest.approx(wilson_interval(800, 1000), abs=0.005)


def test_seeds_that_differ_widen_it():
    """The energy policy on insertion: 67, 86 and 80 of 100."""
    low, high = seeds_interval([67, 86, 80], [100] * 3, rng())
    pooled = wilson_interval(233, 300)
    assert low < pooled[0] - 0.03 and high > pooled[1] + 0.02
    assert low < 0.70 and high > 0.85


def test_the_variance_of_the_resamples_is_that_of_the_two_stages():
    """Var = (variance between the rates + mean of p (1 − p) / n) / S, of which the normal interval is ± 1.96 sd."""
    n = 50
    counts = np.linspace(15, 35, 20).round().astype(int)
    low, high = seeds_interval(counts.tolist(), [n] * 20, rng(), resamples=100_000)
    rates = counts / n
    deviation = math.sqrt((rates.var() + (rates * (1 - rates) / n).mean()) / len(rates))
    assert (low, high) == pytest.approx((rates.mean() - 1.96 * deviation, rates.mean() + 1.96 * deviation), abs=4e-3)


def test_it_covers_the_mean_of_the_method():
    """Of a method whose trainings differ by 12 points (standard deviation), evaluated anew 300 times."""
    source, covered, wilson_covered = rng(1), 0, 0
    for _ in range(300):
        rates = np.clip(source.normal(0.7, 0.12, size=12), 0, 1)
        outcomes = source.random((12, 40)) < rates[:, None]
        low, high = seeds_interval(outcomes.sum(axis=1).tolist(), [40] * 12, source, resamples=1000)
        covered += low <= 0.7 <= high
        pooled = wilson_interval(int(outcomes.sum()), outcomes.size)
        wilson_covered += pooled[0] <= 0.7 <= pooled[1]
    assert covered / 300 > 0.9 and wilson_covered / 300 < 0.8


def test_the_same_generator_gives_the_same_interval():
    assert seeds_interval([5, 9], [10, 10], rng(3)) == seeds_interval([5, 9], [10, 10], rng(3))


@pytest.mark.parametrize(("successes", "episodes"), [([], []), ([1], [1, 2]), ([3], [2]), ([1, 0], [2, 0])])
def test_impossible_counts_of_seeds_are_refused(successes, episodes):
    with pytest.raises(ValueError, match="expected"):
        seeds_interval(successes, episodes, rng())
