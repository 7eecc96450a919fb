"""A disk that is full at any moment: one line, exit 1, what was there is usable, and with room the work goes on."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import verbs
from fork_server import Forks, Ran
from verbs import Verb


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks() as forks:
        yield forks


@pytest.fixture(scope="module")
def demonstrations(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("collected") / "data"
    ran = forks.run(verbs.collect(2).first(path))
    assert ran.code == 0, ran.told
    return path


@pytest.fixture(scope="module")
def run(forks: Forks, demonstrations: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trained") / "run"
    ran = forks.run(verbs.train(demonstrations).first(path))
    assert ran.code == 0, ran.told
    return path


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a size that `resize_disk` sets."""
    path = tmp_path / "disk"
    path.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", path], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("a small file system can be mounted by root alone")
    yield path
    subprocess.run(["umount", "--lazy", path], check=True)


def resize_disk(path: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={max(size, 4096)}", path], check=True)


def told_in_a_line(ran: Ran) -> None:
    """One line says that the disk is full, after whatever progress and warnings were told; nothing of a traceback."""
    assert ran.code == 1, ran.told
    assert "Traceback" not in ran.told and "Exception ignored" not in ran.told, ran.told
    last = ran.told.rstrip("\n").splitlines()[-1]
    assert last.startswith("robostack ") and "disk is full" in last, ran.told
    assert ran.told.count("disk is full") == 1, ran.told


def file_sizes(path: Path) -> list[int]:
    """The distinct sizes of the files under a path, or of a file."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sorted({file.stat().st_size for file in files})


def limits(sizes: list[int], most: int) -> list[int]:
    """Limits at which one more kind of file does not fit, spread over the sizes. Times that are written down make a
    file some bytes shorter or longer."""
    sizes = [size for size in sizes if size]
    step = max(1, -(-len(sizes) // most))
    return [0, *(int(0.95 * size) for size in sizes[::-1][::step])]


def fill(forks: Forks, verb: Verb, folder: Path, most: int) -> None:
    """Runs a verb with files limited to many sizes; then with room, which gives what it always gives."""
    whole = folder / "whole"
    ran = forks.run(verb.first(whole))
    assert ran.code == 0, ran.told
    expected = verb.read(whole)
    for limit in limits(file_sizes(whole), most):
        out = folder / f"limit{limit}" / "out"
        out.parent.mkdir()
        ran = forks.run(verb.first(out), largest_file=limit)
        told_in_a_line(ran)
        goes_on(forks, verb, out, ran, expected)


def goes_on(forks: Forks, verb: Verb, out: Path, ran: Ran, expected: object) -> None:
    count = verbs.told(ran.told, verb.name)
    kept = verb.kept(out)
    assert kept >= verb.promised(count), ran.told
    again = forks.run(verb.again(out) if out.exists() else verb.first(out))
    if again.code and not kept and out.exists():
        again = forks.run(verb.first(out))  # nothing was kept: to begin anew is to go on
    assert again.code == 0, f"{ran.told}\nand with room:\n{again.told}"
    assert verb.read(out) == expected


def fill_disk(forks: Forks, verb: Verb, disk: Path, shares: tuple[float, ...] = (0.05, 0.4, 0.75, 0.95)) -> None:
    """The same on a file system of a part of the size that is needed."""
    resize_disk(disk, 1 << 30)
    whole = disk / "whole"
    ran = forks.run(verb.first(whole))
    assert ran.code == 0, ran.told
    expected, needed = verb.read(whole), used(disk)
    subprocess.run(["rm", "-rf", whole], check=True)
    for share in shares:
        resize_disk(disk, int(share * needed))
        out = disk / f"share{share}"
        ran = forks.run(verb.first(out))
        told_in_a_line(ran)
        resize_disk(disk, 1 << 30)
        goes_on(forks, verb, out, ran, expected)
        subprocess.run(f"rm -rf {disk}/* {disk}/.[a-z]*", shell=True, check=True)


def used(disk: Path) -> int:
    found = os.statvfs(disk)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def test_a_collection_that_finds_the_disk_full_is_kept_as_far_as_it_came(forks: Forks, tmp_path: Path) -> None:
    fill(forks, verbs.collect(2), tmp_path, most=1)


@pytest.mark.parametrize("to", ["lerobot", "diffusion-policy"])
def test_a_conversion_that_finds_the_disk_full_goes_on(
    forks: Forks, demonstrations: Path, tmp_path: Path, to: str
) -> None:
    fill(forks, verbs.convert(demonstrations, to), tmp_path, most=2)


def test_a_training_that_finds_the_disk_full_has_its_last_checkpoint(
    forks: Forks, demonstrations: Path, tmp_path: Path
) -> None:
    fill(forks, verbs.train(demonstrations), tmp_path, most=3)


def test_an_evaluation_that_finds_the_disk_full_goes_on(forks: Forks, run: Path, tmp_path: Path) -> None:
    fill(forks, verbs.evaluate(run, episodes=2), tmp_path, most=2)


def test_a_page_that_does_not_fit_leaves_nothing(forks: Forks, demonstrations: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    told_in_a_line(forks.run(["inspect", demonstrations, "--html", page], largest_file=5_000))
    assert list(tmp_path.iterdir()) == []
    assert forks.run(["inspect", demonstrations, "--html", page]).code in (0, 1) and page.exists()


def test_a_checkpoint_is_whole_where_the_next_one_does_not_fit(
    forks: Forks, demonstrations: Path, tmp_path: Path
) -> None:
    """The folder is filled while it trains: what was kept before loads, and its last step is told."""
    from robostack.policies.checkpoint import Checkpoint

    verb, out = verbs.train(demonstrations), tmp_path / "run"
    stopped = forks.run(verb.first(out), kill_after=None)
    assert stopped.code == 0
    kept = verb.kept(out)
    # From its last checkpoint but one on, with no room for the optimiser's file.
    last = out / "checkpoints" / f"step-{kept:08d}"
    largest = max(file.stat().st_size for file in last.iterdir())
    subprocess.run(["rm", "-rf", last], check=True)
    ran = forks.run(verb.again(out), largest_file=largest - 1)
    told_in_a_line(ran)
    checkpoint = Checkpoint.read(out)
    assert checkpoint.step == kept - verbs.EVERY and checkpoint.load() is not None
    assert not [path for path in (out / "checkpoints").iterdir() if "partial" in path.name], "a part is left"


@pytest.mark.slow
@pytest.mark.parametrize("to", ["lerobot", "aloha", "diffusion-policy", "robostack"])
def test_conversions_on_a_small_disk(forks: Forks, demonstrations: Path, small_disk: Path, to: str) -> None:
    flags = ("--drop", "next.reward", "next.success", "observation.environment_state") if to == "aloha" else ()
    source = demonstrations
    if to == "robostack":
        source = small_disk.parent / "source"
        assert forks.run(verbs.convert(demonstrations, "lerobot").first(source)).code == 0
    fill_disk(forks, verbs.convert(source, to, *flags), small_disk)


@pytest.mark.slow
@pytest.mark.parametrize("to", ["lerobot", "aloha", "diffusion-policy", "robostack"])
def test_conversions_with_every_size_of_file(forks: Forks, demonstrations: Path, tmp_path: Path, to: str) -> None:
    flags = ("--drop", "next.reward", "next.success", "observation.environment_state") if to == "aloha" else ()
    source = demonstrations
    if to == "robostack":
        source = tmp_path / "source"
        assert forks.run(verbs.convert(demonstrations, "lerobot").first(source)).code == 0
    fill(forks, verbs.convert(source, to, *flags), tmp_path, most=8)


@pytest.mark.slow
def test_collections_on_a_small_disk(forks: Forks, small_disk: Path) -> None:
    fill_disk(forks, verbs.collect(3), small_disk)


@pytest.mark.slow
def test_trainings_on_a_small_disk(forks: Forks, demonstrations: Path, small_disk: Path) -> None:
    fill_disk(forks, verbs.train(demonstrations), small_disk)


@pytest.mark.slow
def test_evaluations_on_a_small_disk(forks: Forks, run: Path, small_disk: Path) -> None:
    fill_disk(forks, verbs.evaluate(run), small_disk, shares=(0.05, 0.4, 0.7))  # its files are some blocks each
