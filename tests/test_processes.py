"""Workers: what keeps one from beginning reaches whoever gave it work."""

import pytest

from robostack.processes import worker_pool


def begin(greeting: str | None) -> None:
    if greeting is None:
        raise ValueError("no greeting")


def double(number: int) -> int:
    return 2 * number


def test_a_worker_that_cannot_begin_says_why() -> None:
    with worker_pool(1, begin, None) as pool, pytest.raises(ValueError, match="no greeting"):
        pool.submit(double, 3).result()
    with worker_pool(1, begin, "hello") as pool:
        assert pool.submit(double, 3).result() == 6
