"""The command line: the main job in small, and one clear line for whatever cannot work."""

import contextlib
import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import zarr
from safetensors.numpy import load_file
from support import write_reaching_data

from robostack import cli
from robostack.cli import main
from robostack.common.files import DiskFullError
from robostack.common.interrupt import Interrupted, Terminated
from robostack.datasets.episodes import Feature
from robostack.datasets.store import EpisodeStore, EpisodeWriter
from robostack.policies.checkpoint import checkpoint_folder

SMALL = ["--steps", "4", "--batch", "8", "--log-every", "2", "--threads", "1"]
SMALL += ["--policy.expert-width", "32", "--policy.depth", "1", "--policy.sample-steps", "2"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Collect → train → evaluate with a camera, as a user types it."""
    folder = tmp_path_factory.mktemp("demo")
    env = ["--env", "aloha-transfer-cube"]

    def main(command: list[str]) -> int:
        """Runs it with --json, which gives one line."""
        with contextlib.redirect_stdout(io.StringIO()) as out:
            code = cli.main([*command, "--json"])
        (line,) = out.getvalue().splitlines()
        results.append(json.loads(line))
        return code

    assert main(["collect", *env, "--episodes", "2", "--out", f"{folder}/data", "--cameras", "top_zoom:32x32"]) == 0
    observe = ["--observe", "observation.state", "observation.images.top_zoom"]
    assert main(["train", "pi0", "--data", f"{folder}/data", "--out", f"{folder}/run", *observe, *SMALL]) == 0
    assert main(["eval", f"{folder}/run", *env, "--episodes", "2", "--videos", "1"]) == 0
    return folder


def fails(capsys: pytest.CaptureFixture[str], arguments: list[str], *expected: str) -> None:
    """The command fails with one line that holds `expected`."""
    capsys.readouterr()
    assert main(arguments) != 0
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and all(text in lines[0] for text in expected), lines


results: list[dict[str, Any]] = []
"""What the verbs of `demo` printed."""


def test_collect_train_eval(demo: Path) -> None:
    collected, trained, evaluated = results
    assert (collected["path"], collected["episodes"], len(collected["spread"])) == (f"{demo}/data", 2, 14)
    assert (trained["run"], trained["step"]) == (f"{demo}/run", 4) and trained["loss"] > 0
    assert (evaluated["env"], evaluated["policy"], evaluated["episodes"]) == ("aloha-transfer-cube", "pi0", 2)
    assert (demo / "run" / "eval-aloha-transfer-cube" / "report.html").is_file()
    assert checkpoint_folder(demo / "run").name == "step-00000004"


def test_a_data_set_is_inspected(demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    capsys.readouterr()
    assert main(["inspect", f"{demo}/data", "--html", str(page)]) == 0
    shown = capsys.readouterr().err
    assert all(text in shown for text in ("left_waist", "400 frames", "top_zoom  camera", "hardly varies", "page:"))
    assert "data:image/jpeg" in page.read_text()
    assert main(["inspect", f"{demo}/data", "--json", "--sampled", "0", "--drop", "next.reward"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    values = json.loads(line)
    assert values["episodes"] == 2 and values["robot"] == "aloha" and "next.reward" not in values["features"]
    assert {problem["kind"] for problem in values["problems"]} <= {"constant", "hardly varies"}
    fails(capsys, ["inspect", f"{demo}/data", "--html", str(page)], "already exists")
    fails(capsys, ["inspect", f"{demo}/data", "--html", f"{tmp_path}/no/page.html"], "does not exist")
    fails(capsys, ["inspect", str(tmp_path)], "no data set that is known")
    fails(capsys, ["inspect", f"{tmp_path}/nowhere"], "does not exist")


def test_a_checkpoint_is_inspected(demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["inspect", f"{demo}/run"]) == 0
    shown = capsys.readouterr().err
    assert all(text in shown for text in ("pi0", "top_zoom 32×32", "expert_width", "observation.state", "machine"))
    assert main(["inspect", str(checkpoint_folder(demo / "run")), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    weights = load_file(checkpoint_folder(demo / "run") / "average.safetensors")
    assert values["parameters"] == sum(tensor.size for tensor in weights.values())
    assert values["step"] == 4 and len(values["statistics"]["action"]["mean"]) == 14
    fails(capsys, ["inspect", f"{demo}/run", "--html", f"{tmp_path}/page.html"], "is a checkpoint")
    broken = tmp_path / "broken"
    shutil.copytree(checkpoint_folder(demo / "run"), broken)
    (broken / "average.safetensors").write_bytes(b"no")
    fails(capsys, ["inspect", str(broken)], "average.safetensors cannot be read")


def test_json_is_all_that_standard_output_holds(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    out = str(demo / "again")
    arguments = [
        "eval",
        f"{demo}/run",
        "--env",
        "aloha-transfer-cube",
        "--episodes",
        "1",
        "--videos",
        "0",
        "--out",
        out,
    ]
    assert main([*arguments, "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["episodes"] == 1


def test_an_unknown_name_is_answered_with_the_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", f"{tmp_path}/data"]
    fails(capsys, ["fly"], "unknown verb 'fly'", "collect")
    fails(capsys, ["collect", "--env", "aloha-transfer-cub", *out], "unknown environment", "aloha-transfer-cube")
    fails(capsys, ["collect", "--env", "aloha-insertion", "--cameras", "side", *out], "unknown camera", "top_zoom")
    fails(capsys, ["train", "telepathy", "--data", "d", "--out", "o"], "unknown policy 'telepathy'", "pi0")
    fails(capsys, ["bench", "everything"], "unknown bench", "env")
    assert not (tmp_path / "data").exists()


def test_nothing_is_overwritten(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(path.stat().st_mtime_ns for path in demo.rglob("*"))
    env = ["--env", "aloha-transfer-cube"]
    fails(capsys, ["collect", *env, "--out", f"{demo}/data"], "already exists")
    fails(capsys, ["train", "pi0", "--data", f"{demo}/data", "--out", f"{demo}/run"], "already exists", "--resume")
    fails(capsys, ["eval", f"{demo}/run", *env], "already exists")
    fails(capsys, ["demo", "--out", str(demo)], "already exists")
    assert sorted(path.stat().st_mtime_ns for path in demo.rglob("*")) == before


def test_bad_data_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_reaching_data(tmp_path / "data")
    train = ["train", "pi0", "--out", f"{tmp_path}/run", *SMALL, "--data"]
    fails(capsys, [*train, f"{tmp_path}/nowhere"], "not a robostack data set")
    fails(capsys, [*train, str(data)], "too few frames for a chunk of 40")
    observe = ["--policy.chunk-len", "20", "--observe", "observation.state", "observation.environment_state"]
    fails(capsys, [*train, str(data), *observe], "lacks observation.environment_state")
    action = zarr.open_group(str(data), mode="r+")["action"]
    assert isinstance(action, zarr.Array)
    action[30, 0] = np.nan
    fails(capsys, [*train, str(data), "--policy.chunk-len", "20"], "action is not finite in episode 1 at frame 6")
    shutil.rmtree(data / "action" / "c")
    fails(capsys, [*train, str(data), "--policy.chunk-len", "20"], "truncated: action")
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_that_does_not_fit_is_named(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(demo / "run" / "checkpoints", run / "checkpoints")
    env = ["--env", "aloha-transfer-cube", "--episodes", "1"]
    fails(capsys, ["eval", f"{tmp_path}/nowhere", *env], "no checkpoint")
    fails(capsys, ["eval", str(run), *env, "--seed", "0"], "demonstrations of seeds 0 to 1")
    fails(capsys, ["train", "pi0", "--resume", f"{tmp_path}/nowhere"], "no checkpoint")
    fails(capsys, ["train", "pi0", "--resume", str(run), "--steps", "9"], "its settings are its own")
    description = checkpoint_folder(run) / "checkpoint.json"
    values = json.loads(description.read_text())
    description.write_text(json.dumps({**values, "policy": "telepathy"}))
    fails(capsys, ["eval", str(run), *env], "holds the policy 'telepathy'")
    values["config"]["expert_width"] = 64
    description.write_text(json.dumps(values))
    fails(capsys, ["eval", str(run), *env, "--out", f"{tmp_path}/eval"], "does not fit Pi0")
    assert not (tmp_path / "eval").exists()


def test_convert_shows_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, zarr_path = str(write_reaching_data(tmp_path / "data")), f"{tmp_path}/zarr"
    fails(capsys, ["convert", source, f"{tmp_path}/again"], "say to which format with --to")
    assert main(["convert", source, zarr_path, "--to", "diffusion-policy", "--json"]) == 0
    captured = capsys.readouterr()
    (line,) = captured.out.splitlines()
    done = json.loads(line)
    assert (done["path"], done["format"], done["episodes"], done["frames"]) == (zarr_path, "diffusion-policy", 8, 192)
    assert done["left_out"] == {} and len(done["actions_sha256"]) == 64
    assert "8 episodes, 192 frames, checked" in " ".join(captured.err.split())
    fails(capsys, ["convert", source, zarr_path, "--to", "diffusion-policy"], "already exists")
    fails(capsys, ["convert", zarr_path, f"{tmp_path}/back", "--fps", "30"], "50 frames a second, not 30")
    (tmp_path / "empty").mkdir()
    empty = ["convert", f"{tmp_path}/empty", f"{tmp_path}/back"]
    fails(capsys, empty, "is an empty folder", "no data set that is known: looked for")
    assert main(["convert", zarr_path, f"{tmp_path}/back"]) == 0
    back, data = EpisodeStore(tmp_path / "back"), EpisodeStore(tmp_path / "data")
    assert np.array_equal(back.read("action"), data.read("action")) and back.tasks == data.tasks


VERBS = ["demo", "collect", "expert", "convert", "inspect", "train pi0", "eval", "bench", "doctor"]


@pytest.mark.parametrize("verb", [*VERBS, "train"])
def test_every_verb_explains_itself_on_standard_output(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*verb.split(), "--help"])
    captured = capsys.readouterr()
    assert stop.value.code == 0 and captured.err == ""
    assert f"robostack {verb}" in captured.out and ("--json" in captured.out or verb == "train")


def test_what_there_is_goes_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["-h"], ["--help"]):
        assert main(arguments) == 0
        captured = capsys.readouterr()
        assert captured.err == "" and all(f"  {verb.split()[0]} " in captured.out for verb in VERBS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"robostack {version('robostack')}\n"


def test_a_shell_completes_verbs_policies_and_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--tyro-print-completion", "bash"])
    script = tmp_path / "complete.bash"
    script.write_text(capsys.readouterr().out)
    assert not stop.value.code
    for words, expected in (("tr", "train"), ("train ac", "act"), ("train act --lear", "--learning-rate")):
        ask = f"COMP_WORDS=(robostack {words}); COMP_CWORD={len(words.split())}"
        ask = f"source {script}; {ask}; $(complete -p robostack | cut -d' ' -f3); echo ${{COMPREPLY[*]}}"
        assert subprocess.run(["bash", "-c", ask], capture_output=True, text=True).stdout == f"{expected}\n"


def test_the_help_of_train_lists_the_policies_and_the_flags_of_all(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("decision_transformer", "--learning-rate", "--normalization"))


def test_flags_and_wrong_names_are_told_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    commands = [
        *(
            "--help",
            "--version",
            "trian",
            "train --help",
            "train pi",
            "train telepathy --data d --out o",
            "bench data2",
        ),
        *("collect --env PushT --out o", "eval expert --env PushT", "eval R --env aloha-transfer-cub --lr 3"),
        *("expert --env aloha-nothing --out o", "convert a b --to lerobo", "inspect --lr", "demo --lr 3"),
    ]
    script = f"""
import sys
from robostack.cli import main
for command in {commands!r}:
    try:
        code = main(command.split())
    except SystemExit as stop:
        code = stop.code
    assert (code == 0) == ("-help" in command or "version" in command), command
    heavy = [name for name in ("torch", "jax", "mujoco", "matplotlib", "av") if name in sys.modules]
    assert not heavy, (command, heavy)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("trian pi0", ("unknown verb 'trian'", "did you mean 'train'")),
        ("train pi00", ("unknown policy 'pi00'", "did you mean 'pi0'")),
        ("train act --data d --out o --lr 3e-4", ("unknown option --lr", "did you mean --learning-rate?")),
        ("train act --data d --out o --lr=-3e-4", ("unknown option --lr:", "did you mean --learning-rate?")),
        ("train act --data d --out o --batch_size 8", ("unknown option --batch_size", "did you mean --batch?")),
        ("train act --data d --out o --stepps 8", ("did you mean --steps?",)),
        ("train act --data d --out o --chunk-len 8", ("did you mean --policy.chunk-len?",)),
        ("train act --data d --out o --num-workerz 8", ("unknown option --num-workerz",)),
        ("train act --lr 3e-4 --out o", ("missing: --data", "did you mean --learning-rate?")),
        ("train act --data d --out o --steps ten", ("--steps", "whole number", "'ten'")),
        ("train act --data d --out o --steps 0", ("steps must be at least 1, got 0",)),
        ("train act --data d --out o --optimizer sgd", ("--optimizer", "'sgd'", "muon")),
        ("train pi0 --data d --out o --policy.chunk-len 15", ("chunk_len 15", "take 10 or 20")),
        ("train", ("name the policy first", "pi0")),
        ("train --data d --out o pi0", ("name the policy first", "pi0")),
        ("eval R --env aloha-insertion --n-episodes 5", ("did you mean --episodes?",)),
        ("convert a b c", ("unexpected 'c'",)),
        ("convert a", ("missing", "DST")),
        ("inspect", ("missing", "Data set")),
        ("--tyro-print-completion ksh", ("bash, zsh",)),
        ("bench dat", ("unknown bench 'dat'", "did you mean 'data'")),
    ],
)
def test_a_mistyped_command_is_one_line_that_says_what_is_meant(
    command: str, expected: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    fails(capsys, command.split(), "robostack", *expected)


def test_a_program_that_is_not_read_to_its_end_says_nothing() -> None:
    for command in (["--help"], ["inspect", "--help"], ["bench", "--help"]):
        program = subprocess.Popen(
            [sys.executable, "-m", "robostack", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert program.stdout is not None and program.stderr is not None
        program.stdout.close()
        assert program.stderr.read() == b"" and program.wait() == 128 + signal.SIGPIPE


def test_a_full_disk_behind_standard_output_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-m", "robostack", "--help"], stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    (line,) = done.stderr.decode().splitlines()
    assert "disk is full" in line and "standard output" in line


HOSTILE = "[red]x[/] [/] \x1b[2J\u2028y\nz"


def test_names_and_texts_cannot_colour_or_break_the_console(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = r"[red]x[/] [/] \x1b[2J y z"
    one_of(monkeypatch, ValueError(f"no data set at {HOSTILE}"))
    fails(capsys, ["doctor"], f"no data set at {shown}")
    monkeypatch.setitem(
        cast(dict[str, Any], cli.VERBS), "doctor", (lambda _: warnings.warn(HOSTILE, stacklevel=1) or 0, "")
    )
    assert main(["doctor"]) == 0
    assert capsys.readouterr().err == f"warning: {shown}\n"
    fails(capsys, [HOSTILE], "unknown verb", "[red]x[/]")
    fails(capsys, ["inspect", f"[red]x[/]/{HOSTILE}"], "[red]x[/]")
    fails(capsys, ["train", "[/]"], "unknown policy '[/]'")
    fails(capsys, ["inspect", "x", "--[red]"], "--[red]")


def one_of(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """The verb `doctor` raises this."""

    def verb(_: list[str]) -> int:
        raise error

    monkeypatch.setitem(cast(dict[str, Any], cli.VERBS), "doctor", (verb, "fails"))


def test_an_interrupt_claims_only_what_the_verb_says_is_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one_of(monkeypatch, KeyboardInterrupt())
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err == "robostack doctor: interrupted\n"
    one_of(monkeypatch, Interrupted("step 490 is kept: go on with\n--resume R"))
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err == "robostack doctor: interrupted; step 490 is kept: go on with --resume R\n"
    one_of(monkeypatch, Terminated())
    assert main(["doctor"]) == 128 + signal.SIGTERM


class LibraryError(Exception):
    """As safetensors' own: of no type that is expected."""


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "run/a.npy"),
        LibraryError(f"Error while serializing: I/O error: {os.strerror(errno.EFBIG)} (os error 27)"),
        RuntimeError(f"zarr: {os.strerror(errno.EDQUOT)}"),
        DiskFullError("the disk is full at run/a.npy: step 3 is kept"),
    ],
)
def test_a_full_disk_is_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one_of(monkeypatch, error)
    fails(capsys, ["doctor"], "robostack doctor: the disk is full")


def hostile_data(path: Path) -> Path:
    """A data set whose names and texts are markup, escape sequences and line ends."""
    features = {
        "observation.state": Feature((2,), "float32", ("[/]", "\x1b[31mred"), ("[b]", "m\u2028")),
        "action": Feature((2,), "float32", (HOSTILE, "[/]")),
    }
    writer = EpisodeWriter(path, features, fps=50, provenance={"[/]": HOSTILE}, robot="[blink]r\x1b[0m")
    for episode in range(3):
        state = np.sin(np.arange(60)[:, None] / [9, 7] + episode).astype(np.float32)
        writer.append({"observation.state": state, "action": state * np.float32([[1, 0]])}, f"{HOSTILE} {episode}")
    return path


def test_hostile_names_and_texts_are_shown_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, folder = hostile_data(tmp_path / "[red]x[/]\x1b[1m"), str(tmp_path)
    run, page = f"{folder}/[/]run", tmp_path / "page.html"
    small = ["--steps", "2", "--batch", "4", "--threads", "1", "--policy.width", "16", "--policy.chunk-len", "4"]
    commands = [
        ["inspect", str(data), "--html", str(page)],
        ["inspect", str(data), "--json"],
        ["convert", str(data), f"{folder}/[red]y[/]", "--to", "diffusion-policy"],
        ["train", "act", "--data", str(data), "--out", run, *small],
        ["inspect", run],
    ]
    shown = []
    for command in commands:
        assert main(command) == 0, capsys.readouterr().err
        captured = capsys.readouterr()
        shown.append(captured.err)
        assert "\x1b" not in captured.err + captured.out and "\u2028" not in captured.err + captured.out
    assert all(text in shown[0] for text in (r"[red]x[/] [/] \x1b[2J\u2028y\nz 1", r"\x1b[31mred", "[blink]r", "[b]"))
    assert "[red]y[/]" in shown[2] and "[/]run" in shown[3]
    assert "\x1b" not in page.read_text() and r"[red]x[/] [/] \x1b[2J\u2028y\nz 2" in page.read_text()
    fails(capsys, ["train", "act", "--data", str(data), "--out", run, *small], "[/]run", "already exists")


def test_inspect_fails_where_something_is_to_be_mended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = hostile_data(tmp_path / "data")
    assert main(["inspect", str(data)]) == 0
    assert "note: constant: action [/]" in capsys.readouterr().err
    action = zarr.open_group(str(data), mode="r+")["action"]
    assert isinstance(action, zarr.Array)
    action[70, 0] = np.nan
    assert main(["inspect", str(data), "--json"]) == 1
    values = json.loads(capsys.readouterr().out)
    assert values["counts"]["problem"] >= 1
    assert {"problem", "note"} == {found["severity"] for found in values["problems"]}
