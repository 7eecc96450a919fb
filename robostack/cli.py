"""`robostack <verb>`: the one entry point. Flags come from the dataclasses of each verb's settings.

Nothing heavy is imported before a verb is known, so that `--help` and wrong names answer at once.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any

from rich.text import Text
from tyro.conf import OmitArgPrefixes, Positional, PositionalRequiredArgs, arg

from robostack.common.console import console, print_json, say, write
from robostack.common.files import is_disk_full, room_needed
from robostack.common.flags import WHICH_FLAGS, Answer, UsageError, one_of, parse
from robostack.common.interrupt import Interrupted, Terminated, ends_as_interrupt
from robostack.common.text import did_you_mean, one_line, printable

HELP = ("-h", "--help")
Json = Annotated[bool, arg(help="Print JSON lines on standard output, and nothing else there.")]


def main(arguments: list[str] | None = None) -> int:
    """Runs a verb; returns 0 when it did what was asked, else after a line that says why not."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in HELP:
        verb, run, rest = "help", _usage, []
    elif arguments[0] in ("-V", "--version"):
        verb, run, rest = "version", _version, []
    elif arguments[0].startswith("--tyro-"):
        verb, run, rest = "completion", _complete, arguments
    elif arguments[0] in VERBS:
        verb, run, rest = arguments[0], VERBS[arguments[0]][0], arguments[1:]
    else:
        hint = did_you_mean(arguments[0], VERBS)
        return _fail(f"robostack: unknown verb {arguments[0]!r}: {hint}expected one of {', '.join(VERBS)}", 2)
    warnings.showwarning = lambda message, *_: say(f"warning: {one_line(Warning(message), 2000)}", "yellow")
    try:
        with ends_as_interrupt():
            try:
                return run(rest)
            finally:
                write("")
    except KeyboardInterrupt as interrupt:
        # Only the verb knows what is kept; where it says nothing, nothing is claimed.
        kept = f"; {one_line(interrupt)}" if isinstance(interrupt, Interrupted) else ""
        code = 128 + (signal.SIGTERM if _because_of(Terminated, interrupt) else signal.SIGINT)
        return _fail(f"robostack {verb}: interrupted{kept}", code)
    except Exception as error:
        if os.environ.get("ROBOSTACK_DEBUG"):
            raise
        said = one_line(error, longest=2000)
        if isinstance(error, UsageError):
            return _fail(said if said.startswith("robostack") else f"robostack {verb}: {said}", 2)
        if is_disk_full(error) and "disk is full" not in said:  # whatever library says so, and of whatever type it is
            return _fail(f"robostack {verb}: the disk is full: {said}", 1)
        if not isinstance(error, (ValueError, OSError, ImportError, ArithmeticError, RuntimeError)):
            raise
        return _fail(f"robostack {verb}: {said}", 1)


def collect(arguments: list[str]) -> int:
    """robostack collect: demonstrations from the environment's expert; --resume D continues."""
    from robostack.common.progress import Bar
    from robostack.datasets.store import EpisodeStore
    from robostack.experts.collect import CollectConfig, Collected, settings_of
    from robostack.experts.collect import collect as run
    from robostack.experts.spread import action_spread
    from robostack.pages.spread_console import print_spread

    if arguments[:1] == ["--resume"]:
        as_json, arguments = _take_json(arguments)
        if len(arguments) != 2:
            raise ValueError("--resume takes the folder of a data set and nothing else: its settings are its own")
        config = settings_of(Path(arguments[1]))
    else:
        settings = make_dataclass(
            "Collect", [("config", Annotated[CollectConfig, OmitArgPrefixes]), ("json", Json, False)], frozen=True
        )
        parsed = _parse("collect", settings, arguments)
        config, as_json = parsed.config, parsed.json
    with Bar(console, "collecting") as bar:

        def report(done: Collected) -> None:
            bar.update(done.kept, config.episodes, f"{done.failed} failed")

        done = run(config, report)
    say(f"{config.out}: {done.kept} episodes kept, {done.failed} failed")
    # An expert's noise leads every episode elsewhere: a spread over them says nothing.
    entries = [] if config.expert else action_spread(EpisodeStore(config.out))
    if as_json:
        result = {"path": str(config.out), "env": config.env, "episodes": done.kept, "failed": done.failed}
        print_json([{**result, "spread": [asdict(entry) for entry in entries]}])
        return 0
    if entries:
        print_spread(entries, console)
    return 0


