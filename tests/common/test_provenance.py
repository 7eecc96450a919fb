"""A commit is named that holds what was run, or it is said that none does."""

import subprocess
from pathlib import Path

from robostack.common.provenance import commit


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@example.com")
    done = subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_a_change_is_told_unless_it_is_of_a_result(tmp_path: Path) -> None:
    code, results = tmp_path / "robostack", tmp_path / "docs" / "results"
    for folder in (code, results):
        folder.mkdir(parents=True)
        (folder / "file").write_text("before")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "all")
    head = git(tmp_path, "rev-parse", "--short=12", "HEAD")
    assert commit(code) == head
    (results / "file").write_text("a new result")
    (tmp_path / "untracked").write_text("notes")
    assert commit(code) == head
    (code / "file").write_text("after")
    assert commit(code) == f"{head}+changes"


def test_an_installed_package_has_no_commit(tmp_path: Path) -> None:
    assert commit(tmp_path) == "unknown"
