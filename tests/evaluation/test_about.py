"""What an evaluation reads of a checkpoint and its run, which others may have damaged."""

import os
import warnings
from pathlib import Path
from typing import Any

import pytest

from robostack.evaluation.about import keep_apart, read_training_log
from robostack.policies.checkpoint import CheckpointError


def check(seeds: range, *data: Any) -> None:
    keep_apart(seeds, Path("run/step-1"), {"data": list(data)})


def test_seeds_of_demonstrations_are_refused_and_others_are_not() -> None:
    data = ({"path": "a", "seeds": [0, 49]}, {"path": "b", "seeds": [100, 149]})
    for seeds in (range(49, 60), range(120, 121), range(0, 500)):
        with pytest.raises(ValueError, match=r"demonstrations of seeds \d+ to \d+"):
            check(seeds, *data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(range(50, 100), *data)


@pytest.mark.parametrize("data", [{"path": "from a robot", "seeds": None}, {"path": "from a robot"}])
def test_data_without_seeds_is_told(data: dict[str, Any]) -> None:
    with pytest.warns(UserWarning, match="from a robot does not say of which seeds its demonstrations are"):
        check(range(5), {"path": "known", "seeds": [7, 9]}, data)


@pytest.mark.parametrize("seeds", ["0-49", [0], [0.5, 2], [True, 3], {"first": 0}, [[0, 1], [2, 3]], 10**400, []])
def test_seeds_of_the_wrong_kind_are_told_in_one_line(seeds: Any) -> None:
    with pytest.raises(CheckpointError, match="expected the first and last seed") as caught:
        check(range(5), {"path": "a", "seeds": seeds})
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize("data", ["a", 3, [3], None])
def test_a_checkpoint_that_does_not_say_what_it_was_trained_on_is_told(data: Any) -> None:
    with pytest.raises(CheckpointError, match="does not say what it was trained on"):
        keep_apart(range(5), Path("run/step-1"), {"data": data})


@pytest.mark.parametrize(
    "content",
    [
        b"garbage\n",
        b"3\n",
        b'{"loss": 1.0}\n',
        b'{"step": "one"}\n',
        b'{"step": 1' + b"0" * 400 + b"}\n",
        b'{"step": 1' + b"0" * 5000 + b"}\n",
        b"[" * 100_000 + b"\n",
        b"\xff\xfe\n",
        None,
    ],
)
def test_a_log_that_cannot_be_read_is_a_warning(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    if content is None:
        os.mkfifo(path)
    else:
        path.write_bytes(content)
    with pytest.warns(UserWarning, match="no training curves: ") as caught:
        lines, said = read_training_log(tmp_path)
    assert lines == [] and "\n" not in said and str(caught[0].message) == said


def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert read_training_log(tmp_path) == ([{"step": 1, "loss": 2.0}], "")
    assert read_training_log(tmp_path / "none") == ([], "")
