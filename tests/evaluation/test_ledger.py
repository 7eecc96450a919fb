"""What an evaluation found is on disk as it is found, and the same evaluation goes on from there."""

import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robostack.common.files import DiskFullError
from robostack.common.interrupt import Interrupted
from robostack.datasets.formats.video import write_video
from robostack.evaluation import evaluate as evaluation_module
from robostack.evaluation import films as films_module
from robostack.evaluation.config import EvalConfig
from robostack.evaluation.ledger import EpisodeSettings, Ledger, from_record, to_record
from robostack.evaluation.rollout import Outcome
from robostack.pages.evaluation import write_report

evaluate = partial(evaluation_module.evaluate, write_page=write_report)

ENV = "aloha-transfer-cube"
SETTINGS = EpisodeSettings("step-4 0123", ENV, 10, 4, 20, None, None, "cpu")


def outcome(seed: int, success: bool | None = None) -> Outcome:
    success = seed % 2 == 0 if success is None else success
    first = 30 + seed if success else None
    return Outcome(seed, success, success, 4 if success else 1, 4 if success else 0, first, None, 0.1 * seed, (1.2345,))


class Rollouts:
    """Stands in for `run_episodes`: gives outcomes at once, notes which were run, films by touching files."""

    def __init__(self, refilmed: Callable[[int], Outcome] = outcome) -> None:
        self.run: list[int] = []
        self.filmed: list[int] = []
        self.fail_at: int | None = None
        self.error: BaseException = KeyboardInterrupt()
        self._refilmed = refilmed

    def __call__(
        self, env: str, make_actor: Any, seeds: range, workers: int = 0, videos: Any = None, wanted: Any = None
    ) -> Iterator[Outcome]:
        for seed in reversed(seeds):  # episodes end in any order
            if videos is not None and seed in videos:
                if seed == self.fail_at:
                    raise self.error
                write_video(
                    videos[seed], np.random.default_rng(0).integers(256, size=(4, 64, 64, 3), dtype=np.uint8), 25
                )
                self.filmed.append(seed)
                yield self._refilmed(seed)
            elif videos is None and seed in (wanted or seeds):
                if seed == self.fail_at:
                    raise self.error
                self.run.append(seed)
                yield outcome(seed)


@pytest.fixture
def rollouts(monkeypatch: pytest.MonkeyPatch) -> Rollouts:
    fake = Rollouts()
    for module in (evaluation_module, films_module):
        monkeypatch.setattr(module, "run_episodes", fake)
    return fake


def run(out: Path, **changes: Any) -> Any:
    return evaluate("expert", EvalConfig(ENV, **{"episodes": 4, "seed": 10, "out": out, "videos": 0} | changes))


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "episodes.jsonl").read_text().splitlines()]


def test_a_record_is_the_episode(tmp_path: Path) -> None:
    episode = dataclasses.replace(outcome(3), latencies_ms=(1.0, 2.125, 3.5), total_reward=0.1 + 0.2)
    assert from_record(json.loads(json.dumps(to_record(episode)))) == episode
    assert to_record(episode)["chunks"] == 3 and to_record(episode)["latency_ms_p50"] == 2.12


def test_an_interrupted_evaluation_goes_on_with_the_same_command(tmp_path: Path, rollouts: Rollouts) -> None:
    whole = run(tmp_path / "whole")
    rollouts.fail_at = 11
    with pytest.raises(Interrupted, match="2 of 4 episodes are kept; the same command goes on"):
        run(tmp_path / "out")
    assert [line["seed"] for line in lines(tmp_path / "out")] == [13, 12]
    assert not (tmp_path / "out" / "summary.json").exists()
    rollouts.fail_at, rollouts.run = None, []
    again = run(tmp_path / "out")
    assert rollouts.run == [11, 10] and again.summary["kept"] == 2
    assert [line["seed"] for line in lines(tmp_path / "out")] == [10, 11, 12, 13]
    assert again.episodes == whole.episodes
    same = {"success", "success_interval", "final", "mean_return", "stages", "latency_ms_p50", "latency_ms_p95"}
    assert {key: again.summary[key] for key in same} == {key: whole.summary[key] for key in same}


def test_a_line_that_a_kill_cut_short_is_run_again(tmp_path: Path, rollouts: Rollouts) -> None:
    rollouts.fail_at = 10
    with pytest.raises(Interrupted):
        run(tmp_path / "out")
    path = tmp_path / "out" / "episodes.jsonl"
    path.write_text(path.read_text()[:-20])
    rollouts.fail_at, rollouts.run = None, []
    run(tmp_path / "out")
    assert rollouts.run == [11, 10] and [line["seed"] for line in lines(tmp_path / "out")] == [10, 11, 12, 13]


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"episodes": 5}, "episodes 4, now 5"), ({"seed": 11}, "seed 10, now 11")],
)
def test_other_settings_are_not_mixed_in(
    changes: dict[str, Any], said: str, tmp_path: Path, rollouts: Rollouts
) -> None:
    rollouts.fail_at = 11
    with pytest.raises(Interrupted):
        run(tmp_path / "out")
    before = (tmp_path / "out" / "episodes.jsonl").read_bytes()
    with pytest.raises(FileExistsError, match=f"2 episodes .* other settings .*{said}.*: give the same, or remove it"):
        run(tmp_path / "out", **changes)
    assert (tmp_path / "out" / "episodes.jsonl").read_bytes() == before