def expert(arguments: list[str]) -> int:
    """robostack expert: an expert by reinforcement where none is scripted; --resume RUN continues."""
    if arguments[:1] == ["--resume"]:
        as_json, arguments = _take_json(arguments)
        if len(arguments) != 2:
            raise ValueError("--resume takes the folder of a run and nothing else: its settings are its own")
        from robostack.experts.ppo.training import resume_expert

        return _expert(Path(arguments[1]), lambda *told: resume_expert(Path(arguments[1]), *told), as_json)

    from robostack.experts.ppo.config import ExpertConfig, level_of

    settings = make_dataclass(
        "Expert", [("config", Annotated[ExpertConfig, OmitArgPrefixes]), ("json", Json, False)], frozen=True
    )
    parsed = _parse("expert", settings, arguments)
    config: ExpertConfig = parsed.config
    level_of(config.env)  # a wrong name is told before JAX is imported
    from robostack.experts.ppo.training import train_expert as run

    return _expert(config.out, lambda *told: run(config, *told), parsed.json)


def _expert(out: Path, run: Callable[[Callable[[Any], None], Callable[[int, str], None]], Path], as_json: bool) -> int:
    from robostack.common.progress import Bar

    with Bar(console, "training") as bar:
        solved, updates = "no episode yet", 1

        def report(done: Any) -> None:
            nonlocal solved, updates
            updates = done.updates
            if done.solved is not None:
                solved = f"{done.solved:.0%} of {done.episodes} episodes solved"
            bar.update(done.update, updates, f"{solved}, {done.steps_per_s:,.0f} steps/s")

        def stage(update: int, what: str) -> None:
            bar.update(update, max(update, updates), f"{what}; {solved}")

        run(report, stage)
    from robostack.experts.ppo.checkpoint import ExpertCheckpoint

    reached = ExpertCheckpoint.read(out).evaluation
    assert reached is not None  # as every finished run has
    low, high = reached["success_interval"]
    share = f"{reached['success']:.1%} (95 % interval {low:.1%} to {high:.1%})"
    say(f"{out}: solves {share} of {reached['episodes']} fresh episodes")
    if as_json:
        print_json([{"run": str(out), **reached}])
    return 0


def convert(arguments: list[str]) -> int:
    """robostack convert SRC DST: between robostack, LeRobot, HDF5, Diffusion Policy Zarr; from videos."""
    from robostack.common.progress import Bar
    from robostack.datasets.formats.convert import ConvertConfig, Progress
    from robostack.datasets.formats.convert import convert as run

    options = Annotated[ConvertConfig, OmitArgPrefixes, PositionalRequiredArgs]
    settings = make_dataclass("Convert", [("options", options), ("json", Json, False)], frozen=True)
    config = _parse("convert", settings, arguments)
    with Bar(console, "converting") as bar:

        def report(done: Progress) -> None:
            bar.update(done.done, done.total, f"{done.stage}, {done.left_out} left out")

        done = run(config.options, report)
    lines = [*done.remarks, *(f"left out: {reason}" for reason in done.left_out.values())]
    lines += [f"left out: {key}: {why}" for key, why in done.left_out_features.items()]
    if done.left_out_features:
        lines.append("--drop leaves a feature out without a word, --keep stops where it is not whole")
    for line in lines:
        say(line, "yellow")
    if config.json:
        print_json([{**asdict(done), "path": str(done.path)}])
    rates = f"{done.frames_per_s:,.0f} frames/s, {done.mb_per_s:,.0f} MB/s"
    say(f"{done.path} ({done.format}): {done.episodes} episodes, {done.frames} frames, checked; {rates}")
    return 0


