"""Workers: what keeps one from beginning reaches whoever gave it work."""

import operator
import subprocess
import sys
from pathlib import Path

import pytest

from robostack.common.processes import worker_pool


def test_a_worker_that_cannot_begin_says_why() -> None:
    with worker_pool(1, operator.truediv, 1, 0) as pool, pytest.raises(ZeroDivisionError, match="division by zero"):
        pool.submit(operator.mul, 2, 3).result()
    with worker_pool(1, operator.truediv, 1, 1) as pool:
        assert pool.submit(operator.mul, 2, 3).result() == 6


def test_a_flat_script_is_not_run_again_in_its_workers(tmp_path: Path) -> None:
    script = tmp_path / "flat.py"
    script.write_text(
        "import operator\n"
        "from robostack.common.processes import worker_pool\n"
        "print('begun')\n"
        "with worker_pool(2, int) as pool:\n"
        "    print(sum(pool.map(operator.neg, range(5))))\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr, done.returncode) == ("begun\n-10\n", "", 0)