@pytest.mark.parametrize("there", [True, False])
def test_an_evaluation_that_fails_before_its_first_episode_leaves_nothing(
    there: bool, tmp_path: Path, rollouts: Rollouts
) -> None:
    out = tmp_path / "out"
    if there:
        out.mkdir()  # an empty folder is fine
    rollouts.fail_at, rollouts.error = 13, ValueError("the policy acts 20 times a second")
    with pytest.raises(ValueError, match="20 times"):
        run(out)
    assert out.exists() == there and not (there and any(out.iterdir()))
    rollouts.fail_at = None
    run(out, episodes=2)  # and binds nobody to its settings
    assert (out / "report.html").is_file()


@pytest.mark.parametrize("left", ["", "settings.json", ".settings.json.partial"])
def test_what_a_kill_before_the_first_episode_leaves_is_no_obstacle(
    left: str, tmp_path: Path, rollouts: Rollouts
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    if left:
        (out / left).write_text('{"settings": {"env')
    assert run(out).summary["episodes"] == 4


def test_a_finished_evaluation_and_a_folder_of_others_are_left_alone(tmp_path: Path, rollouts: Rollouts) -> None:
    run(tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for taken in ("out", "mine", "file"):
        with pytest.raises(FileExistsError, match="already exists: choose another with --out or remove it first"):
            run(tmp_path / taken)
    assert [entry.name for entry in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_films_and_page_that_are_missing_are_made_without_running_episodes_again(
    tmp_path: Path, rollouts: Rollouts
) -> None:
    def interrupt(what: str, done: int, of: int) -> None:
        if what == "filming":
            raise KeyboardInterrupt

    config = EvalConfig(ENV, episodes=4, seed=10, out=tmp_path / "out", videos=1)
    with pytest.raises(Interrupted, match="all episodes and their summary are kept"):
        evaluate("expert", config, told=interrupt)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    rollouts.run = []
    assert evaluate("expert", config).summary == summary
    assert rollouts.run == [] and sorted(rollouts.filmed) == [10, 11]
    assert (tmp_path / "out" / "report.html").read_text().count("<video") == 2


def test_films_come_after_the_summary_and_one_that_differs_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Rollouts(refilmed=lambda seed: outcome(seed, success=False))
    for module in (evaluation_module, films_module):
        monkeypatch.setattr(module, "run_episodes", fake)
    with pytest.warns(UserWarning, match="seed 10 came out differently when it was run again for the film"):
        done = run(tmp_path / "out", videos=1)
    assert done.summary["success"] == 0.5
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Run again for this film it came out differently: failed, reached stage 1" in page


def test_films_that_cannot_be_made_cost_no_result(
    tmp_path: Path, rollouts: Rollouts, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Rollouts()
    broken.fail_at, broken.error = 12, RuntimeError("no OpenGL here")
    monkeypatch.setattr(films_module, "run_episodes", broken)
    with pytest.warns(UserWarning, match="1 of 2 films could not be made: no OpenGL here"):
        run(tmp_path / "out", seed=12, episodes=2, videos=1)
    assert (tmp_path / "out" / "summary.json").is_file()
    page = (tmp_path / "out" / "report.html").read_text()
    assert "films could not be made: no OpenGL here" in page and page.count("<video") == 1


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("episodes.jsonl", "garbage\n", "episodes.jsonl, line 1 is no episode"),
        ("episodes.jsonl", '{"seed": 13}\n', "episodes.jsonl, line 1 is no episode"),
        ("episodes.jsonl", "[[[" * 100_000 + "\n", "episodes.jsonl, line 1 is no episode"),
        ("episodes.jsonl", json.dumps(to_record(outcome(13)) | {"success": "yes"}) + "\n", "is no episode"),
        ("episodes.jsonl", json.dumps(to_record(outcome(99))) + "\n", "holds an episode of seed 99"),
        ("episodes.jsonl", None, "no regular file"),
        ("settings.json", "[]", "settings.json is damaged"),
        ("settings.json", '{"settings": 3, "begun": {}}', "settings.json is damaged"),
        ("summary.json", "{}", "lacks 2 episodes"),
    ],
)
def test_a_damaged_folder_is_told_in_one_line(
    file: str, content: str | None, said: str, tmp_path: Path, rollouts: Rollouts
) -> None:
    rollouts.fail_at = 11
    with pytest.raises(Interrupted):
        run(tmp_path / "out")
    path = tmp_path / "out" / file
    path.unlink(missing_ok=True)
    if content is None:
        os.mkfifo(path)
    else:
        path.write_text(content)
    with pytest.raises(ValueError, match=said) as caught:
        run(tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_settings_of_others_are_shown_as_text(tmp_path: Path, rollouts: Rollouts) -> None:
    rollouts.fail_at = 11
    with pytest.raises(Interrupted):
        run(tmp_path / "out")
    path = tmp_path / "out" / "settings.json"
    values = json.loads(path.read_text())
    values["settings"]["device"] = "gpu\n\x1b[31m" + "0" * 1000
    path.write_text(json.dumps(values))
    with pytest.raises(FileExistsError, match="other settings") as caught:
        run(tmp_path / "out")
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400


def test_a_damaged_summary_is_told(tmp_path: Path, rollouts: Rollouts) -> None:
    run(tmp_path / "out")
    (tmp_path / "out" / "report.html").unlink()
    (tmp_path / "out" / "summary.json").write_text('{"wall_s": "long"}')
    with pytest.raises(ValueError, match=r"summary.json is no summary of an evaluation"):
        run(tmp_path / "out")


def test_an_evaluation_that_went_on_with_another_commit_says_both(
    tmp_path: Path, rollouts: Rollouts, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollouts.fail_at = 11
    with pytest.raises(Interrupted):
        run(tmp_path / "out")
    settings = tmp_path / "out" / "settings.json"
    values = json.loads(settings.read_text())
    values["begun"]["commit"] = "0123abcd"
    settings.write_text(json.dumps(values))
    rollouts.fail_at = None
    assert run(tmp_path / "out").summary["commit"].startswith("0123abcd, then ")


def test_a_full_disk_is_one_line_and_what_ended_is_kept(tmp_path: Path) -> None:
    """A limit on the size of a file stands in for the disk: both end in a write that fails."""
    ledger = Ledger(tmp_path / "out", SETTINGS)
    ledger.append(outcome(10))
    size = (tmp_path / "out" / "episodes.jsonl").stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, before[1]))
    try:
        with pytest.raises(
            DiskFullError, match=r"the disk is full at .*: 1 of 4 episodes are kept; make room"
        ) as caught:
            ledger.append(outcome(11))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(caught.value)
    assert Ledger(tmp_path / "out", SETTINGS).missing == {11, 12, 13}


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_ledger as t
from robostack.evaluation.config import EvalConfig
class Slow(t.Rollouts):
    def __call__(self, *arguments, **named):
        for episode in super().__call__(*arguments, **named):
            yield episode
            time.sleep(0.02)
t.evaluation_module.run_episodes = t.films_module.run_episodes = slow = Slow()
t.evaluate("expert", EvalConfig(t.ENV, episodes=40, seed=10, out=Path({out!r}), videos=1),
           lambda episode: print(episode.seed, flush=True))
"""


def test_a_killed_evaluation_keeps_every_episode_that_it_told_of(tmp_path: Path, rollouts: Rollouts) -> None:
    out = tmp_path / "out"
    script = KILLED.format(tests=str(Path(__file__).parent), out=str(out))
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = [int(process.stdout.readline()) for _ in range(10)]
        process.send_signal(signal.SIGKILL)
        told += [int(line) for line in process.stdout.read().splitlines()]
    kept = {line["seed"] for line in lines(out)}
    assert set(told) <= kept
    done = run(out, episodes=40, videos=1)
    assert not kept & set(rollouts.run) and [e.seed for e in done.episodes] == list(range(10, 50))
    assert np.isclose(done.summary["success"], 0.5)


@pytest.mark.parametrize(
    ("most", "kept"),
    [
        (200, None),  # no settings
        (5_000, "all episodes and their summary are kept, films and report are missing"),  # no film
        (20_000, "all episodes and their summary are kept, films and report are missing"),  # no page
    ],
)
def test_a_disk_that_fills_up_anywhere_is_one_line_and_the_same_command_goes_on(
    most: int, kept: str | None, tmp_path: Path, rollouts: Rollouts
) -> None:
    out, before = tmp_path / "out", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        with pytest.raises(DiskFullError, match="the disk is full at") as caught:
            run(out, videos=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(caught.value) and (kept or "0 of 4 episodes") in str(caught.value)
    assert kept is None or json.loads((out / "summary.json").read_text())["episodes"] == 4
    assert not list(tmp_path.rglob(".*partial*"))
    done, rollouts.run[:] = list(rollouts.run), []
    run(out, videos=1)
    assert (out / "report.html").read_text().count("<video") == 2 and not set(done) & set(rollouts.run)
