"""Workers: what keeps one from beginning reaches whoever gave it work."""

import operator

import pytest

from robostack.processes import worker_pool


def test_a_worker_that_cannot_begin_says_why() -> None:
    with worker_pool(1, operator.truediv, 1, 0) as pool, pytest.raises(ZeroDivisionError, match="division by zero"):
        pool.submit(operator.mul, 2, 3).result()
    with worker_pool(1, operator.truediv, 1, 1) as pool:
        assert pool.submit(operator.mul, 2, 3).result() == 6