def inspect(arguments: list[str]) -> int:
    """robostack inspect PATH: what is in a data set or a checkpoint, and what is wrong with it."""
    from robostack.common.progress import Bar
    from robostack.datasets.formats import Selection, open_reader
    from robostack.datasets.inspection.survey import InspectConfig
    from robostack.datasets.inspection.survey import inspect as run
    from robostack.pages import inspection_console as show

    settings = make_dataclass(
        "Inspect",
        [
            ("path", Annotated[Positional[Path], arg(help="Data set of any format, checkpoint or run.")]),
            ("config", Annotated[InspectConfig, OmitArgPrefixes], field(default_factory=InspectConfig)),
            ("selection", Annotated[Selection, OmitArgPrefixes], field(default_factory=Selection)),
            ("html", Annotated[Path | None, arg(help="Page to write of a data set; must not exist.")], None),
            ("json", Json, False),
        ],
        frozen=True,
    )
    config = _parse("inspect", settings, arguments)
    page: Path | None = config.html
    if page is not None and page.exists():
        raise FileExistsError(f"{page} already exists: choose another name with --html or remove it first")
    if page is not None and not page.absolute().parent.is_dir():
        raise FileNotFoundError(f"{page.absolute().parent} does not exist: make the folder of the page first")
    if show.holds_checkpoint(config.path):
        from robostack.policies.checkpoint import Checkpoint

        if page is not None:
            raise ValueError(f"{config.path} is a checkpoint: --html writes pages of data sets")
        description = show.describe_checkpoint(Checkpoint.read(config.path))
        if config.json:
            print_json([description])
        else:
            show.print_checkpoint(description, console)
        return 0
    reader = open_reader(config.path, config.selection)
    with Bar(console, "inspecting") as bar:
        inspection = run(reader, config.config, lambda done: bar.update(done, reader.episodes, ""))
    if page is not None:
        from robostack.pages.inspection import write_inspection

        with room_needed(page, "no page was written"):
            write_inspection(page, inspection)
    if config.json:
        print_json([inspection.to_json()])
    else:
        show.print_inspection(inspection, console)
    if page is not None:
        say(f"page: {page}")
    return 1 if inspection.wrong else 0


def train(arguments: list[str]) -> int:
    """robostack train POLICY: a policy from demonstrations; --resume RUN continues."""
    from robostack.policies.registry import POLICIES, config_class
    from robostack.training.config import TrainConfig

    known = ", ".join(POLICIES)
    resumed = arguments[:1] == ["--resume"]  # a run knows its policy
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in HELP and not resumed):
        raise UsageError(f"name the policy first: one of {known} (see robostack train --help)")
    policy, rest = (None, arguments) if resumed else (arguments[0], arguments[1:])
    if policy in HELP:
        about = f"{VERBS['train'][1]}. Policies: {known}. `robostack train POLICY --help` adds the flags of one."
        parse(Annotated[TrainConfig, OmitArgPrefixes], "robostack train POLICY", ["--help"], about)
    if policy is not None and policy not in POLICIES:
        raise ValueError(f"unknown policy {policy!r}: {did_you_mean(policy, POLICIES)}expected one of {known}")
    if rest[:1] == ["--resume"]:
        as_json, rest = _take_json(rest)
        if len(rest) != 2:
            raise ValueError("--resume takes the folder of a run and nothing else: its settings are its own")
        from robostack.training.trainer import resume

        return _train(Path(rest[1]), lambda *told: resume(Path(rest[1]), policy, *told), as_json)
    assert policy is not None

    kind = config_class(policy)
    settings = make_dataclass(
        "Train",
        [
            ("train", Annotated[TrainConfig, OmitArgPrefixes]),
            ("policy", kind, field(default_factory=kind)),
            ("json", Json, False),
        ],
        frozen=True,
    )
    config = _parse(f"train {policy}", settings, rest)
    from robostack.training.trainer import train as run

    return _train(config.train.out, lambda *told: run(policy, config.policy, config.train, *told), config.json)


