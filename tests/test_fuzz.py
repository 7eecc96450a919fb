"""Damaged inputs of every kind are read or refused in a line: no traceback, crash, hang, or file of others (see
`fuzz_trials`)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import fuzz_inputs
import fuzz_trials
import pytest

KINDS = tuple(fuzz_inputs.INPUTS)


def try_damaged(folder: Path, seed: int, trials: int, kinds: tuple[str, ...] = KINDS) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-W", "ignore", fuzz_trials.__file__, str(folder), str(seed), str(trials), *kinds]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    *lines, end = [json.loads(line) for line in ran.stdout.splitlines()]
    unread = {line["undamaged"]: line["findings"] for line in lines if "undamaged" in line}
    assert not unread, f"undamaged, and not as they should be: {unread}"
    bad = [line for line in lines if line["findings"]]
    again = "again: python tests/fuzz_trials.py FOLDER {seed} -{trial} {kinds}"
    told = [
        f"{line['kind']}, {line['damage']}:\n" + "\n".join(line["findings"])[:1500] + "\n"
        + again.format(seed=seed, trial=line["trial"], kinds=" ".join(kinds))
        for line in bad
    ]  # fmt: skip
    assert not bad, f"{len(bad)} of {trials} trials:\n\n" + "\n\n".join(told[:20])
    assert end == {"trials": trials, "with_findings": 0, "changed_outside": []}


def test_damaged_inputs_are_read_or_refused_in_a_line(tmp_path: Path) -> None:
    quick = tuple(kind for kind in KINDS if kind != "expert")  # JAX alone takes seconds to import
    try_damaged(tmp_path, 1, 4 * len(quick), quick)


@pytest.mark.slow
def test_two_thousand_damaged_inputs_are_read_or_refused_in_a_line(tmp_path: Path) -> None:
    try_damaged(tmp_path, 2, 2000)


def test_a_trial_is_repeated_by_its_number(tmp_path: Path) -> None:
    import numpy as np

    done = []
    for name in ("one", "two"):
        folder = tmp_path / name / "aloha"
        fuzz_inputs.INPUTS["aloha"](folder, "lift", 0.0)
        done.append(fuzz_inputs.damage(folder, tmp_path, np.random.default_rng([1, 5])))
    assert done[0] == done[1] != []
