"""SIGKILL at any moment: what was told is kept, and going on gives what an undisturbed run gives, bit for bit."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import verbs
from fork_server import Forks, Ran
from verbs import Verb

KILLS = 23
"""Of each verb; with those of the experts, a hundred."""


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks() as forks:
        yield forks


@pytest.fixture(scope="module")
def demonstrations(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ran]:
    path = tmp_path_factory.mktemp("collected") / "data"
    ran = forks.run(verbs.collect().first(path))
    assert ran.code == 0, ran.told
    return path, ran


@pytest.fixture(scope="module")
def run(forks: Forks, demonstrations: tuple[Path, Ran], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ran]:
    path = tmp_path_factory.mktemp("trained") / "run"
    ran = forks.run(verbs.train(demonstrations[0]).first(path))
    assert ran.code == 0, ran.told
    return path, ran


def kill_at_random(forks: Forks, verb: Verb, whole: tuple[Path, Ran], folder: Path, kills: int, seed: int) -> None:
    """So many kills, some of them of a run that goes on after one; each time the end is that of the whole run."""
    expected, seconds = verb.read(whole[0]), whole[1].seconds
    rng, number = np.random.default_rng(seed), 0
    while kills:
        out, number, command = folder / f"{verb.name}{number}" / "out", number + 1, verb.first
        out.parent.mkdir()
        for _ in range(min(kills, int(rng.integers(1, 4)))):
            ran = forks.run(command(out), kill_after=float(rng.uniform(0, 1.1 * seconds)))
            kills -= 1
            if ran.code == 0:
                break
            if had_ended(ran):
                break
            if ran.code != -signal.SIGKILL:
                assert command == verb.again and "--resume" in command(out) and verb.kept(out) == 0, ran.told
                ran = forks.run(verb.first(out))  # there was nothing to go on with, and it said so
                assert ran.code == 0, ran.told
                break
            told = verbs.told(ran.told, verb.name)
            kept = verb.kept(out)
            assert kept >= verb.promised(told), ran.told
            command = verb.again if out.exists() else verb.first
        if ran.code != 0 and not had_ended(ran):
            ran = go_on(forks, verb, out)
        assert ran.code == 0 or had_ended(ran), ran.told
        assert verb.read(out) == expected
        left = [path.name for path in out.parent.iterdir() if path != out]
        assert not left, f"{left} is left of a run that has ended"


def had_ended(ran: Ran) -> bool:
    """Whether the kill before came so late that everything was done, and the next run says so."""
    return ran.code == 1 and any(text in ran.told for text in ("there is nothing to go on with", "already exists"))


def go_on(forks: Forks, verb: Verb, out: Path) -> Ran:
    """Goes on where something is kept, else with the first command."""
    if not out.exists():
        return forks.run(verb.first(out))
    kept = verb.kept(out)
    ran = forks.run(verb.again(out))
    if ran.code and not kept:
        assert "Traceback" not in ran.told
        return forks.run(verb.first(out))
    return ran


def convert_told(forks: Forks, verb: Verb, whole: tuple[Path, Ran], folder: Path, kills: int) -> None:
    """A conversion goes on after the last episode that it told of."""
    rng, expected = np.random.default_rng(kills), verb.read(whole[0])
    for number in range(kills):
        out, done, ran = folder / f"told{number}" / "out", 0, whole[1]
        out.parent.mkdir()
        for last in (False, False, True):
            ran = forks.run(verb.first(out), None if last else float(rng.uniform(0.2, 1.0) * whole[1].seconds))
            counts = [int(n) for n in re.findall(r"^converting (\d+)/.*: converting", ran.told, re.MULTILINE)]
            assert not counts or counts[0] > done, ran.told
            done = max([done, *counts])
            if ran.code == 0:
                break
        assert ran.code == 0 and verb.read(out) == expected, ran.told


def test_killed_collections_conversions_and_trainings_go_on(
    forks: Forks, demonstrations: tuple[Path, Ran], run: tuple[Path, Ran], tmp_path: Path
) -> None:
    kill_at_random(forks, verbs.collect(), demonstrations, tmp_path, 2, seed=1)
    kill_at_random(forks, verbs.train(demonstrations[0]), run, tmp_path, 3, seed=2)
    verb = verbs.convert(demonstrations[0], "lerobot")
    converted = tmp_path / "whole"
    ran = forks.run(verb.first(converted))
    assert ran.code == 0, ran.told
    convert_told(forks, verb, (converted, ran), tmp_path, 2)


@pytest.mark.slow
def test_a_hundred_kills_lose_nothing_collect(forks: Forks, demonstrations: tuple[Path, Ran], tmp_path: Path) -> None:
    kill_at_random(forks, verbs.collect(), demonstrations, tmp_path, KILLS, seed=11)


@pytest.mark.slow
@pytest.mark.parametrize(("to", "kills"), [("lerobot", 6), ("aloha", 6), ("diffusion-policy", 5), ("robostack", 6)])
def test_a_hundred_kills_lose_nothing_convert(
    forks: Forks, demonstrations: tuple[Path, Ran], tmp_path: Path, to: str, kills: int
) -> None:
    source = demonstrations[0]
    if to == "robostack":
        source = tmp_path / "source"
        assert forks.run(verbs.convert(demonstrations[0], "lerobot").first(source)).code == 0
    flags = ("--drop", "next.reward", "next.success", "observation.environment_state") if to == "aloha" else ()
    verb, converted = verbs.convert(source, to, *flags), tmp_path / "whole"
    ran = forks.run(verb.first(converted))
    assert ran.code == 0, ran.told
    convert_told(forks, verb, (converted, ran), tmp_path, kills // 2)
    kill_at_random(forks, verb, (converted, ran), tmp_path, kills - kills // 2 * 2 + 2, seed=12)


@pytest.mark.slow
def test_a_hundred_kills_lose_nothing_train(
    forks: Forks, demonstrations: tuple[Path, Ran], run: tuple[Path, Ran], tmp_path: Path
) -> None:
    kill_at_random(forks, verbs.train(demonstrations[0]), run, tmp_path, KILLS, seed=13)


@pytest.mark.slow
def test_a_hundred_kills_lose_nothing_eval(forks: Forks, run: tuple[Path, Ran], tmp_path: Path) -> None:
    verb, evaluated = verbs.evaluate(run[0]), tmp_path / "whole"
    ran = forks.run(verb.first(evaluated))
    assert ran.code == 0, ran.told
    kill_at_random(forks, verb, (evaluated, ran), tmp_path, KILLS, seed=14)


@pytest.mark.slow
def test_a_hundred_kills_lose_nothing_expert(tmp_path: Path) -> None:
    """JAX's programs do not survive a fork: each run is a process of its own, killed once it has begun to work."""
    from robostack.experts.ppo.checkpoint import ExpertCheckpoint

    small = ["--worlds", "8", "--steps", "16", "--minibatches", "2", "--widths", "16"]
    sizes = ["--updates", "16", "--first-checkpoint", "2", "--evaluation-episodes", "4"]
    first = ["expert", "--env", "kinetix-s-h6_unicycle_right", *small, *sizes, "--out"]
    code = "import sys; from robostack import progress, cli; progress.EVERY = 0.0; sys.exit(cli.main(sys.argv[1:]))"

    def start(out: Path, kill_after: float | None) -> tuple[int, str, float]:
        """Killed so long after its first update was told; gives status, output, seconds of work."""
        command = [*first, str(out)] if not out.exists() else ["expert", "--resume", str(out)]
        process = subprocess.Popen(
            [sys.executable, "-c", code, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0
        )
        assert process.stdout is not None
        said, begun = b"", None
        while True:
            ready, _, _ = select.select([process.stdout], [], [], 0.01)
            data = os.read(process.stdout.fileno(), 1 << 16) if ready else None
            said += data or b""
            if begun is None and re.search(rb"^training [1-9]", said, re.MULTILINE):
                begun = time.monotonic()
            if begun is not None and kill_after is not None and time.monotonic() - begun >= kill_after:
                process.kill()
            if data == b"":
                break
        return process.wait(), said.decode(), time.monotonic() - (begun or time.monotonic())

    def tensors(out: Path) -> dict[str, bytes]:
        last = ExpertCheckpoint.read(out).path
        return {file.name: file.read_bytes() for file in sorted(last.glob("*.safetensors"))}

    status, said, seconds = start(tmp_path / "whole", None)
    assert status == 0, said
    rng, kills, number = np.random.default_rng(15), 8, 0
    while kills:
        out, number = tmp_path / f"killed{number}", number + 1
        for _ in range(min(kills, 2)):
            status, said, _ = start(out, float(rng.uniform(0, seconds)))
            kills -= 1
            if status == 0:
                break
            told = verbs.told(said, "training")
            saved = [2**power for power in range(1, 5) if 2**power < told]  # an update is told before it is saved
            assert not saved or ExpertCheckpoint.read(out).update >= max(saved), said
        if status != 0:
            status, said, _ = start(out, None)
        assert status == 0, said
        assert tensors(out) == tensors(tmp_path / "whole")
