"""Runs robostack on damaged inputs, each in a process of its own, and says what should not have happened.

    .venv/bin/python tests/fuzz_trials.py FOLDER SEED TRIALS [KIND]   trials 0 .. TRIALS-1, or that numbered -TRIALS

A trial damages one input and runs every verb that reads it, through the command line's entry point but within a forked
process: what is imported once serves all. A verb may succeed, or refuse with a ValueError or an OSError of one line
(and training and conversion with their own errors). Everything else is a finding: another exception, a signal, a time
or memory limit, a file written or changed elsewhere than in the output, a file outside the input opened without a link
to it, and text of another file in anything that was written or said.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fuzz_inputs
import numpy as np

WALL_S, CPU_S = 40.0, 30
"""Limits of a trial: it usually takes a tenth of a second."""
MEMORY = 3 << 30
"""Address space that a trial may take beyond what is imported."""
UNDAMAGED = -1
"""Number of a trial in which nothing is damaged, and every verb must do what it is asked; so are those below."""
DISK = 256 << 20
"""Bytes that a trial may write."""
AT_ONCE = 2
WARM = (
    *("torch", "torch._dynamo", "pyarrow.parquet", "pyarrow.dataset", "h5py", "zarr", "av", "PIL.Image", "tyro"),
    *("safetensors.torch", "robostack.cli", "robostack.training.trainer", "robostack.evaluation.evaluate"),
    *("robostack.datasets.formats.convert", "robostack.pages.inspection", "robostack.datasets.formats.lerobot.writer"),
)
WARM_WITH_JAX = (*WARM, "jax", "robostack.experts.ppo.acting")


def main(folder: Path, seed: int, trials: int, kinds: list[str]) -> int:
    """Prints a JSON line for each trial with its findings, and one at the end."""
    known = list(fuzz_inputs.INPUTS)
    kinds = [kind for kind in known if not kinds or kind in kinds]
    folder = folder.resolve()
    prepare(folder, kinds)
    # In turn, so that every kind has its share of every number of trials.
    numbers = range(trials) if trials > 0 else [-trials]
    planned = [(kinds[number % len(kinds)], number) for number in numbers]
    outside, bad = _state(folder / "outside"), 0
    # JAX starts threads when it is imported: experts come last.
    for last in (False, True):
        waiting = [plan for plan in planned if (plan[0] == "expert") == last]
        if not waiting:
            continue
        warm_up(folder, seed, list(dict.fromkeys(kind for kind, _ in waiting)))
        for kind, number, result in run(folder, seed, waiting):
            bad += bool(result["findings"])
            del result["imported"]
            print(json.dumps({"trial": number, "kind": kind, **result}), flush=True)
    changed = sorted(set(outside.items()) ^ set(_state(folder / "outside").items()))
    print(json.dumps({"trials": len(planned), "with_findings": bad, "changed_outside": changed[:5]}), flush=True)
    return 0


def run(folder: Path, seed: int, planned: list[tuple[str, int]]) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Runs trials (kind, number), some at once; gives each with what came out."""
    waiting, running = planned[::-1], {}
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            kind, number = waiting.pop()
            end, process = _start(folder, kind, seed, number)
            running[end] = (process, kind, number, time.monotonic())
        ready, _, _ = select.select(list(running), [], [], 0.5)
        for end in list(running):
            process, kind, number, begun = running[end]
            late = time.monotonic() - begun > WALL_S
            if end not in ready and not late:
                continue
            work = folder / "trials" / str(number)
            result = _finish(end, process, late, work)
            del running[end]
            shutil.rmtree(work, ignore_errors=True)
            yield kind, number, {"s": round(time.monotonic() - begun, 2), **result}


def prepare(folder: Path, kinds: list[str]) -> None:
    """The inputs, made in a process of their own: their libraries start threads, which no fork survives."""
    if (ready := folder / f"ready-{len(kinds)}").exists():
        return
    process = os.fork()
    if not process:
        code = 1
        try:
            with _told():
                fuzz_inputs.build(folder / "inputs", kinds)
                fuzz_inputs.build(folder / "outside", kinds, marked=True)
            code = 0
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    if os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) != 0:
        raise RuntimeError("the inputs could not be made")
    ready.touch()


