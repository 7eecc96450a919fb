"""What an evaluation reads of a checkpoint and its run, which others may have damaged."""

import os
import warnings
from pathlib import Path

import pytest

from robostack.evaluation.about import keep_apart, name_checkpoint, read_log_beside
from robostack.policies.checkpoint import TrainedOn


def data(path: str, seeds: tuple[int, int] | None) -> TrainedOn:
    return TrainedOn(path, 50, 20_000, seeds, "")


def test_seeds_of_demonstrations_are_refused_and_others_are_not() -> None:
    trained_on = (data("a", (0, 49)), data("b", (100, 149)))
    for seeds in (range(49, 60), range(120, 121), range(0, 500)):
        with pytest.raises(ValueError, match=r"demonstrations of seeds \d+ to \d+"):
            keep_apart(seeds, trained_on)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        keep_apart(range(50, 100), trained_on)


def test_data_without_seeds_is_told() -> None:
    with pytest.warns(UserWarning, match="from a robot does not say of which seeds its demonstrations are"):
        keep_apart(range(5), (data("known", (7, 9)), data("from a robot", None)))


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
        lines, said = read_log_beside(tmp_path / "checkpoints" / "step-1")
    assert lines == [] and "\n" not in said and str(caught[0].message) == said


def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert read_log_beside(tmp_path / "checkpoints" / "step-1") == ([{"step": 1, "loss": 2.0}], "")
    assert read_log_beside(tmp_path / "none" / "checkpoints" / "step-1") == ([], "")
    assert read_log_beside(tmp_path / "downloads" / "step-1") == ([], "")  # of no run: what lies above is another's


def test_a_pipe_in_place_of_a_checkpoint_s_description_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "expert.json")
    with pytest.raises(ValueError, match="no regular file"):
        name_checkpoint(tmp_path / "expert.json")
