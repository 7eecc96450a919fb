"""Flags from dataclasses, by tyro; whatever it refuses is one line that says what to type instead."""

from __future__ import annotations

import contextlib
import difflib
import io
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Union

import tyro

from robostack.common.console import write
from robostack.common.text import printable


class UsageError(ValueError):
    """The command line cannot be understood; the message, one line, says what was expected."""


OTHERS: dict[str, tuple[str, ...]] = {
    "batch": ("batch-size", "bs", "per-device-train-batch-size", "train-batch-size", "training.batch-size"),
    "learning-rate": ("lr", "optimizer.lr", "optim.lr", "optimizer-lr", "policy.optimizer-lr", "peak-lr"),
    "steps": ("num-steps", "max-steps", "train-steps", "num-train-steps", "iterations", "num-iterations", "epochs"),
    "data": ("dataset", "dataset.repo-id", "repo-id", "dataset.root", "dataset-path", "data-path", "dataset-dir"),
    "out": ("output", "output-dir", "outdir", "out-dir", "save-dir", "log-dir", "logdir", "run-dir", "ckpt-dir"),
    "device": ("gpu", "cuda", "accelerator", "policy.device"),
    "workers": ("num-workers", "n-workers", "num-envs", "n-envs", "jobs", "eval.batch-size"),
    "checkpoint-every": ("save-freq", "save-every", "save-interval", "checkpoint-freq", "save-steps"),
    "log-every": ("log-freq", "log-interval", "logging-steps"),
    "episodes": ("n-episodes", "num-episodes", "eval.n-episodes", "num-rollouts", "rollouts", "eval-episodes"),
    "env": ("task", "env.type", "env.task", "environment", "env-name", "env-id"),
    "weight-decay": ("wd",),
    "gradient-clip": ("grad-clip", "grad-clip-norm", "max-grad-norm", "optimizer.grad-clip-norm"),
    "average-decay": ("ema", "ema-decay", "use-ema"),
    "warmup-steps": ("warmup", "num-warmup-steps", "lr-warmup-steps"),
    "policy.chunk-len": ("chunk-size", "horizon", "action-horizon", "policy.chunk-size", "policy.horizon"),
    "policy.execute-len": ("n-action-steps", "action-steps", "policy.n-action-steps"),
    "execute-len": ("n-action-steps", "action-steps", "policy.n-action-steps"),
    "sampled": ("samples", "num-samples"),
    "to": ("format", "output-format", "to-format"),
    "rename": ("rename-map",),
}
"""Names of flags in other programs, by ours."""


class _Question(str):
    """In the place of arguments: which flags are there? `parse` answers by raising Answer."""


WHICH_FLAGS = _Question()


class Answer(BaseException):
    """The settings that a command line would have been parsed into."""

    def __init__(self, settings: Any) -> None:
        super().__init__()
        self.settings = settings


def parse(settings: Any, program: str, arguments: Sequence[str], description: str) -> Any:
    """The settings (a dataclass, or what else tyro takes) from a command line.

    Raises UsageError where it cannot be understood, SystemExit after `--help`, which goes to standard output.
    """
    if arguments and isinstance(arguments[-1], _Question):
        raise Answer(settings)
    shown, told = _Captured(), _Captured()
    try:
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(told):
            config, unknown = tyro.cli(
                settings, prog=program, args=arguments, description=description, return_unknown_args=True
            )
    except SystemExit as stop:
        if not stop.code:  # help, or what completes commands in a shell
            write(shown.getvalue())
            raise
        said = _one_line(told.getvalue())
        hints = "".join(f"; {hint}" for hint in _hints(settings, program, arguments) if hint not in said)
        raise UsageError(f"{said}{hints} (see {program} --help)") from None
    except (AssertionError, IndexError):
        if not any(argument.startswith("--tyro-") for argument in arguments):
            raise
        raise UsageError(
            "expected --tyro-print-completion SHELL or --tyro-write-completion SHELL FILE, of the shells "
            "bash, zsh, fish and tcsh"
        ) from None
    sys.stderr.write(told.getvalue())  # such as warnings
    if unknown:
        known = _flags(settings, program)
        raise UsageError(f"{_unknown(unknown, known)} (see {program} --help)")
    return config


