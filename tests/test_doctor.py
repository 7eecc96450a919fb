"""The doctor's report and self-test."""

import io
import json

import pytest
from rich.console import Console

from robostack import doctor
from robostack.common.extras import MissingExtraError, require_extra
from robostack.doctor import Skipped, collect_report, print_report


def printed(report) -> str:
    console = Console(width=200, file=io.StringIO())
    print_report(report, console)
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_a_sound_installation_passes_within_five_seconds():
    report = collect_report()
    outcomes = {check["name"]: (check["outcome"], check["reason"]) for check in report["checks"]}
    assert report["ok"], outcomes
    assert report["self_test_s"] < 5
    assert outcomes["torch on the processor"] == ("ok", "")
    assert outcomes["zarr on disk"] == ("ok", "")
    assert outcomes["ALOHA, 20 control steps"] == ("ok", "")
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["packages"]["torch"]["version"]
    text = printed(report)
    for expected in (
        "torch on the processor",
        "robostack[aloha]",
        report["packages"]["zarr"]["version"],
        "accelerators",
    ):
        assert expected in text


def test_a_failed_check_says_why_and_spoils_the_verdict(monkeypatch):
    def broken():
        raise OSError("disk [full]\nreally")

    def absent():
        raise Skipped("nothing there")

    monkeypatch.setattr(doctor, "CHECKS", {"disk": broken, "robot": absent, "sound": lambda: None})
    report = collect_report()
    assert not report["ok"]
    assert [(c["outcome"], c["reason"]) for c in report["checks"]] == [
        ("failed", "OSError: disk [full] really"),
        ("skipped", "nothing there"),
        ("ok", ""),
    ]
    assert "disk [full] really" in printed(report)
    assert "1 failed" in printed(report)


def test_a_missing_extra_is_no_failure_but_a_missing_dependency_is(monkeypatch):
    def needs_extra():
        require_extra("a_package_that_nobody_has", "aloha")

    def needs_dependency():
        import a_package_that_nobody_has  # noqa: F401  # pyright: ignore[reportMissingImports]

    monkeypatch.setattr(doctor, "CHECKS", {"extra": needs_extra, "dependency": needs_dependency})
    assert [check["outcome"] for check in collect_report()["checks"]] == ["skipped", "failed"]


def test_rendering_without_opengl_is_skipped_with_the_line_to_run(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "disable")
    with pytest.raises(Skipped, match="MUJOCO_GL=disable"):
        doctor.CHECKS["ALOHA, a rendered frame"]()
    assert doctor._gl()["backend"] is None


def test_an_uninstalled_package_shows_as_such(monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGES", {"a-package-that-nobody-has": "aloha"})
    monkeypatch.setattr(doctor, "CHECKS", {})
    report = collect_report()
    assert report["packages"] == {"a-package-that-nobody-has": {"version": None, "extra": "aloha"}}
    assert "not installed" in printed(report)


def test_an_unwritable_cache_is_seen(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "cache"))
    assert doctor._cache()["writable"] is False


def test_a_missing_extra_names_the_command_to_run():
    require_extra("json", "aloha")
    with pytest.raises(MissingExtraError, match=r"pip install 'robostack\[lerobot\]'"):
        require_extra("a_package_that_nobody_has", "lerobot")


def test_every_extra_that_is_named_exists():
    from importlib.metadata import metadata

    declared = set(metadata("robostack").get_all("Provides-Extra") or [])
    assert {extra for extra in doctor.PACKAGES.values() if extra} <= declared