def _train(out: Path, run: Callable[[Callable[[Any], None], Callable[[Any], None]], Path], as_json: bool) -> int:
    from robostack.common.progress import Bar

    if importlib.util.find_spec("tensorboard") is None:
        say("no TensorBoard curves: pip install 'robostack[tensorboard]'; log.jsonl has the same numbers")
    last: dict[str, Any] = {}
    with Bar(console, "training") as bar:

        def report(done: Any) -> None:
            last.update(step=done.step, loss=done.loss)
            note = f"loss {done.loss:.4f}, {done.steps_per_s:.1f} steps/s, waits for data {done.data_wait:.0%}"
            bar.update(done.step, done.steps, note)

        def converting(done: Any) -> None:
            bar.update(done.done, done.total, f"{done.stage} the data, {done.left_out} left out")

        run(report, converting)
    say(f"trained: {out}; next: robostack eval {shlex.quote(str(out))} --env E")
    if as_json:
        print_json([{"run": str(out), **last}])
    return 0


def evaluate(arguments: list[str]) -> int:
    """robostack eval RUN: success with its interval, per-episode JSON, videos, a report page."""
    from robostack import envs
    from robostack.evaluation.config import EvalConfig, refuse_finished, results_folder

    settings = make_dataclass(
        "Evaluate",
        [
            (
                "run",
                Annotated[
                    Positional[str],
                    arg(metavar="RUN", help='Run or checkpoint of a policy or expert; "expert": the scripted one.'),
                ],
            ),
            ("config", Annotated[EvalConfig, OmitArgPrefixes]),
            ("json", Json, False),
        ],
        frozen=True,
    )
    config = _parse("eval", settings, arguments)
    envs.resolve(config.config.env)  # a wrong name is told before torch is imported
    refuse_finished(results_folder(config.run, config.config))  # before seconds of imports
    from robostack.common.progress import Bar
    from robostack.evaluation.evaluate import evaluate as run
    from robostack.pages.evaluation import write_report

    with ExitStack() as shown:
        bars = {"evaluating": shown.enter_context(Bar(console, "evaluating"))}
        succeeded: list[bool] = []

        def tell(what: str, done: int, of: int, note: str = "") -> None:
            if what not in bars:
                shown.close()  # a console shows one bar at a time
                bars[what] = shown.enter_context(Bar(console, what))
            bars[what].update(done, of, note)

        def report(episode: Any) -> None:
            succeeded.append(episode.success)
            tell("evaluating", len(succeeded), config.config.episodes, f"{sum(succeeded)} succeeded")

        evaluation = run(config.run, config.config, report, tell, write_page=write_report)
    if config.json:
        print_json([evaluation.summary])
    else:
        from robostack.pages.evaluation_console import print_summary

        print_summary(evaluation.summary, console)
    say(f"report: {evaluation.folder / 'report.html'}")
    return 0


def demo(arguments: list[str]) -> int:
    """robostack demo: the main job, end to end, on the CPU."""
    from robostack.recipes import aloha_transfer_cube

    out_help = "Folder for data, run and report; must not exist."
    settings = make_dataclass(
        "Demo", [("out", Annotated[Path, arg(help=out_help)], Path("demo")), ("json", Json, False)], frozen=True
    )
    config = _parse("demo", settings, arguments)
    out: Path = config.out
    if out.exists():
        raise FileExistsError(f"{out} already exists: choose another folder with --out or remove it first")
    for verb, *flags in aloha_transfer_cube(out).commands():
        console.rule(Text(f"robostack {verb} {printable(shlex.join(flags))}"), align="left")
        # Its result is the evaluation.
        if code := VERBS[verb][0]([*flags, "--json"] if config.json and verb == "eval" else flags):
            return code
    return 0