class _Captured(io.StringIO):
    """tyro frames its texts as the encoding of standard output allows."""

    encoding = "utf-8"  # pyright: ignore[reportAssignmentType, reportIncompatibleVariableOverride]

    def isatty(self) -> bool:
        return sys.__stdout__ is not None and sys.__stdout__.isatty()


def one_of(choices: Mapping[str, Any]) -> Any:
    """Settings that are those of one of several commands, by name."""
    return Union[tuple(Annotated[settings, tyro.conf.subcommand(name)] for name, settings in choices.items())]  # noqa: UP007


def _one_line(box: str) -> str:
    """What an error of tyro's says, without its frame, its help texts and where there is more help."""
    sections: list[list[str]] = [[]]
    for line in _ANSI.sub("", box).splitlines():
        line = line.strip().strip("│").strip()
        if line.startswith(("╭", "╰")) or not line:
            continue
        if set(line) == {"─"}:
            sections.append([])
        else:
            sections[-1].append(line)
    kept = [section for section in sections if section and not section[0].startswith(_LEFT_OUT)]
    said = "; ".join(" ".join(section) for section in kept)
    said = re.sub(r"^Missing from [^:]*: ", "missing: ", said)
    said = re.sub(r"^Error parsing (?!-)[^:]*: ", "", said).replace("Error parsing ", "", 1)
    said = re.sub(r"invalid literal for int\(\) with base 10: (.*)$", r"expected a whole number, got \1", said)
    said = said.replace("Expected 1 values.", "Expected a value.")
    said = re.sub(r"could not convert string to float: (.*)$", r"expected a number, got \1", said)
    return printable(said[:1].lower() + said[1:].rstrip("."))


_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_LEFT_OUT = ("For full helptext", "Argument helptext", "Perhaps you meant", "Similar", "Unrecognized options")


def _flags(settings: Any, program: str) -> list[str]:
    """The flags that these settings have, without their dashes."""
    text = _Captured()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(text):
        tyro.cli(settings, prog=program, args=["--help"])
    return list(dict.fromkeys(re.findall(r"--([a-z][a-z0-9.-]*)", _ANSI.sub("", text.getvalue()))))


def _hints(settings: Any, program: str, arguments: Sequence[str]) -> Iterable[str]:
    """What may be wrong beside what was told: flags that do not exist."""
    known = _flags(settings, program)
    given = [argument for argument in arguments if argument.startswith("--") and len(argument) > 2]
    if strange := [flag for flag in given if _name(flag) not in known]:
        yield _unknown(strange, known)


def _unknown(tokens: Sequence[str], known: Sequence[str]) -> str:
    flags = [token for token in tokens if token.startswith("-") and not re.fullmatch(r"-[\d.]+(e-?\d+)?", token)]
    if not flags:
        return f"unexpected {' '.join(repr(printable(token)) for token in tokens)}"
    lines = []
    for flag in dict.fromkeys(flags):
        near = nearest_flag(_name(flag), known)
        lines.append(f"unknown option {printable(flag.split('=')[0])}{f': did you mean --{near}?' if near else ''}")
    return "; ".join(lines)


def _name(flag: str) -> str:
    return flag.lstrip("-").split("=")[0].replace("_", "-")


def nearest_flag(name: str, known: Sequence[str]) -> str | None:
    """The known flag that is meant by `name`: another program's name for it, its end, or one spelled alike."""
    lower = name.lower()
    for ours, theirs in OTHERS.items():
        if lower in theirs and ours in known:
            return ours
    ends = [flag for flag in known if flag.endswith(f".{lower}") or lower.endswith(f".{flag}")]
    if ends:
        return ends[0]
    near = difflib.get_close_matches(lower, known, n=1, cutoff=0.7)
    return near[0] if near else None