def warm_up(folder: Path, seed: int, kinds: list[str]) -> None:
    """Imports what trials of these kinds import, found by running them undamaged; says what is wrong even then."""
    names = WARM_WITH_JAX if kinds == ["expert"] else WARM
    for name in names:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    for kind, _, result in run(folder, seed, [(kind, UNDAMAGED - number) for number, kind in enumerate(kinds)]):
        if result["findings"]:
            print(json.dumps({"undamaged": kind, "findings": result["findings"]}), flush=True)
        for name in result["imported"]:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)


# ---- what is run


def verbs(kind: str, source: Path, out: Path, rng: np.random.Generator) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Name and call of everything that reads an input of this kind; later calls use what earlier ones wrote."""
    if kind == "run":
        run = source / "run"
        yield "inspect run", lambda: cli("inspect", run)
        yield "inspect run --json", lambda: cli("inspect", run, "--json")
        yield "act", lambda: _act(run)
        yield "resume", lambda: cli("train", "act", "--resume", run)
    elif kind == "expert":
        yield "expert", lambda: _load_expert(source / "run")
        yield "read log", lambda: _read_log(source / "run")
    elif kind == "evaluation":
        yield "evaluation", lambda: _evaluation(source / "evaluation", out)
    else:
        path = _entry(kind, source)
        others = ["lerobot"]
        if kind in ("aloha", "aloha-jpeg", "diffusion-policy-2", "diffusion-policy-3", "diffusion-policy-zip"):
            others += ["aloha" if kind.startswith("aloha") else "diffusion-policy"]
        target = str(rng.choice([*(["robostack"] * 2 if kind != "store" else []), *others]))
        flags = ["--images", "png"] if target == "lerobot" else []
        flags += ["--skip-damaged"] * int(rng.integers(2))
        flags += ["--drop", fuzz_inputs.DEPTH] if kind == "store" else []
        flags += ["--fps", "10"] * kind.startswith("diffusion-policy")
        yield "inspect", lambda: cli("inspect", path, "--html", out / "page.html")
        yield "inspect --json", lambda: cli("inspect", path, "--json")
        yield f"convert {target}", lambda: cli("convert", path, out / "data", "--to", target, *flags)
        if (out / "data").exists():
            yield "inspect the result", lambda: cli("inspect", out / "data", "--json")
        if kind == "store":
            yield "train", lambda: _batch(path)
            yield "go on", lambda: _append(path, out)


def cli(*arguments: Any) -> None:
    from robostack.cli import main as robostack

    code = robostack([str(argument) for argument in arguments])
    if code not in (0, 1, 2):
        raise AssertionError(f"robostack {arguments[0]} ended with {code}")


def _entry(kind: str, source: Path) -> Path:
    """What a user would name."""
    if kind == "robomimic":
        return source / "demonstrations.hdf5"
    if kind == "diffusion-policy-zip":
        return source / "replay.zarr.zip"
    return source / "replay" if kind.startswith("diffusion-policy") else source


def _batch(path: Path) -> None:
    import torch

    from robostack.datasets.store import EpisodeStore
    from robostack.policies.act import Act, ActConfig
    from robostack.training.config import TrainConfig
    from robostack.training.preparation import prepare
    from robostack.training.trainer import Source

    config = ActConfig(chunk_len=4, execute_len=2, width=16, hidden=16, posterior_depth=1, encoder_depth=1)
    store = EpisodeStore(path)
    processor = prepare([store], config.chunk_len)
    train = TrainConfig(data=(path,), out=path)
    drawn = Source.of([store], processor, config, train).draw(4, np.random.default_rng(0))
    observation, actions, valid = processor.training_batch(drawn)
    Act(config, processor.interface).loss(observation, actions, valid, torch.Generator().manual_seed(0))


def _append(path: Path, out: Path) -> None:
    """What `collect --resume` does, on a copy."""
    from robostack.datasets.store import EpisodeStore, EpisodeWriter

    copy = out / "copy"
    shutil.copytree(path, copy, symlinks=True, copy_function=_copied)
    writer = EpisodeWriter.resume(copy)
    writer.append({key: np.ones((3, *f.shape), f.dtype) for key, f in writer.features.items()}, "more")
    writer.finish()
    EpisodeStore(copy)


def _copied(source: str, target: str) -> None:
    """Of files only: the damage may be a pipe, or have holes of a terabyte."""
    path = Path(source)
    if path.is_file() and path.stat().st_size < 1 << 24:
        shutil.copyfile(source, target)


def _act(run: Path) -> None:
    from robostack.evaluation.about import describe_training, read_log_beside
    from robostack.runtime.agent import Agent

    agent = Agent.load(run)
    describe_training(agent.checkpoint, 1)
    read_log_beside(run)


def _load_expert(run: Path) -> None:
    from robostack.experts import trained_expert
    from robostack.experts.ppo.checkpoint import ExpertCheckpoint

    trained_expert(run)
    checkpoint = ExpertCheckpoint.read(run)
    print(checkpoint)
    checkpoint.acting()


def _read_log(run: Path) -> None:
    from robostack.evaluation.about import read_log_beside

    print(read_log_beside(run))


def _evaluation(folder: Path, out: Path) -> None:
    from robostack.evaluation.ledger import Ledger, to_record
    from robostack.pages.evaluation import write_report

    copy = out / "evaluation"
    shutil.copytree(folder, copy, symlinks=True, copy_function=_copied)
    ledger = Ledger(copy, fuzz_inputs.evaluation_settings())
    print(ledger.standing())
    summary: dict[str, Any] = {"env": "e", "policy": "p", "task": "t", "episodes": 3, "seed": 1000, "success": 0.5}
    summary |= {"success_interval": [0.1, 0.9], "final": 0.5, "final_interval": [0.1, 0.9], "stages": {"0": 1}}
    summary |= {"latency_ms_p50": 1.0, "latency_ms_p95": 1.0, "execute_len": 2, "wall_s": 1.0, **ledger.begun}
    write_report(out / "report.html", summary, [to_record(episode) for episode in ledger.episodes])


# ---- one trial


def _start(folder: Path, kind: str, seed: int, number: int) -> tuple[int, int]:
    """Forks a trial; gives the end of a pipe that it writes its result to, and its process."""
    reading, writing = os.pipe()
    process = os.fork()
    if process:
        os.close(writing)
        return reading, process
    os.close(reading)
    try:
        os.setsid()
        result = trial(folder, kind, seed, number)
    except BaseException:
        failed = f"the trial itself failed: {traceback.format_exc()}"
        result = {"damage": [], "findings": [failed], "said": [], "imported": []}
    with os.fdopen(writing, "w") as pipe:
        json.dump(result, pipe)
    os._exit(0)


def _finish(end: int, process: int, late: bool, work: Path) -> dict[str, Any]:
    if late:
        os.killpg(process, signal.SIGKILL)
    with os.fdopen(end) as pipe:
        text = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)  # what it left behind
    if status == 0 and text:
        return json.loads(text)
    how = (
        f"no end within {WALL_S:.0f} s"
        if late
        else f"ended by {signal.Signals(-status).name if status < 0 else status}"
    )
    damage, stack = (work / "damage.json", work / "stack.txt")
    done = json.loads(damage.read_text()) if damage.exists() else []
    where = stack.read_text()[-2500:] if stack.exists() else ""
    return {"damage": done, "findings": [f"{how}\n{where}"], "said": [], "imported": []}


def trial(folder: Path, kind: str, seed: int, number: int) -> dict[str, Any]:
    work = folder / "trials" / str(number)
    source, out = work / kind, work / "out"
    out.mkdir(parents=True)
    shutil.copytree(folder / "inputs" / kind, source)
    rng, imported = np.random.default_rng([seed, max(0, number + 1)]), set(sys.modules)
    os.chdir(work)
    done = fuzz_inputs.damage(source, folder / "outside", rng) if number > UNDAMAGED else []
    (work / "damage.json").write_text(json.dumps(done))
    faulthandler.dump_traceback_later(WALL_S - 5, file=(work / "stack.txt").open("w"))
    linked = any(word in line for line in done for word in ("outside text", "outside twin"))
    os.environ["TMPDIR"], tempfile.tempdir = str(out), None
    watch = Watch(folder / "outside", out, work / kind if kind == "run" else None)
    before, findings, said = _state(source), [], []
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    if number > UNDAMAGED:  # which imports what the others have
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ["ROBOSTACK_DEBUG"] = "1"  # exceptions as they are
    for name, call in verbs(kind, source, out, rng):
        with _told(out / "told.txt") as told, watch:
            try:
                call()
                said.append(f"{name}: done")
            except (ValueError, OSError) as error:
                said.append(f"{name}: {type(error).__name__}: {error}")
                if "\n" in str(error) or "\x1b" in str(error):
                    findings.append(f"{name}: more than a line: {error}")
                if not _ours(error):
                    said[-1] += f" [raised in {_place(error)}]"
            except BaseException as error:
                if type(error).__name__ in ("TrainingError", "VerificationError"):
                    said.append(f"{name}: {type(error).__name__}: {error}")
                else:
                    findings.append(f"{name}: {type(error).__name__}: {error}\n{traceback.format_exc()}")
        said.append(told.getvalue()[-300:].strip())
        findings += [f"{name}: {what}" for what in watch.take(linked)]
    if kind != "run" and (after := _state(source)) != before:
        findings.append(f"the input was changed: {sorted(set(before.items()) ^ set(after.items()))[:4]}")
    if not any("outside twin" in line for line in done):  # which is the user's own link, to a file of a data set
        findings += _marked([*said, "\n".join(findings)], out)
    written = sum(path.lstat().st_blocks * 512 for path in out.rglob("*"))
    if written > DISK:
        findings.append(f"{written:,} bytes were written")
    if number <= UNDAMAGED:
        findings += [line for line in said if "Error: " in line]
    loaded = [name for name in sys.modules if name not in imported and not name.startswith("_")]
    return {"damage": done, "findings": findings, "said": [line for line in said if line], "imported": loaded}


class Watch:
    """Follows which files Python opens, makes, renames and removes."""

    def __init__(self, outside: Path, out: Path, also: Path | None) -> None:
        self.outside, self.free, self.seen, self.active = str(outside), [str(out), "/dev/"], [], False
        self.free += [str(also)] if also else []
        self.free.append(os.path.expanduser("~/.cache/robostack/"))  # compiled programs
        sys.addaudithook(self._hook)

    def __enter__(self) -> None:
        self.active = True

    def __exit__(self, *_: Any) -> None:
        self.active = False

    def take(self, linked: bool) -> list[str]:
        """What was seen since the last time."""
        seen, self.seen = self.seen, []
        return [what for what in seen if not (linked and what.startswith("opened"))]

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.active or event not in ("open", "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.truncate"):
            return
        path = arguments[1] if event == "os.rename" else arguments[0]
        folder = arguments[-1] if event in ("os.remove", "os.rename", "os.mkdir", "os.rmdir") else -1
        if not isinstance(path, (str, bytes, os.PathLike)) or folder != -1:  # relative to a folder that is open
            return
        name = os.path.abspath(os.fsdecode(path))
        writes = event != "open" or (
            isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        )
        if writes and not any(name.startswith(free) for free in self.free) and "__pycache__" not in name:
            self.seen.append(f"wrote {name} ({event})")
        elif not writes and name.startswith(self.outside):
            self.seen.append(f"opened {name}")


def _marked(said: list[str], out: Path) -> list[str]:
    """Where text or numbers of other files came out."""
    marks = [fuzz_inputs.MARKER.encode(), b"12345.6", b"12346.6", np.float32(fuzz_inputs.SENTINEL).tobytes()]
    found = [f"text of another file is in: {line[:300]}" for line in said if fuzz_inputs.MARKER in line]
    for path in out.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_size < 1 << 24:
            data = path.read_bytes()
            found += [f"text of another file is in {path.relative_to(out)}" for mark in marks if mark in data]
    return found


def _ours(error: BaseException) -> bool:
    return "/robostack/" in _place(error) or isinstance(error, FileNotFoundError)


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename}:{frames[-1].lineno}"


def _state(folder: Path) -> dict[str, tuple[int, ...]]:
    return {
        str(path.relative_to(folder)): (path.lstat().st_mode, path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in folder.rglob("*")
        if not path.is_dir() or path.is_symlink()
    }


@contextlib.contextmanager
def _told(path: Path | None = None) -> Iterator[Any]:
    """Standard output and error, of C libraries too, in a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    file = open(path or os.devnull, "a+")  # noqa: SIM115
    start = file.tell()

    class Told:
        def getvalue(self) -> str:
            return Path(file.name).read_text(errors="replace")[start:] if path else ""

    for number in (1, 2):
        os.dup2(file.fileno(), number)
    try:
        yield Told()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, old in zip((1, 2), kept, strict=True):
            os.dup2(old, number)
            os.close(old)
        file.close()


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    raise SystemExit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]))