def bench(arguments: list[str]) -> int:
    """robostack bench WHAT: measurements, as JSON lines."""
    benches = ("env", "data", "policy")
    what = Annotated[Positional[str], arg(metavar="WHAT", help=f"What to measure: {', '.join(benches)}.")]
    settings = _parse("bench", make_dataclass("Bench", [("what", what), ("json", Json, False)]), arguments)
    if settings.what not in benches:
        hint = did_you_mean(settings.what, benches)
        raise ValueError(f"unknown bench {settings.what!r}: {hint}expected one of {', '.join(benches)}")
    module = importlib.import_module(f"robostack.bench.{settings.what}")
    tells = {"say": lambda line: say(line, "dim")} if settings.what == "data" else {}
    for measurement in getattr(module, f"bench_{settings.what}")(**tells):
        if settings.json:
            print_json([measurement])
        else:
            text = "{bench} {case}: {value:.4g} {unit}, {peer} {peer_value:.4g}: {ratio:.2f} times as good"
            say(text.format(**measurement))
    return 0


def doctor(arguments: list[str]) -> int:
    """robostack doctor: versions, GL backend, accelerators, decoders, and a 5 s self-test."""
    from robostack.doctor import collect_report, print_report

    as_json = _parse("doctor", make_dataclass("Doctor", [("json", Json, False)]), arguments).json
    report = collect_report()
    if as_json:
        print_json([report])
    else:
        print_report(report, console)
    return 0 if report["ok"] else 1


VERBS: Mapping[str, tuple[Callable[[list[str]], int], str]] = {
    "demo": (demo, "the main job, end to end, on the CPU"),
    "collect": (collect, "demonstrations from the environment's expert; --resume D continues"),
    "expert": (expert, "an expert by reinforcement (PPO), where none is scripted; --resume RUN continues"),
    "convert": (convert, "between robostack, LeRobot, HDF5, Diffusion Policy Zarr; from videos"),
    "inspect": (inspect, "what is in a data set or a checkpoint, and what is wrong with it"),
    "train": (train, "a policy from demonstrations; --resume RUN continues"),
    "eval": (evaluate, "success with its interval, per-episode JSON, videos, a report page"),
    "bench": (bench, "measurements, as JSON lines"),
    "doctor": (doctor, "versions, GL backend, accelerators, decoders, and a 5 s self-test"),
}


def _parse(verb: str, settings: Any, arguments: list[str]) -> Any:
    return parse(settings, f"robostack {verb}", arguments, VERBS[verb.split()[0]][1])


def _take_json(arguments: list[str]) -> tuple[bool, list[str]]:
    """Whether --json is among the arguments, and the others."""
    return "--json" in arguments, [argument for argument in arguments if argument != "--json"]


def _because_of(kind: type[BaseException], error: BaseException | None) -> bool:
    """Whether an exception is of this kind, or was raised because of one."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__
    return error is not None


def _fail(line: str, code: int) -> int:
    say(line, "red")
    return code


def _usage(_: list[str]) -> int:
    verbs = "".join(f"  {verb:<10}{about}\n" for verb, (_, about) in VERBS.items())
    write(f"usage: robostack VERB [FLAGS]\n\n{verbs}\n{_AFTER}")
    return 0


_AFTER = """robostack VERB --help shows the flags of a verb, robostack --version the version.
Every verb takes --json: JSON lines on standard output and nothing else there; people read standard error.
It exits with 0 when it did what was asked, 1 when it could not (a line says why), 2 when the command line is wrong.
"""


def _complete(arguments: list[str]) -> int:
    """--tyro-print-completion SHELL, --tyro-write-completion SHELL FILE: a script that completes commands."""
    from robostack.policies.registry import POLICIES

    def settings_of(verb: str, *words: str) -> Any:
        try:
            VERBS[verb][0]([*words, WHICH_FLAGS])
        except Answer as answer:
            return answer.settings
        raise AssertionError(f"{verb} has no flags")

    policies = one_of({policy: settings_of("train", policy) for policy in POLICIES})
    verbs = {verb: policies if verb == "train" else settings_of(verb) for verb in VERBS}
    parse(one_of(verbs), "robostack", arguments, "")
    return 0


def _version(_: list[str]) -> int:
    from importlib.metadata import version

    write(f"robostack {version('robostack')}\n")
    return 0
