import errno
import os
import resource
from pathlib import Path

import pytest

from robostack.common.files import (
    DiskFullError,
    inside,
    is_disk_full,
    read_json,
    read_json_lines,
    read_text,
    refuse_taken,
    room_needed,
    whole_folder,
    write_file,
)
from robostack.common.text import one_line, printable


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "new") as folder:
        (folder / "half").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with whole_folder(tmp_path / "new") as folder:
        (folder / "a").mkdir()
        (folder / "a" / "file").write_text("x")
        assert not (tmp_path / "new").exists()
    assert (tmp_path / "new/a/file").read_text() == "x"
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_file(tmp_path / "f", "old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    told = pytest.raises(DiskFullError, match=r"the disk is full at .*/f: the old one is kept")
    with told, room_needed(tmp_path / "f", "the old one is kept"):
        write_file(tmp_path / "f", "new")
    assert (tmp_path / "f").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "x"), True),
        (OSError(errno.EFBIG, "x"), True),
        (RuntimeError("I/O error: No space left on device (os error 28)"), True),
        (OSError(errno.EACCES, "Permission denied"), False),
    ],
)
def test_a_full_disk_is_known_by_number_or_text(error: Exception, full: bool) -> None:
    assert is_disk_full(error) is full
    try:
        raise ValueError("while writing") from error
    except ValueError as outer:
        assert is_disk_full(outer) is full


def test_an_empty_folder_is_free_and_nothing_else(tmp_path: Path) -> None:
    refuse_taken(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    refuse_taken(tmp_path / "empty")
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for taken in (tmp_path, tmp_path / "file", tmp_path / "link"):
        with pytest.raises(FileExistsError, match="already exists: choose another"):
            refuse_taken(taken)


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "", ".", "a\0b"])
def test_names_of_data_do_not_leave_its_folder(name: str) -> None:
    with pytest.raises(ValueError, match="leads out of"):
        inside(Path("data"), name)
    assert inside(Path("data"), "a/b c.x") == Path("data/a/b c.x")


def test_pipes_and_large_files_are_refused_before_they_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="no regular file"):
        read_text(tmp_path / "pipe")
    with pytest.raises(ValueError, match="no regular file"):
        read_text(Path("/dev/zero"))
    (tmp_path / "large").write_text("x" * 11)
    with pytest.raises(ValueError, match="has 11 bytes, expected at most 10"):
        read_text(tmp_path / "large", 10)


def test_json_lines_as_people_write_them(tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_bytes('\ufeff{"task": "a\u2028b\x85c"}\r\n{\n "task":\n 2}\n\n[3] {"x": 4}'.encode())
    assert read_json_lines(path) == [{"task": "a\u2028b\x85c"}, {"task": 2}, [3], {"x": 4}]


@pytest.mark.parametrize("text", ["", "{", '{"a": 1} {', "[" * 100_000, "9" * 10_000, '{"a": 1}{"b": 2}', "\udcff"])
def test_what_is_not_json_is_told_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"x\.json") as caught:
        read_json(path)
    assert "\n" not in str(caught.value)


def test_a_limit_on_the_size_of_files_is_a_full_disk(tmp_path: Path) -> None:
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, old[1]))
    try:
        with pytest.raises(DiskFullError), room_needed(lambda: tmp_path, "nothing"):
            write_file(tmp_path / "f", "x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert list(tmp_path.iterdir()) == []


def test_control_characters_are_shown_as_escapes() -> None:
    assert printable("Schublade 抓取 [red]") == "Schublade 抓取 [red]"
    assert printable("a\x1b[31m\n\u2028\udcff") == r"a\x1b[31m\n\u2028\udcff"
    assert one_line(KeyError("fps")) == "fps is missing"
    assert one_line(ValueError("a\n b\x07")) == r"a b\x07"
    assert one_line(ValueError()) == "ValueError"
